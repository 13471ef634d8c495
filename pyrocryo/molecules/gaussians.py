"""Molecules as Gaussians that move: their images, exact."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyrocryo.imaging import splat

__all__ = ["Gaussians"]


class Gaussians:
    """Molecules with ``centres(z)`` `(..., A, 3)` in Å, ``width`` (Å) and ``weight`` `(A,)`."""

    width: Tensor
    weight: Tensor
    centres: Callable[[Tensor], Tensor]

    def render(
        self, z: Tensor, rotation: Tensor, shift: Tensor, *, box: int, pixel_size: float
    ) -> Tensor:
        """Clean images of conformations in given poses, exact.

        Args:
            z: `(..., dim)` conformations.
            rotation: `(..., 3, 3)` rotations; about the beam, where the molecule is flat.
            shift: `(..., 2)` displacements in Å.
            box: Pixels along an edge.
            pixel_size: Å per pixel.

        Returns:
            `(..., box, box)`, indexed `[y, x]`.
        """
        seen = self.centres(z) @ rotation[..., :2, :].transpose(-1, -2) + shift.unsqueeze(-2)
        return splat(seen, self.width.to(z), self.weight.to(z), box=box, pixel_size=pixel_size)
