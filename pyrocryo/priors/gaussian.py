"""The Gaussian transition prior, stationary: the control under which no axis means anything."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrocryo.priors.transition import Transition, normal_log_prob

__all__ = ["GaussianTransition"]


class GaussianTransition(Transition):
    r"""Stationary Ornstein-Uhlenbeck components, AR(1) in frames.

    .. math::
        p(z) = N(z_1; 0, I) \prod_{t > 1} \prod_k N(z_{t,k}; a_k z_{t-1,k}, 1 - a_k^2), \quad
        a_k = e^{-r_k}

    Rotation invariant if all rates are equal, at any number of frames: a turn by 45° costs 0 nats,
    and steps tell nothing of axes (negative control). Different rates break the symmetry
    (components of different speed; SOBI, Belouchrani et al. 1997) for linear maps: a turn by 45°
    costs .094 nats a pair for rates .2 and .4, 1.2 for .1 and 1. But the mixed derivative of
    :math:`\ln p(z_t | z_{t-1})` is constant (quasi-Gaussian; second singular value over first 0),
    so the nonlinear theory of Hyvärinen & Morioka (2017) never applies.

    Args:
        dim: Size K of `z` in each frame.
        rate: `r`, the interval between frames over the relaxation time Δt / τ: a number, `(K,)`,
            or `(..., T - 1, K)` for steps of their own.
        frames: Number of frames T, at least 2.
        plugin: As of :class:`pyrocryo.priors.Transition`, whose attributes it has.
        validate_args: The same.
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
        r"""Exact at every interval: :math:`r = \Delta t / \tau`, whatever the exponent."""
        return super().over(dim, value, interval, 1.0, **options)

    @property
    def decay(self) -> Tensor:
        return (-self.rate).exp()

    @property
    def step_variance(self) -> Tensor:
        r"""Variance of what a step adds, :math:`1 - a^2`."""
        return -(-2 * self.rate).expm1()

    def step_sample(self, shape: torch.Size) -> Tensor:
        sd = self.step_variance.sqrt().expand(shape)
        return sd * torch.randn_like(sd)

    def step_log_prob(self, step: Tensor) -> Tensor:
        return normal_log_prob(step, self.step_variance.sqrt().to(step))

    def expected_cost(self, mean: Tensor, sd: Tensor) -> Tensor:
        variance = self.step_variance.to(mean)
        square = (mean.square() + sd.square()) / variance
        return 0.5 * (square + variance.log() + math.log(2 * math.pi))
