r"""Poses as a few numbers about a centre, in which a normal can be improved.

In the plane an angle; in space the rotation vector `w` of small turns in which
:class:`pyrocryo.rotation_laws.RotationNormal` is a normal, and the shift (Å) where that is
unknown. The centre follows the mean, so that the numbers of the turn are 0 there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrocryo import quaternions, unit_vectors
from pyrocryo.directions import PlanarNormal
from pyrocryo.guides.refine import RotationAndShift
from pyrocryo.guides.search import MixtureAndShift
from pyrocryo.natural_gradient import Normal, block_diagonal, marginal
from pyrocryo.poses import InPlane, turned
from pyrocryo.rotation_laws import RotationMixture, RotationNormal

__all__ = ["Plane", "Space", "Start", "chart_of"]

LARGEST_SD = 0.6  # rad, of angles in the plane


class Start(NamedTuple):
    """A guide's answer in a chart of n numbers.

    Attributes:
        centre: `(..., 2)` or `(..., 4)`.
        loc: `(..., n)`.
        scale: `(..., n, n)`, lower triangular.
    """

    centre: Tensor
    loc: Tensor
    scale: Tensor


class Plane:
    """The angle (rad) from a direction, counter-clockwise."""

    numbers = 1
    several = False

    def start(self, law: PlanarNormal) -> Start:
        """Of a guide's law of each image."""
        sd = 1 / law.concentration.norm(dim=-1).clamp_min(1 / LARGEST_SD)
        return Start(law.mean, torch.zeros_like(sd).unsqueeze(-1), sd[..., None, None])

    def placed(self, centre: Tensor, theta: Tensor) -> tuple[Tensor, None]:
        """The pose at ``theta`` `(..., 1)`; shifts are not unknown in the plane."""
        return turned(centre, theta[..., 0]), None

    def log_prior(
        self, pose: InPlane, batch: Any, theta: Tensor, direction: Tensor, shift: None
    ) -> Tensor:
        """Flat: 0."""
        return torch.zeros_like(theta[..., 0])

    def read(self, centre: Tensor, direction: Tensor, shift: None) -> Tensor:
        """The angle of a pose, `(..., 1)`."""
        return unit_vectors.angles(centre, direction)

    def moved(self, q: Normal) -> Normal:
        """The same law about its own mean."""
        centre = turned(q.centre, q.loc[..., 0])
        return Normal(_without_turn(q.loc, 1), q.scale, centre)

    def law(self, centre: Tensor, loc: Tensor, scale: Tensor, elbo: Tensor) -> PlanarNormal:
        """Of the pose."""
        return PlanarNormal(centre / scale[..., 0, :1].clamp_max(LARGEST_SD))


