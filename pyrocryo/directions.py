r"""Laws of unit vectors, which is what a pose is: a direction in the plane, or a unit quaternion.

Pyro's ``ProjectedNormal(c)`` is the law of :math:`(c + n) / |c + n|`, `n` standard normal: its
direction is the mean, its length the concentration.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import ProjectedNormal
from torch import Tensor
from torch.distributions.kl import register_kl

__all__ = ["PlanarNormal", "UniformDirection"]

NODES = 64  # of the quadrature over the circle; relative error of the KL below 1e-5


class UniformDirection(ProjectedNormal):
    """The uniform law on the unit sphere: a projected normal of concentration 0.

    Args:
        dim: Numbers in the unit vector: 2 for the circle, 4 for rotations as quaternions.
        like: A tensor of the dtype and on the device wanted.
    """

    def __init__(self, dim: int, *, like: Tensor | None = None) -> None:
        like = torch.zeros(()) if like is None else like
        super().__init__(like.new_zeros(dim), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> UniformDirection:
        new = self._get_checked_instance(UniformDirection, _instance)
        ProjectedNormal.__init__(
            new, self.concentration.expand(*batch_shape, -1), validate_args=False
        )
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return _direction(torch.randn(self._extended_shape(sample_shape), **_like(self)))

    def log_prob(self, value: Tensor) -> Tensor:
        # the sphere's area is 2 π^(n/2) / Γ(n/2)
        half = 0.5 * self.event_shape[0]
        area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return -area + torch.zeros_like(value[..., 0] + self.concentration[..., 0])


class PlanarNormal(ProjectedNormal):
    r"""The projected normal on the circle, accurate in single precision wherever it has mass.

    With `t` and `r` the components of the concentration along and across a direction,

    .. math:: p = \frac{e^{-r^2 / 2}}{\sqrt{2 \pi}} [\phi(t) + t \Phi(t)]

    and `r` is taken as a cross product, where Pyro subtracts two large squares.

    Args:
        concentration: `(..., 2)`.
    """

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> PlanarNormal:
        new = self._get_checked_instance(PlanarNormal, _instance)
        ProjectedNormal.__init__(
            new, self.concentration.expand(*batch_shape, -1), validate_args=False
        )
        return new

    @property
    def mean(self) -> Tensor:
        return self.concentration / (self.concentration.norm(dim=-1, keepdim=True) + 1e-12)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        noise = torch.randn(self._extended_shape(sample_shape), **_like(self))
        return _direction(self.concentration + noise)

    def log_prob(self, value: Tensor) -> Tensor:
        (cx, cy), (x, y) = self.concentration.unbind(-1), value.unbind(-1)
        return _log_density(cx * x + cy * y, cx * y - cy * x)


def _like(law: ProjectedNormal) -> dict[str, Any]:
    return {"dtype": law.concentration.dtype, "device": law.concentration.device}


def _direction(point: Tensor) -> Tensor:
    # Pyro's own projection looks at values, which no graph can
    return point / point.norm(dim=-1, keepdim=True)


def _log_density(along: Tensor, across: Tensor) -> Tensor:
    normal = torch.exp(-0.5 * along.square()) / math.sqrt(2 * math.pi)
    ray = normal + 0.5 * along * torch.erfc(-along * math.sqrt(0.5))
    smallest = torch.finfo(ray.dtype).tiny
    return -0.5 * across.square() - 0.5 * math.log(2 * math.pi) + ray.clamp_min(smallest).log()


@register_kl(PlanarNormal, UniformDirection)
def _kl(q: PlanarNormal, p: UniformDirection) -> Tensor:
    r""":math:`\int q \ln(2 \pi q) d\theta`, a function of the concentration κ alone.

    By the midpoint rule in `u`, :math:`\tan(\theta/2) = s \tan(u/2)`: a map of the circle that
    spends its nodes where `q` has its mass, so that the sum converges exponentially.
    """
    kappa = q.concentration.square().sum(-1, keepdim=True).add(1e-12).sqrt()
    u = (torch.arange(NODES, dtype=kappa.dtype, device=kappa.device) + 0.5) * (2 * math.pi / NODES)
    half = 0.5 * (u - math.pi)
    squeeze = 2.0 / (2.0 + kappa.detach())
    theta = 2 * torch.atan(squeeze * half.tan())
    step = squeeze / (half.cos().square() + (squeeze * half.sin()).square())
    log_q = _log_density(kappa * theta.cos(), kappa * theta.sin())
    terms = step * log_q.exp() * (log_q + math.log(2 * math.pi))
    return terms.sum(-1) * (2 * math.pi / NODES)
