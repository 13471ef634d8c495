"""Poses: where the molecule points and where it lies in the image."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocryo import quaternions
from pyrocryo.directions import UniformDirection
from pyrocryo.errors import InputError
from pyrocryo.imaging import resample
from pyrocryo.particles import Particles
from pyrocryo.rotation_laws import RotationFisher

__all__ = [
    "SO3",
    "Absent",
    "InPlane",
    "Known",
    "shift_given",
    "shift_of",
    "turn",
    "turned",
    "unturned",
]


class Known(nn.Module):
    """Poses that come with the particles, from an earlier refinement or from the simulator."""

    latent = False

    def check(self, particles: Particles) -> None:
        """Raises InputError if the particles carry no rotations."""
        if "rotation" not in particles.fields:
            raise InputError(
                "rotation: these particles have no poses; a star file gives them in the columns "
                "rlnAngleRot, rlnAngleTilt and rlnAnglePsi, or name a file of cryoDRGN's with "
                "--poses FILE.pkl"
            )

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Rotations `(..., 3, 3)` and shifts `(..., 2)` (pixels) of the particles in ``batch``."""
        return batch.rotation, shift_of(batch)


class Absent(nn.Module):
    """No pose at all: images as they lie, whose turns and shifts are left to the conformation.

    The physics-free model that the paper compares with.
    """

    latent = False

    def check(self, particles: Particles) -> None:
        """Any particles will do."""

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Identities `(..., 3, 3)` and zero shifts `(..., 2)`."""
        lead, images = batch.images.shape[:-2], batch.images
        one = torch.eye(3, dtype=images.dtype, device=images.device)
        return one.expand(*lead, 3, 3), images.new_zeros(*lead, 2)


class InPlane(nn.Module):
    r"""Angles in the plane unknown, over the full circle: :math:`\phi \sim U(S^1)`.

    The latent site ``pose`` is the unit vector (cos φ, sin φ), one an image; the molecule is seen
    turned counter-clockwise by φ. With a uniform prior the pose is known up to a frame that may
    depend on the conformation, :math:`\phi + \alpha(z)`: the turn is undone in the volume and no
    likelihood sees it (:func:`pyrocryo.frames.reference_body` fixes it). Shifts are taken from the
    particles where they carry them, and are zero otherwise.
    """

    latent = True
    spatial = 2
    shifts = False

    def check(self, particles: Particles) -> None:
        """Any particles will do."""

    def start(self, batch: Any) -> tuple[Tensor, ...]:
        """What the guide is told beside the images: shifts in pixels."""
        return (shift_of(batch),)

    def prior(self, batch: Any) -> Any:
        """The uniform law of the unit vectors, event shape `(2,)` or `(T, 2)`."""
        lead = batch.images.shape[:-2]
        prior = UniformDirection(2, like=batch.images).expand(lead)
        return prior.to_event(1) if len(lead) == 2 else prior

    def forward(self, batch: Any, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Rotations `(..., 3, 3)` and shifts `(..., 2)` (pixels) for unit vectors `(..., 2)`."""
        return turn(direction), shift_of(batch)


