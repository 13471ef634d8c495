"""One normal over all frames of a molecule, whose axes are turned only for the prior."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints

from pyrocryo.precision import applied
from pyrocryo.turned import Turned

__all__ = ["JointNormal"]


class JointNormal(Turned):
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

    def entropy(self) -> Tensor:
        """Differential entropy in nats; `R` does not change it."""
        return self.log_volume() + 0.5 * self.event_shape.numel()

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
