"""What the microscope does to a clean projection before noise is added."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.imaging import filtered, modulated, transfer
from pyrocryo.particles import Particles

__all__ = ["CTF"]


class CTF(nn.Module):
    r"""Images multiplied, in Fourier space, by each particle's contrast transfer function.

    ``Pair(..., optics=pc.optics.CTF())``, for particles with a field ``ctf``
    (:func:`pyrocryo.imaging.contrast_transfer`). What the volume learns is then the density, and
    the encoders see phase-flipped images: those without the oscillating sign. Guides that compare
    images with projections of the volume see the images as they are, and projections through
    the CTF.

    Args:
        margin: See :func:`pyrocryo.imaging.modulated`.
        flip: Whether other encoders see phase-flipped images, or images as they are.
    """

    def __init__(self, *, margin: int = 1, flip: bool = True) -> None:
        super().__init__()
        if margin < 1:
            raise InputError(f"margin: expected at least 1, got {margin}")
        self.margin = int(margin)
        self.flip = flip

    def extra_repr(self) -> str:
        """What decides its images: resuming goes by it."""
        return f"margin={self.margin}, flip={self.flip}"

    def check(self, particles: Particles) -> None:
        """Raises InputError if the particles carry no CTF."""
        if "ctf" not in particles.fields:
            raise InputError(
                "ctf: these particles have no CTF; a star file gives it in the columns "
                "rlnDefocusU, rlnDefocusV, rlnDefocusAngle, rlnVoltage, "
                "rlnSphericalAberration and rlnAmplitudeContrast"
            )

    def forward(self, clean: Tensor, batch: Any) -> Tensor:
        """Clean images `(..., B, [T,] D, D)` as they are seen."""
        return self.through(batch)(clean)

    def through(self, batch: Any) -> Callable[[Tensor], Tensor]:
        """The same for guides that compare many projections: computes the CTFs once.

        A function of clean images with any leading axes; linear and symmetric.
        """
        wide = self.margin * batch.images.shape[-1]
        multiplier = transfer(batch.ctf, box=wide, pixel_size=batch.pixel_size, like=batch.images)
        return functools.partial(filtered, multiplier=multiplier)

    def corrected(self, batch: Any) -> Any:
        """The batch as encoders are to see it."""
        if not self.flip:
            return batch
        images = modulated(batch.images, batch.ctf, pixel_size=batch.pixel_size, sign=True)
        return batch._replace(images=images)