class SO3(nn.Module):
    r"""Rotations in space unknown: everywhere, or near where an earlier refinement put them.

    .. math:: q \sim U(S^3) \quad \text{or} \quad q \sim Fisher(q_0, s), \qquad
              t \sim N(t_0, \sigma_t^2)

    The latent site ``pose`` is a unit quaternion `(w, x, y, z)`, one an image, of either sign; the
    molecule is seen at `A p` (:mod:`pyrocryo.quaternions`). With ``shift_sd`` the in-plane shift
    is unknown too, a site ``shift`` `(2,)` in Å. With a uniform prior, poses are known up to a
    rotation of the molecule (which may depend on the conformation) and its handedness.

    Args:
        around: Degrees about each axis that the particles' own ``rotation`` may be off by (one
            standard deviation; the angle is then off by 1.54 times as much, typically). None for
            the uniform law, which does not look at them.
        shift_sd: Å by which the particles' ``shift`` (0, where they carry none) may be off along
            each axis. None to take it as it is.
    """

    latent = True
    spatial = 3

    def __init__(self, *, around: float | None = None, shift_sd: float | None = None) -> None:
        super().__init__()
        if around is not None and not 0 < around <= 90:
            raise InputError(f"around: expected degrees in (0, 90], or None, got {around}")
        if shift_sd is not None and not shift_sd > 0:
            raise InputError(f"shift_sd: expected a positive length in Å, or None, got {shift_sd}")
        self.around = around
        self.shift_sd = shift_sd
        self.shifts = shift_sd is not None

    def extra_repr(self) -> str:
        """What decides its numbers: resuming goes by it."""
        return f"around={self.around}, shift_sd={self.shift_sd}"

    @property
    def sd(self) -> float | None:
        """``around`` in rad."""
        return None if self.around is None else math.radians(self.around)

    def check(self, particles: Particles) -> None:
        """Raises InputError if there is nothing to be around."""
        if self.around is not None and "rotation" not in particles.fields:
            raise InputError(
                f"rotation: poses within {self.around:g}° of known ones need those; these "
                "particles have none"
            )

    def prior(self, batch: Any) -> Any:
        """The law of the unit quaternions, event shape `(4,)` or `(T, 4)`."""
        lead = batch.images.shape[:-2]
        if self.sd is None:
            prior = UniformDirection(4, like=batch.images).expand(lead)
        else:
            sd = batch.images.new_full((), self.sd)
            prior = RotationFisher(quaternions.from_matrix(batch.rotation), sd).expand(lead)
        return prior.to_event(1) if len(lead) == 2 else prior

    def shift_prior(self, batch: Any) -> Any:
        """The law of the shifts in Å, event shape `(2,)` or `(T, 2)`."""
        centre = shift_of(batch) * batch.pixel_size
        return dist.Normal(centre, self.shift_sd).to_event(batch.images.dim() - 2)

    def start(self, batch: Any) -> tuple[Tensor | None, Tensor]:
        """What the guide is told: known quaternions, or None, and shifts in pixels."""
        known = None if self.sd is None else quaternions.from_matrix(batch.rotation)
        return known, shift_of(batch)

    def forward(
        self, batch: Any, direction: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rotations `(..., 3, 3)` and shifts `(..., 2)` (pixels).

        Args:
            batch: A batch of particles.
            direction: Unit quaternions `(..., 4)`.
            shift: `(..., 2)` in Å, or None for those that come with the particles.
        """
        moved = shift_of(batch) if shift is None else shift / batch.pixel_size
        return quaternions.matrix(direction), moved


def turn(direction: Tensor) -> Tensor:
    """Rotations `(..., 3, 3)` about the beam for (cos φ, sin φ) `(..., 2)`."""
    c, s = direction.unbind(-1)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rows = (torch.stack(row, dim=-1) for row in ((c, -s, zero), (s, c, zero), (zero, zero, one)))
    return torch.stack(tuple(rows), dim=-2)


def turned(direction: Tensor, angle: Tensor) -> Tensor:
    """Unit vectors `(..., 2)` turned counter-clockwise by ``angle`` (rad) `(...,)`."""
    c, s = angle.cos(), angle.sin()
    x, y = direction.unbind(-1)
    return torch.stack([c * x - s * y, s * x + c * y], dim=-1)


def unturned(maps: Tensor, angle: Tensor) -> Tensor:
    """Flat maps `(..., side, side)` turned clockwise by ``angle`` (rad) `(...,)`."""
    flat = maps.reshape(-1, *maps.shape[-2:])
    direction = torch.stack([angle.cos(), -angle.sin()], dim=-1).reshape(-1, 2)
    back = resample(flat, turn(direction), flat.new_zeros(len(flat), 2), box=flat.shape[-1])
    return back.reshape(maps.shape)


def shift_of(batch: Any) -> Tensor:
    """Shifts `(..., 2)` in pixels that come with the particles in ``batch``, or zeros."""
    shift = getattr(batch, "shift", None)
    if shift is None:
        return batch.images.new_zeros(*batch.images.shape[:-2], 2)
    return shift / batch.pixel_size


def shift_given(law: Any, direction: Tensor) -> Any:
    """The distribution q(shift | x, pose) in Å, event shape `(2,)` or `(T, 2)`.

    Args:
        law: A guide's q(pose | x), which knows it as ``law.shift``.
        direction: The poses, `(..., 4)`.
    """
    if isinstance(law, dist.Independent):
        return law.base_dist.shift(direction).to_event(1)
    return law.shift(direction)
