"""Poses: where the molecule points and where it lies in the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrocryo.directions import UniformDirection
from pyrocryo.errors import InputError
from pyrocryo.imaging import resample
from pyrocryo.particles import Particles

__all__ = ["Absent", "InPlane", "Known", "shift_of", "turn", "turned", "unturned"]


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

    def check(self, particles: Particles) -> None:
        """Any particles will do."""

    def prior(self, batch: Any) -> Any:
        """The uniform law of the unit vectors, event shape `(2,)` or `(T, 2)`."""
        lead = batch.images.shape[:-2]
        prior = UniformDirection(2, like=batch.images).expand(lead)
        return prior.to_event(1) if len(lead) == 2 else prior

    def forward(self, batch: Any, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Rotations `(..., 3, 3)` and shifts `(..., 2)` (pixels) for unit vectors `(..., 2)`."""
        return turn(direction), shift_of(batch)


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
