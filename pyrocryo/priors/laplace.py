"""The Laplace transition prior on frames of one molecule: most steps small, a few large."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrocryo.priors.transition import Transition

__all__ = ["LaplaceTransition", "expected_absolute"]


class LaplaceTransition(Transition):
    r"""Laplace steps (SlowVAE; Klindt et al. 2021 and 2024).

    .. math::
        p(z) = N(z_1; 0, I) \prod_{t > 1} \prod_k \frac{\lambda_k}{2}
               e^{-\lambda_k |z_{t,k} - z_{t-1,k}|}

    The L1 norm of the increments is not rotation invariant: turning the axes of K = 2 by 45° costs
    .121 nats a pair, so `z` is identified up to permutation and sign.

    What ``plugin`` leaves out, a component and step, is
    :math:`\lambda [F(m, \sqrt{v_t + v_{t-1}}) - F(m, \sqrt{v_t})]`, for equal variances s² and
    m = 0 .33 λ s: .26 nats at λ = 4, s = .2, .33 at λ = 10, s = .1. So nothing but N(0, 1) narrows
    the first frame: with γ = 1 and m = 0 the prior alone is content with standard deviations
    (.17, .18) for λ = 10 in the exact ELBO, (1, .13) with ``plugin``; with γ = 10, (.04, .13)
    and (1, .13). The authors' released code does more than plug in: it takes the step both ways
    and subtracts the entropy of only one of the two frames, :math:`2 C - H` in place of
    :math:`2 (C - H)` with `C` the cost and `H` the entropy of a frame, and so narrows both
    (.069 where both entropies would give .13; λ = γ = 10). That loss is not reproduced here.

    Args:
        dim: Size K of `z` in each frame.
        rate: Rate :math:`\lambda` per unit of `z` (1 / Laplace scale), a number, `(K,)`, or
            `(..., T - 1, K)` for steps of their own. With z of unit variance, rates of 2-4 are
            slow processes.
        frames: Number of frames T, at least 2.
        plugin: Take each step from the posterior mean of the frame before, leaving out that
            frame's variance: the SlowVAE as published (Klindt et al. 2021; with γ = 10 and
            rate 10 the setting of 2024), which is no bound on the evidence.
        validate_args: As of :class:`pyrocryo.priors.Transition`, whose attributes it has.
    """

    arg_constraints = {"rate": constraints.independent(constraints.positive, 1)}

    def __init__(
        self,
        dim: int,
        rate: float | Tensor,
        *,
        frames: int = 2,
        plugin: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        options = {"frames": frames, "plugin": plugin, "validate_args": validate_args}
        super().__init__(dim, rate=rate, **options)

    @classmethod
    def over(
        cls, dim: int, value: Tensor, interval: Tensor, exponent: float, **options: Any
    ) -> Transition:
        """The rate falls as the scale grows."""
        return super().over(dim, value, interval, -exponent, **options)

    @property
    def step_variance(self) -> Tensor:
        r"""Variance of a step, :math:`2 / \lambda^2`."""
        return 2 / self.rate.square()

    def step_sample(self, shape: torch.Size) -> Tensor:
        rate = self.rate.expand(shape)
        return dist.Laplace(torch.zeros_like(rate), 1 / rate).rsample()

    def step_log_prob(self, step: Tensor) -> Tensor:
        rate = self.rate.to(step)
        return (rate / 2).log() - rate * step.abs()

    def expected_cost(self, mean: Tensor, sd: Tensor) -> Tensor:
        r""":math:`-\ln(\lambda / 2) + \lambda F(m, s)`."""
        rate = self.rate.to(mean)
        return rate * expected_absolute(mean, sd) - (rate / 2).log()


def expected_absolute(mean: Tensor, sd: Tensor) -> Tensor:
    r""":math:`F(m, s) = E|N(m, s^2)| = s \sqrt{2/\pi} e^{-m^2/2s^2} + m (1 - 2 \Phi(-m/s))`."""
    ratio = mean / sd
    density = sd * math.sqrt(2 / math.pi) * torch.exp(-0.5 * ratio.square())
    return density + mean * torch.erf(ratio / math.sqrt(2))
