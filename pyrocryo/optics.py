"""What the microscope does to a clean projection before noise is added."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.imaging import modulated
from pyrocryo.particles import Particles

__all__ = ["CTF"]


class CTF(nn.Module):
    r"""Images multiplied, in Fourier space, by each particle's contrast transfer function.

    ``Pair(..., optics=pc.optics.CTF())``, for particles with a field ``ctf``
    (:func:`pyrocryo.imaging.contrast_transfer`). What the volume learns is then the density, and
    the encoders see phase-flipped images: those without the oscillating sign.

    Args:
        margin: See :func:`pyrocryo.imaging.modulated`.
        flip: Whether encoders see phase-flipped images, or images as they are.
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
        return modulated(clean, batch.ctf, pixel_size=batch.pixel_size, margin=self.margin)

    def corrected(self, batch: Any) -> Any:
        """The batch as encoders are to see it."""
        if not self.flip:
            return batch
        images = modulated(batch.images, batch.ctf, pixel_size=batch.pixel_size, sign=True)
        return batch._replace(images=images)
