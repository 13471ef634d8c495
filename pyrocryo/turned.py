r"""What the laws of :math:`z = R u` share: they live in the frame of `u`, and draws are turned."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrocryo.precision import applied

__all__ = ["Turned"]


class Turned(dist.TorchDistribution):
    r"""The law of :math:`z = R (\mu + L x)`, :math:`x \sim N(0, 1)` unless a kind says otherwise.

    Whether `u` is one vector `(K,)` or one a frame `(T, K)` is told by its ``support``.

    Args:
        loc: `(..., K)` or `(..., T, K)`: μ.
        scale_tril: `(..., n, n)` lower triangular `L` with positive diagonal, n = K or T K, a
            frame after another.
        rotation: `(K, K)` orthogonal `R`, the same for every frame.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        rotation: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        lead = loc.dim() - self.support.event_dim
        batch_shape = torch.broadcast_shapes(loc.shape[:lead], scale_tril.shape[:-2])
        self.loc = loc.expand(batch_shape + loc.shape[lead:])
        self.scale_tril = scale_tril.expand(*batch_shape, -1, -1)
        self.rotation = rotation
        super().__init__(batch_shape, loc.shape[lead:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Turned:
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.scale_tril = self.scale_tril.expand(batch_shape + self.scale_tril.shape[-2:])
        new.rotation = self.rotation
        super(Turned, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def corrected(self, offset: Tensor, factor: Tensor) -> Turned:
        """The law with `L a` added to μ and `L M` for `L`; `a` `(..., n)`, `M` `(..., n, n)`."""
        new = self.expand(self.batch_shape)
        new.loc = self.loc + self._moved(offset)
        new.scale_tril = self.scale_tril @ factor
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.placed(noise.flatten(-len(self.event_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return -0.5 * self.whitened(value).square().sum(-1) - self.log_volume()

    @property
    def mean(self) -> Tensor:
        return applied(self.rotation, self.loc)

    def placed(self, x: Tensor) -> Tensor:
        r""":math:`z = R (\mu + L x)` of `x` `(..., n)`."""
        return applied(self.rotation, self.loc + self._moved(x))

    def whitened(self, value: Tensor) -> Tensor:
        """The `x` `(..., n)` that gives ``value``."""
        offset = applied(self.rotation.T, value) - self.loc
        offset = offset.flatten(-len(self.event_shape)).unsqueeze(-1)
        scale = self.scale_tril.expand(*offset.shape[:-2], -1, -1)
        return torch.linalg.solve_triangular(scale, offset, upper=False).squeeze(-1)

    def log_volume(self) -> Tensor:
        r""":math:`\ln |L| + \frac n2 \ln 2 \pi`."""
        half_log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return half_log_det + 0.5 * self.event_shape.numel() * math.log(2 * math.pi)

    def _moved(self, x: Tensor) -> Tensor:
        return applied(self.scale_tril, x).unflatten(-1, self.event_shape)
