"""One normal over all frames of a molecule, whose axes are turned only for the prior."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrocryo.precision import applied

__all__ = ["JointNormal"]


class JointNormal(dist.TorchDistribution):
    r"""The law of :math:`z_t = R u_t`, all frames together :math:`u \sim N(\mu, L L^\top)`.

    As :class:`pyrocryo.rotated_normal.RotatedNormal`, with frames that know of one another: event
    shape `(T, K)`.

    Args:
        loc: `(..., T, K)` mean of `u`.
        scale_tril: `(..., T K, T K)` lower triangular `L` with positive diagonal, a frame after
            another.
        rotation: `(K, K)` orthogonal `R`, the same for every frame.
    """

    arg_constraints = {
        "loc": constraints.independent(constraints.real, 2),
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        rotation: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        batch_shape = torch.broadcast_shapes(loc.shape[:-2], scale_tril.shape[:-2])
        self.loc = loc.expand(*batch_shape, -1, -1)
        self.scale_tril = scale_tril.expand(*batch_shape, -1, -1)
        self.rotation = rotation
        super().__init__(batch_shape, loc.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> JointNormal:
        new = self._get_checked_instance(JointNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.scale_tril = self.scale_tril.expand(batch_shape + self.scale_tril.shape[-2:])
        new.rotation = self.rotation
        super(JointNormal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def corrected(self, offset: Tensor, factor: Tensor) -> JointNormal:
        """The law with `L a` added to its mean and `L M` for `L`; `a` `(..., T K)`."""
        moved = applied(self.scale_tril, offset).unflatten(-1, self.event_shape)
        return JointNormal(self.loc + moved, self.scale_tril @ factor, self.rotation)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        noise = torch.randn(
            self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device
        )
        moved = applied(self.scale_tril, noise.flatten(-2)).unflatten(-1, self.event_shape)
        return applied(self.rotation, self.loc + moved)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        offset = (applied(self.rotation.T, value) - self.loc).flatten(-2).unsqueeze(-1)
        scale = self.scale_tril.expand(*offset.shape[:-2], -1, -1)
        white = torch.linalg.solve_triangular(scale, offset, upper=False).squeeze(-1)
        return -0.5 * white.square().sum(-1) - self._log_volume()

    def entropy(self) -> Tensor:
        """Differential entropy in nats; `R` does not change it."""
        return self._log_volume() + 0.5 * self.event_shape.numel()

    @property
    def mean(self) -> Tensor:
        return applied(self.rotation, self.loc)

    @property
    def variance(self) -> Tensor:
        """Marginal variances of each frame, `(..., T, K)`."""
        return self._rows().square().sum(-1)

    @property
    def step_covariance(self) -> Tensor:
        """Covariances of each frame with the next, component by component, `(..., T - 1, K)`."""
        rows = self._rows()
        return (rows[..., :-1, :, :] * rows[..., 1:, :, :]).sum(-1)

    def _rows(self) -> Tensor:
        """`R L`, frame by frame: `(..., T, K, T K)`."""
        rows = self.scale_tril.unflatten(-2, self.event_shape)
        return applied(self.rotation, rows.transpose(-1, -2)).transpose(-1, -2)

    def _log_volume(self) -> Tensor:
        half_log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return half_log_det + 0.5 * self.event_shape.numel() * math.log(2 * math.pi)
