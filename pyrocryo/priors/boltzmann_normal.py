"""The Boltzmann law of harmonic wells, and that of free standard deviations."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyrocryo.rotated_normal import RotatedNormal, kl_to_normal

__all__ = ["BoltzmannNormal"]


class BoltzmannNormal(dist.TorchDistribution):
    r"""Independent Gaussian components, :math:`p(z) = \prod_k N(z_k; \mu_k, \sigma_k^2)`.

    The Boltzmann law :math:`e^{-\sum_k \epsilon_k(z_k) / \tau} / Q(\tau)` of harmonic wells, with
    :math:`\sigma_k^2 = \tau / \kappa_k`, and the paper's free :math:`\sigma_k(\tau)` (section
    4.2.2), at one temperature a row.

    Args:
        loc: `(..., K)` means.
        scale: `(..., K)` standard deviations.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        shape = self.loc.shape
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> BoltzmannNormal:
        new = self._get_checked_instance(BoltzmannNormal, _instance)
        shape = torch.Size(batch_shape) + self.event_shape
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        super(BoltzmannNormal, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_each(value).sum(-1)

    def log_each(self, value: Tensor) -> Tensor:
        """Log-densities of the components of ``value`` `(..., K)`, shaped alike."""
        white = (value - self.loc) / self.scale
        return -(0.5 * white.square() + self.scale.log() + 0.5 * math.log(2 * math.pi))


@register_kl(RotatedNormal, BoltzmannNormal)
def _kl(q: RotatedNormal, p: BoltzmannNormal) -> Tensor:
    return kl_to_normal(q, p.loc, p.scale)
