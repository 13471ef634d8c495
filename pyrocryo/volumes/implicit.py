"""An implicit volume: a coordinate network gives the density at any point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging.splat import pixel_centres
from pyrocryo.precision import applied, exact
from pyrocryo.volumes.conditioned import Conditioned

__all__ = ["Implicit"]

FREQUENCY = 0.1  # cycles a pixel: standard deviation of the Fourier features


class Implicit(Conditioned):
    r"""The density as a network of position and conformation, :math:`v(r, z)`.

    The paper's choice (Klindt et al. 2024, section 3; after cryoDRGN, Zhong et al. 2021, and
    Tancik et al. 2020): Gaussian Fourier features of `r`, then hidden layers that each see `z`
    too; zero outside the ball that fits the box. An image is the network on the rotated grid of
    pixels, summed along the beam in three dimensions. As every pixel costs a pass through the
    network, training looks at a fresh random share of them in each step.

    Args:
        dim: 2 for flat molecules whose rotations are in the plane, 3 for maps.
        pixels: Pixels of each image that a training step looks at; None for all.
        hidden: Widths of the hidden layers.
        features: Number of frequencies.
        side: Samples along the beam, and voxels along an edge of exported maps; by default the
            box, but at most 128 (2-D) or 48 (3-D).
    """

    def __init__(
        self,
        dim: int = 2,
        *,
        pixels: int | None = 256,
        hidden: tuple[int, ...] = (64, 64),
        features: int = 48,
        side: int | None = None,
    ) -> None:
        super().__init__(dim, hidden, features, side)
        if pixels is not None and pixels < 1:
            raise InputError(f"pixels: expected at least 1 or None, got {pixels}")
        self.pixels = pixels

    def build(self, latent: int, box: int) -> Implicit:
        """Makes the network for `z` of ``latent`` numbers and images of ``box`` pixels."""
        super().build(latent, box)
        self.register_buffer("waves", self.normal() * (2 * math.pi * FREQUENCY))
        return self

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        return f"dim={self.dim}, pixels={self.pixels}, side={self.side}"

    @property
    def numbers_an_image(self) -> int:
        """Numbers held while one image is made, for those who choose how many to make at once."""
        points = self.box**2 * (self.side if self.dim == 3 else 1)
        return points * (2 * self.features + 2 * sum(self.hidden))

    def density(self, z: Tensor) -> Tensor:
        """Density maps `(..., side, side[, side])`, indexed `[(z,) y, x]`, of `z` `(..., K)`."""
        axis = pixel_centres(self.side, self.box / self.side, dtype=z.dtype, device=z.device)
        points = torch.stack(torch.meshgrid(*[axis] * self.dim, indexing="ij")[::-1], dim=-1)
        flat = points.reshape(1, -1, self.dim)
        maps = [self._values(flat, code) for code in z.reshape(-1, 1, z.shape[-1])]
        return torch.stack(maps).reshape(*z.shape[:-1], *[self.side] * self.dim)

    def forward(
        self, z: Tensor, rotation: Tensor, shift: Tensor, pixels: Tensor | None = None
    ) -> Tensor:
        """Clean images of conformations `z` in given poses.

        Args:
            z: `(..., K)`.
            rotation: `(..., 3, 3)`, broadcast against `z`.
            shift: `(..., 2)` in pixels, broadcast against `z`.
            pixels: `(P,)` which pixels of the flattened images, or None for all.

        Returns:
            `(..., box, box)`, or `(..., P)`.
        """
        lead = torch.broadcast_shapes(z.shape[:-1], rotation.shape[:-2], shift.shape[:-1])
        z = z.expand(*lead, -1)
        rotation = rotation.expand(*lead, 3, 3).reshape(-1, 3, 3)
        shift = shift.expand(*lead, 2).reshape(-1, 2)
        points = self._points(rotation, shift, pixels)
        values = self._values(points, z.reshape(-1, z.shape[-1]))
        if self.dim == 3:
            values = values.unflatten(1, (-1, self.side)).sum(-1)
        return values.reshape(*lead, *((self.box, self.box) if pixels is None else (-1,)))

    @exact
    def _points(self, rotation: Tensor, shift: Tensor, pixels: Tensor | None) -> Tensor:
        """Where in the molecule the pixels of each image look, `(B, P [* side], dim)`."""
        like = {"dtype": rotation.dtype, "device": rotation.device}
        axis = pixel_centres(self.box, **like)
        seen = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).flatten(0, 1)
        if pixels is not None:
            seen = seen[pixels]
        back = rotation[:, :2, : self.dim].transpose(-1, -2).unsqueeze(1)
        points = applied(back, seen - shift.unsqueeze(1))
        if self.dim == 2:
            return points
        depth = pixel_centres(self.side, self.box / self.side, **like)
        along = depth[:, None] * rotation[:, None, None, 2, :]
        return (points.unsqueeze(2) + along).flatten(1, 2)

    def _values(self, points: Tensor, z: Tensor) -> Tensor:
        """Densities `(B, P)` at ``points`` `(B, P, dim)` (pixels) of conformations `(B, K)`."""
        inside = points.square().sum(-1) <= (self.box / 2) ** 2
        return self.network(points, self.waves, z) * inside