class Space:
    r"""`w` with :math:`q = \pm (1, w/2) / \sqrt{1 + |w|^2/4} \otimes q_0`, and the shift in Å.

    Of a mixture each component is a chart of its own, on a further axis before all others.

    Args:
        shifts: Whether shifts are unknown.
        several: Whether poses are mixtures.
    """

    def __init__(self, shifts: bool, *, several: bool = False) -> None:
        self.shifts, self.several = shifts, several
        self.numbers = 3 + 2 * shifts

    def start(self, law: Any) -> Start:
        """Of a guide's law of each image."""
        one = law.component if self.several else law
        centre, loc, scale = one.centre, one.centre.new_zeros(*one.batch_shape, 3), one.scale_tril
        if self.shifts:
            loc = torch.cat([loc, law.moved], dim=-1)
            above = torch.cat([scale, scale.new_zeros(*scale.shape[:-1], 2)], dim=-1)
            below = torch.cat([law.gain @ scale, law.spread], dim=-1)
            scale = torch.cat([above, below], dim=-2)
        if self.several:
            last = len(law.batch_shape)
            centre, loc, scale = (part.movedim(last, 0) for part in (centre, loc, scale))
        return Start(centre, loc, scale)

    def placed(self, centre: Tensor, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pose, and the shift if it is unknown, at ``theta`` `(..., n)`."""
        half = 0.5 * theta[..., :3]
        turn = torch.cat([torch.ones_like(half[..., :1]), half], dim=-1)
        direction = quaternions.unit(quaternions.product(turn, centre))
        return direction, theta[..., 3:5] if self.shifts else None

    def log_prior(
        self, pose: Any, batch: Any, theta: Tensor, direction: Tensor, shift: Tensor | None
    ) -> Tensor:
        r"""Density of the pose in `w`, and of the shift in Å.

        .. math:: \ln p(q) - 2 \ln (1 + |w|^2/4) - \ln 4 + \ln N(t; t_0, \sigma_t^2)
        """
        frames = batch.images.dim() == 4
        turn = pose.prior(batch)
        turn = turn.base_dist if frames else turn
        square = 0.25 * theta[..., :3].square().sum(-1)
        found = turn.log_prob(direction) - 2 * square.log1p() - math.log(4)
        if shift is None:
            return found
        return found + pose.shift_prior(batch).base_dist.log_prob(shift).sum(-1)

    def read(self, centre: Tensor, direction: Tensor, shift: Tensor | None) -> Tensor:
        """`w`, and the shift, of a pose, `(..., n)`."""
        still = torch.eye(3, dtype=centre.dtype, device=centre.device)
        w = 2 * RotationNormal(centre, still, validate_args=False).tangent(direction)
        if not self.shifts:
            return w
        lead = torch.broadcast_shapes(w.shape[:-1], shift.shape[:-1])
        return torch.cat([w.expand(*lead, 3), shift.expand(*lead, 2)], dim=-1)

    def moved(self, q: Normal) -> Normal:
        r"""The same law about its own mean, to first order in how wide it is.

        At :math:`m = w / 2` the new coordinates change with the old ones by
        :math:`(1 + [m]_\times) / (1 + |m|^2)`.
        """
        half = 0.5 * q.loc[..., :3]
        turn = torch.cat([torch.ones_like(half[..., :1]), half], dim=-1)
        centre = quaternions.unit(quaternions.product(turn, q.centre))
        eye = torch.eye(3, dtype=half.dtype, device=half.device)
        crossed = torch.linalg.cross(*torch.broadcast_tensors(half.unsqueeze(-2), eye))
        change = (eye + crossed.transpose(-1, -2)) / (1 + half.square().sum(-1)[..., None, None])
        each = marginal(q)
        rows = torch.cat([change @ each[..., :3, :], each[..., 3:, :]], dim=-2)
        scale, failed = torch.linalg.cholesky_ex(rows @ rows.transpose(-1, -2))
        scale = torch.where(failed[..., None, None] > 0, each, scale)
        return Normal(_without_turn(q.loc, 3), block_diagonal(scale), centre)

    def law(self, centre: Tensor, loc: Tensor, scale: Tensor, elbo: Tensor) -> Any:
        """Of the pose, which knows that of the shift; components by their ELBO."""
        gain = torch.linalg.solve_triangular(
            scale[..., :3, :3], scale[..., 3:5, :3], upper=False, left=False
        )
        turn, moved = (centre, scale[..., :3, :3]), (loc[..., 3:5], gain, scale[..., 3:5, 3:5])
        if not self.several:
            return RotationAndShift(*turn, *moved) if self.shifts else RotationNormal(*turn)
        turn, moved = (tuple(part.movedim(0, elbo.dim() - 1) for part in p) for p in (turn, moved))
        logits = elbo.nan_to_num(nan=-math.inf).movedim(0, -1)
        one = RotationNormal(*turn, validate_args=False)
        return (
            MixtureAndShift(logits, one, *moved) if self.shifts else RotationMixture(logits, one)
        )


def chart_of(pose: Any, law: Any) -> Plane | Space | None:
    """Where a guide's law of a pose can be improved; None where it has no peaks to improve.

    Args:
        pose: Of a pair, unknown.
        law: The pose guide's answer.
    """
    if isinstance(pose, InPlane):
        return Plane()
    if isinstance(law, RotationAndShift if pose.shifts else RotationNormal):
        return Space(pose.shifts)
    if isinstance(law, MixtureAndShift if pose.shifts else RotationMixture):
        return Space(pose.shifts, several=True)
    return None


def _without_turn(loc: Tensor, turns: int) -> Tensor:
    return torch.cat([torch.zeros_like(loc[..., :turns]), loc[..., turns:]], dim=-1)
