"""The isotropic normal prior: today's default, under which no axis means anything."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyrocryo.errors import InputError
from pyrocryo.rotated_normal import RotatedNormal

__all__ = ["IsotropicNormal"]


class IsotropicNormal(dist.TorchDistribution):
    r""":math:`p(z) = N(0, I_K)`.

    Rotation invariant: for every orthogonal `R`, decoder :math:`g(R^\top z)` and posterior turned
    by `R` have the same ELBO, so `z` is known up to any rotation at best (Klindt et al. 2024,
    section 2.3).

    Args:
        dim: Size K of `z`; event shape `(K,)`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        dim: int,
        *,
        batch_shape: torch.Size = torch.Size(),
        validate_args: bool | None = None,
    ) -> None:
        if dim < 1:
            raise InputError(f"dim: expected at least one latent, got {dim}")
        self.dim = dim
        super().__init__(batch_shape, torch.Size([dim]), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> IsotropicNormal:
        new = self._get_checked_instance(IsotropicNormal, _instance)
        new.dim = self.dim
        super(IsotropicNormal, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return torch.randn(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return -0.5 * (value.square() + math.log(2 * math.pi)).sum(-1)


@register_kl(RotatedNormal, IsotropicNormal)
def _kl(q: RotatedNormal, p: IsotropicNormal) -> Tensor:
    r""":math:`\frac12 (|\mu|^2 + \mathrm{tr} L L^\top - K) - \ln \det L`: free of `R`."""
    return 0.5 * (q.total_square + p.dim * math.log(2 * math.pi)) - q.entropy()
