"""The switching transition prior: each component goes through slow and fast times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrocryo.errors import InputError
from pyrocryo.priors.transition import Transition, log_sum, normal_log_prob

__all__ = ["SwitchingTransition"]


class SwitchingTransition(Transition):
    r"""Gaussian steps whose size follows a hidden two-state Markov chain, one a component.

    .. math::
        p(z) = N(z_1; 0, I) \prod_k \sum_{s_{2:T}} p(s_{2:T}) \prod_{t > 1}
               N(z_{t,k} - z_{t-1,k}; 0, \sigma_{s_t}^2), \quad
        p(s_{t+1} = j | s_t = i) = e^{-r} \delta_{ij} + (1 - e^{-r}) \pi_j

    with `s` slow or fast, stationary from the start, :math:`\pi_\mathrm{fast}` = ``share``. The
    states are summed out exactly by the forward algorithm. The chain and the scales of SNICA
    (Hälvä et al. 2021) without its linear dynamics and with independent steps inside a state. At
    T = 2 it is :class:`pyrocryo.priors.JumpTransition` with the jump's chance ``share``, at large
    `r` at any T.

    Not rotation invariant. Turning the axes of K = 2 by 45° costs .71 nats a pair with the scales
    and share below, and 4.8 nats a molecule of T = 8 at r = .2 (.69 a step). No KL in closed form
    is registered, as steps depend on one another under the prior: the ELBO samples it.

    Args:
        dim: Size K of `z` in each frame.
        rate: `r` at which the state of one step is forgotten in the next (both rates of switching
            together, times the interval): a number, `(K,)`, or `(..., T - 1, K)`, a row for each
            step; the first step's is not used.
        slow: Standard deviation of slow steps, shaped alike.
        fast: Standard deviation of fast steps.
        share: Share of time in the fast state.
        frames: Number of frames T, at least 2.
        validate_args: As of :class:`pyrocryo.priors.Transition`.
    """

    arg_constraints = {
        "rate": constraints.independent(constraints.positive, 1),
        "slow": constraints.independent(constraints.positive, 1),
        "fast": constraints.independent(constraints.positive, 1),
        "share": constraints.independent(constraints.positive, 1),
    }
    has_rsample = False  # which state it is in has no gradient

    def __init__(
        self,
        dim: int,
        rate: float | Tensor,
        *,
        slow: float | Tensor = 0.1,
        fast: float | Tensor = 1.0,
        share: float | Tensor = 0.2,
        frames: int = 2,
        validate_args: bool | None = None,
    ) -> None:
        options = {"frames": frames, "validate_args": validate_args}
        super().__init__(dim, rate=rate, slow=slow, fast=fast, share=share, **options)
        if validate_args is not False and not (self.slow < self.fast).all():
            raise InputError(f"slow: expected less than fast = {fast}, got {slow}")
        if validate_args is not False and not (self.share < 1).all():
            raise InputError(f"share: expected less than 1, got {share}")

    @classmethod
    def over(
        cls, dim: int, value: Tensor, interval: Tensor, exponent: float, **options: Any
    ) -> Transition:
        """The chain's exact law at every interval; steps of both states grow with its power."""
        power = interval.unsqueeze(-1) ** exponent
        options |= {name: options[name] * power for name in ("slow", "fast")}
        return super().over(dim, value, interval, 1.0, **options)

    @property
    def step_variance(self) -> Tensor:
        r"""Variance of a step, :math:`(1 - \pi) \sigma_\mathrm{slow}^2 + \pi ...`."""
        return (1 - self.share) * self.slow.square() + self.share * self.fast.square()

    def step_sample(self, shape: torch.Size) -> Tensor:
        rate, share, slow, fast = (
            v.expand(shape) for v in (self.rate, self.share, self.slow, self.fast)
        )
        fresh = torch.rand_like(rate) < share
        kept = torch.rand_like(rate) < (-rate).exp()
        states = [fresh[..., 0, :]]
        for t in range(1, self.frames - 1):
            states.append(torch.where(kept[..., t, :], states[-1], fresh[..., t, :]))
        sd = torch.where(torch.stack(states, dim=-2), fast, slow)
        return sd * torch.randn_like(sd)

    def log_steps(self, z: Tensor) -> Tensor:
        """The forward algorithm; the sum over steps is done, its axis kept."""
        step = z.diff(dim=-2)
        step = step.expand(torch.broadcast_shapes(step.shape, self.rate.shape))
        rate, share, slow, fast = (
            v.to(step).expand(step.shape) for v in (self.rate, self.share, self.slow, self.fast)
        )
        stay, change = -rate, (-(-rate).expm1()).log()
        emitted = normal_log_prob(step, slow), normal_log_prob(step, fast)
        prior = (-share).log1p(), share.log()
        a, b = (p[..., 0, :] + e[..., 0, :] for p, e in zip(prior, emitted, strict=True))
        for t in range(1, self.frames - 1):
            mixed = log_sum(a, b) + change[..., t, :]
            a, b = (
                log_sum(old + stay[..., t, :], mixed + p[..., t, :]) + e[..., t, :]
                for old, p, e in zip((a, b), prior, emitted, strict=True)
            )
        return log_sum(a, b).unsqueeze(-2)

    def expected_steps(self, mean: Tensor, variance: Tensor) -> Tensor:
        raise NotImplementedError  # tells Pyro that the KL has to be sampled
