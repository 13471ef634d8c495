"""The Laplace transition prior on frames of one molecule: most steps small, a few large."""

from __future__ import annotations

import copy
import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.distributions.kl import register_kl

from pyrocryo.errors import InputError
from pyrocryo.rotated_normal import RotatedNormal

__all__ = ["LaplaceTransition", "expected_absolute"]


class LaplaceTransition(dist.TorchDistribution):
    r"""One prior over T frames, event shape `(T, K)` (SlowVAE; Klindt et al. 2021 and 2024).

    .. math::
        p(z) = N(z_1; 0, I) \prod_{t > 1} \prod_k \frac{\lambda_k}{2}
               e^{-\lambda_k |z_{t,k} - z_{t-1,k}|}

    The L1 norm of the increments is not rotation invariant: turning the axes of K = 2 by 45° costs
    .121 nats a pair, so `z` is identified up to permutation and sign.

    Args:
        dim: Size K of `z` in each frame.
        rate: Rate :math:`\lambda` per unit of `z` (1 / Laplace scale), a number or `(K,)`. With
            z of unit variance, rates of 2-4 are slow processes.
        frames: Number of frames T, at least 2.
        plugin: Take each step from the posterior mean of the frame before, leaving out that
            frame's variance: the SlowVAE as published (Klindt et al. 2021; with γ = 10 and
            rate 10 the setting of 2024), which is no bound on the evidence. Only the closed-form
            KL differs, so `check_prior` names it.

    Attributes:
        transition_weight: Weight γ of the transition terms in the KL, 1 for the exact ELBO; set
            by the trainer around the loss (:class:`pyrocryo.svi.Weights`), never by a model.
    """

    arg_constraints = {"rate": constraints.independent(constraints.positive, 1)}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True
    transition_weight: float | Tensor = 1.0

    def __init__(
        self,
        dim: int,
        rate: float | Tensor,
        *,
        frames: int = 2,
        plugin: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        if dim < 1:
            raise InputError(f"dim: expected at least one latent, got {dim}")
        if frames < 2:
            raise InputError(f"frames: a transition needs at least 2 frames, got {frames}")
        rate = torch.as_tensor(rate, dtype=torch.get_default_dtype())
        if rate.dim() > 1 or (rate.dim() == 1 and len(rate) != dim) or not (rate > 0).all():
            raise InputError(f"rate: expected one positive number or {dim} of them, got {rate}")
        self.dim = dim
        self.frames = frames
        self.plugin = plugin
        self.rate = rate.expand(dim)
        super().__init__(torch.Size(), torch.Size([frames, dim]), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> LaplaceTransition:
        new = self._get_checked_instance(LaplaceTransition, _instance)
        new.dim, new.frames, new.rate = self.dim, self.frames, self.rate
        new.plugin, new.transition_weight = self.plugin, self.transition_weight
        super(LaplaceTransition, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def with_transition_weight(self, weight: float | Tensor) -> LaplaceTransition:
        """A copy whose KL counts transition terms ``weight`` times; `log_prob` is unchanged."""
        new = copy.copy(self)
        new.transition_weight = weight
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        like = {"dtype": self.rate.dtype, "device": self.rate.device}
        first = torch.randn(*shape[:-2], 1, self.dim, **like)
        steps = dist.Laplace(torch.zeros_like(self.rate), 1 / self.rate).rsample(
            torch.Size([*shape[:-2], self.frames - 1])
        )
        return torch.cat([first, steps], dim=-2).cumsum(dim=-2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        first = -0.5 * (value[..., 0, :].square() + math.log(2 * math.pi)).sum(-1)
        rate = self.rate.to(value)
        return first + ((rate / 2).log() - rate * value.diff(dim=-2).abs()).sum((-1, -2))


def expected_absolute(mean: Tensor, sd: Tensor) -> Tensor:
    r""":math:`F(m, s) = E|N(m, s^2)| = s \sqrt{2/\pi} e^{-m^2/2s^2} + m (1 - 2 \Phi(-m/s))`."""
    ratio = mean / sd
    density = sd * math.sqrt(2 / math.pi) * torch.exp(-0.5 * ratio.square())
    return density + mean * torch.erf(ratio / math.sqrt(2))


@register_kl(Independent, LaplaceTransition)
def _kl(q: Independent, p: LaplaceTransition) -> Tensor:
    r"""Exact for a Gaussian `q` that is independent across frames and correlated within each.

    The increment of component `k` is :math:`N(m_{t} - m_{t-1}, v_t + v_{t-1})` under `q`, with the
    marginal means and variances of the turned posterior, so each transition costs
    :math:`\sum_k [-\ln(\lambda_k / 2) + \lambda_k F(\Delta m, \sqrt{v_t + v_{t-1}})] - H(q_t)`.
    ``plugin`` leaves out :math:`v_{t-1}`.
    """
    frame = q.base_dist
    if not isinstance(frame, RotatedNormal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError  # tells Pyro that the KL has to be sampled
    entropy = frame.entropy()
    square = frame.total_square[..., 0]
    first = 0.5 * (square + p.dim * math.log(2 * math.pi)) - entropy[..., 0]
    mean, variance = frame.mean, frame.variance
    before = 0.0 if p.plugin else variance[..., :-1, :]
    sd = (variance[..., 1:, :] + before).sqrt()
    rate = p.rate.to(mean)
    cost = rate * expected_absolute(mean.diff(dim=-2), sd) - (rate / 2).log()
    steps = cost.sum((-1, -2)) - entropy[..., 1:].sum(-1)
    return first + p.transition_weight * steps
