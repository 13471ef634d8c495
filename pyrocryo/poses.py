"""Poses: where the molecule points and where it lies in the image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.particles import Particles

__all__ = ["Known"]


class Known(nn.Module):
    """Poses that come with the particles, from an earlier refinement or from the simulator."""

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
        rotation = batch.rotation
        shift = getattr(batch, "shift", None)
        if shift is None:
            return rotation, rotation.new_zeros(*rotation.shape[:-2], 2)
        return rotation, shift / batch.pixel_size
