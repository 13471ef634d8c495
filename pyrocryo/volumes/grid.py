"""A volume on a grid: a network writes all voxels, interpolation turns and projects them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.imaging import band_limited, resample, resample_projection, slice_projection
from pyrocryo.particles import Particles
from pyrocryo.perceptron import perceptron
from pyrocryo.volumes.focus import blended, focus_mask

__all__ = ["Grid"]

MOST_VOXELS_A_SIDE = {2: 128, 3: 48}
SPEED = 10.0  # of a map without hidden units, about what 64 of them make of a learning rate
START = 0.01  # size of its first weights


class Grid(nn.Module):
    r"""The density as :math:`v(z) = b + W h(z)` on a grid of voxels, `h` a small network.

    The last bias `b` is the consensus map. In two dimensions the map is the image, turned in the
    plane; in three it is turned by interpolation and summed along the beam. Trains about ten times
    faster than a coordinate network of the same quality.

    Args:
        dim: 2 for flat molecules whose rotations are in the plane, 3 for maps.
        side: Voxels along an edge; by default the box, but at most 128 (2-D) or 48 (3-D).
        hidden: Widths of the hidden layers of `h`; none for a map that is linear in `z`.
        projector: In three dimensions: sums along the beam ("real"), or central slices of the
            padded map's transform ("fourier", :func:`pyrocryo.imaging.slice_projection`), which
            find narrow density with a tenth of the error (Gaussians of one pixel, known poses:
            1 % of the map against 12 %) and take 1 to 2 times as long on a CPU. Maps then have
            no frequencies beyond Nyquist, which no slice sees.
        focus: A soft mask, `(M, M[, M])` from 0 to 1, outside of which nothing moves with `z`
            (:mod:`pyrocryo.volumes.focus` says why so, and not by a mask on the images).
    """

    def __init__(
        self,
        dim: int = 2,
        *,
        side: int | None = None,
        hidden: tuple[int, ...] = (64, 64),
        projector: Literal["real", "fourier"] = "real",
        focus: Any = None,
    ) -> None:
        super().__init__()
        if dim not in (2, 3):
            raise InputError(f"dim: a grid has 2 or 3 dimensions, got {dim}")
        if side is not None and side < 2:
            raise InputError(f"side: expected at least 2 voxels, got {side}")
        if projector not in ("real", "fourier"):
            raise InputError(f"projector: expected 'real' or 'fourier', got {projector!r}")
        if projector == "fourier" and dim == 2:
            raise InputError("projector: a flat grid is not projected; 'fourier' needs dim=3")
        self.dim = dim
        self.side = side
        self.hidden = tuple(hidden)
        self.projector = projector
        self._focus = focus
        self.register_buffer("mask", None)

    def build(self, latent: int, box: int) -> Grid:
        """Makes the network for `z` of ``latent`` numbers and images of ``box`` pixels."""
        self.box = box
        self.side = self.side or min(box, MOST_VOXELS_A_SIDE[self.dim])
        voxels = self.side**self.dim
        if self.hidden:
            self.network = perceptron(latent, self.hidden, voxels)
        else:
            self.network = nn.Sequential(Affine(latent, voxels))
        if self._focus is not None:
            self.focus_on(self._focus)
        return self

    def focus_on(self, mask: Any) -> None:
        """Lets nothing move outside ``mask`` from now on (:func:`.focus_mask`); None: no mask."""
        made = None if mask is None else focus_mask(mask, side=self.side, dim=self.dim)
        self.mask = made if made is None else made.to(next(self.network.parameters())).flatten()

    def extra_repr(self) -> str:
        """What decides its images beside the weights: resuming goes by it."""
        return "projector=fourier" if self.projector == "fourier" else ""

    @property
    def numbers_an_image(self) -> int:
        """Numbers held while one image is made, for those who choose how many to make at once.

        Sampling positions along the beam and the values found there, and the map itself.
        """
        if self.projector == "fourier":
            return 4 * (2 * self.side) ** 3 + 16 * self.box**2
        points = self.box**2 * (self.side if self.dim == 3 else 1)
        return (self.dim + 2) * points + self.side**self.dim

    def density(self, z: Tensor) -> Tensor:
        """Density maps `(..., side, side[, side])`, indexed `[(z,) y, x]`, of `z` `(..., K)`."""
        maps = self.network(z).to(z.dtype)
        if self.mask is not None:
            still = self.network(z.new_zeros(z.shape[-1])).to(z.dtype)
            maps = blended(maps, still, self.mask)
        maps = maps.unflatten(-1, (self.side,) * self.dim)
        return band_limited(maps, box=self.box) if self.projector == "fourier" else maps

    def forward(self, z: Tensor, rotation: Tensor, shift: Tensor) -> Tensor:
        """Clean images of conformations `z` in given poses.

        Args:
            z: `(..., K)`.
            rotation: `(..., 3, 3)`, broadcast against `z`.
            shift: `(..., 2)` in pixels, broadcast against `z`.

        Returns:
            `(..., box, box)`.
        """
        lead = torch.broadcast_shapes(z.shape[:-1], rotation.shape[:-2], shift.shape[:-1])
        maps = self.density(z.expand(*lead, -1).flatten(0, -2))
        rotation = rotation.expand(*lead, 3, 3).reshape(-1, 3, 3)
        shift = shift.expand(*lead, 2).reshape(-1, 2)
        in_space = slice_projection if self.projector == "fourier" else resample_projection
        project = resample if self.dim == 2 else in_space
        return project(maps, rotation, shift, box=self.box).unflatten(0, lead)

    def check(self, particles: Particles) -> None:
        """Raises InputError if a 2-D grid is given rotations out of the plane."""
        if self.dim == 2:
            refuse_tilted(particles, "a 2-D grid", "Grid(dim=3)")


class Affine(nn.Linear):
    """A linear map that starts near 0 and moves ``SPEED`` times as fast as its parameters.

    Adam moves a parameter by at most the learning rate a step. Voxels are many times that from
    where they start, and there are no hidden units here that would add up to it.
    """

    def reset_parameters(self) -> None:
        """Weights near 0, no consensus map."""
        nn.init.normal_(self.weight, std=START)
        nn.init.zeros_(self.bias)

    def forward(self, z: Tensor) -> Tensor:
        """`(..., voxels)` of `z` `(..., K)`."""
        return SPEED * super().forward(z)


def refuse_tilted(particles: Particles, what: str, instead: str) -> None:
    """Raises InputError if particles carry rotations that a flat volume cannot show."""
    if "rotation" not in particles.fields:
        return
    tilted = particles.rotation.reshape(-1, 3, 3)[:, 2, 2] < 1 - 1e-4
    if tilted.any():
        raise InputError(
            f"rotation: {tilted.sum()} images are tilted out of the plane, which {what} cannot "
            f"show (use {instead})"
        )
