"""What all volumes made of Gaussians share: maps, images, and what is learned of their looks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from pyrocryo.errors import InputError
from pyrocryo.imaging import splat, splat_map, window
from pyrocryo.particles import Particles
from pyrocryo.precision import exact
from pyrocryo.volumes.focus import blended, focus_mask, mask_at
from pyrocryo.volumes.grid import MOST_VOXELS_A_SIDE, refuse_tilted

__all__ = ["SPEED", "GaussianVolume"]

SPEED = 5.0  # widths and heights move this much faster than the networks' weights
GROWTH = math.log(1.5)  # most that the logarithm of a width grows where images use windows


class GaussianVolume(nn.Module):
    r"""Gaussians whose places a subclass gives: :meth:`centres`, and :meth:`build`.

    .. math:: x(r) = b + \sum_a w_a e^{-|r - \pi_\phi r_a(z)|^2 / 2 s_a^2}

    Images are exact (:func:`pyrocryo.imaging.splat`). Learned are the brightness of all, the
    background `b` and, but for a molecule whose looks are known, the heights `w` and widths `s`.

    Where atoms are narrow beside the box (:func:`pyrocryo.imaging.window` of 1.5 times the first
    width: atoms of 1 pixel from 90 pixels on, of 1.5 from 212), images are made from a window
    around each, to 4e-6 of its height. Widths then stay below 1.5 times the first:
    :math:`\log s / s^{(0)} = \lambda (1 - e^{-t / \lambda})` of the learned `t > 0`, with
    :math:`\lambda = \log 1.5`.

    Args:
        pixel_size: Å per pixel of the images.
        dim: 2 or 3.
        count: Number of Gaussians.
        side: Voxels along an edge of exported maps; by default the box, but at most 128 or 48.

    Attributes:
        axes: What each latent is, where the volume itself says so, such as "one hinge"; or None.
        chain: Whether the Gaussians may be atoms in the order of a chain.
    """

    axes: str | None = None
    chain = True

    def __init__(
        self, *, pixel_size: float, dim: int, count: int, side: int | None = None
    ) -> None:
        super().__init__()
        if not pixel_size > 0:
            raise InputError(f"pixel_size: expected a positive number of Å, got {pixel_size}")
        if dim not in (2, 3) or count < 1:
            raise InputError(f"dim, count: expected 2 or 3, and at least 1, got {dim}, {count}")
        self.dim = dim
        self.count = count
        self.pixel_size = float(pixel_size)
        self.side = side
        self.widest: float | None = None  # pixels, where images use windows
        self.register_buffer("mask", None)

    def _place(
        self, start: Tensor, width: Tensor, height: Tensor, *, box: int, learned: bool
    ) -> None:
        """Takes places, widths (pixels) and heights to start from; brightness is learned.

        Args:
            start: `(A, dim)` places at `z = 0`.
            width: `(A,)` or one for all.
            height: `(A,)`, in any unit.
            box: Pixels along an edge of the images.
            learned: Whether :meth:`_learn_shapes` follows.

        Raises:
            InputError: If most places are outside of the box.
        """
        half = box * self.pixel_size / 2
        outside = int((start.abs() > box / 2).any(dim=-1).sum())
        if 2 * outside > self.count:
            raise InputError(
                f"positions: {outside} of {self.count} atoms are outside of the box, which "
                f"reaches from -{half:g} to {half:g} Å about its centre; centre the structure"
            )
        self.box = box
        self._learned = learned
        self.side = self.side or min(box, MOST_VOXELS_A_SIDE[self.dim])
        self.register_buffer("start", start)
        self.register_buffer("first_width", width.expand(self.count).clone())
        widest = float(self.first_width.max()) * (math.exp(GROWTH) if learned else 1.0)
        self.widest = widest if window(widest, box=box, pixel_size=1.0) else None
        still = splat(start, self.first_width, height, box=box, pixel_size=1.0)
        # images come in units of the noise, and few have a variance far from it
        self.register_buffer("first_height", height / still.std().clamp_min(1e-6))
        self.brightness = nn.Parameter(torch.zeros(()))
        self.background = nn.Parameter(torch.zeros(()))

    def _learn_shapes(self) -> None:
        """Makes each width and height a parameter."""
        self.log_width = nn.Parameter(torch.zeros(self.count))
        self.log_height = nn.Parameter(torch.zeros(self.count))

    def reset_parameters(self) -> None:
        """Back to where it started (networks reset themselves)."""
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        told = f"dim={self.dim}, count={self.count}, pixel_size={self.pixel_size:g}"
        return told if self.widest is None else f"{told}, widest={self.widest:.4g}"

    @property
    def numbers_an_image(self) -> int:
        """Numbers held while one image is made, for those who choose how many to make at once."""
        return self.box**2 + 3 * self.count * (2 * self.box + self.dim)

    def centres(self, z: Tensor) -> Tensor:
        """Positions `(..., A, dim)` in pixels from the box centre, of `z` `(..., K)`."""
        raise NotImplementedError

    def focus_on(self, mask: Any) -> None:
        """Keeps Gaussians that start outside ``mask`` where they are at `z` = 0 from now on.

        Of those that start on its soft edge, as much of each way is kept as the mask says there
        (:mod:`pyrocryo.volumes.focus`). None: no mask.
        """
        self.mask = None
        if mask is not None:
            voxels = focus_mask(mask, side=2 * self.side, dim=self.dim)
            self.mask = mask_at(voxels, self.start, box=self.box).unsqueeze(-1)

    def places(self, z: Tensor) -> Tensor:
        """:meth:`centres`, held still outside the mask, if there is one."""
        if self.mask is None:
            return self.centres(z)
        return blended(self.centres(z), self.centres(z.new_zeros(z.shape[-1])), self.mask)

    def structure(self, z: Tensor) -> Tensor:
        """Positions `(..., A, dim)` in Å from the box centre, of `z` `(..., K)`."""
        return self.places(z) * self.pixel_size

    def density(self, z: Tensor) -> Tensor:
        """Density maps `(..., side, side[, side])`, indexed `[(z,) y, x]`, of `z` `(..., K)`."""
        voxel = self.box / self.side
        width, height = self._shape()
        centres = self.places(z)
        if self.dim == 2:
            return self.background + splat(centres, width, height, box=self.side, pixel_size=voxel)
        maps = [  # one by one: each holds side**3 numbers, and more on the way
            splat_map(one, width, height, side=self.side, voxel_size=voxel)
            for one in centres.reshape(-1, self.count, 3)
        ]
        maps = torch.stack(maps) + self.background / self.side
        return maps.reshape(*z.shape[:-1], *maps.shape[1:])

    @exact
    def forward(self, z: Tensor, rotation: Tensor, shift: Tensor) -> Tensor:
        """Clean images `(..., box, box)` of conformations `z` `(..., K)` in given poses.

        Args:
            z: `(..., K)`.
            rotation: `(..., 3, 3)`, broadcast against `z`.
            shift: `(..., 2)` in pixels, broadcast against `z`.
        """
        seen = self.places(z) @ rotation[..., :2, : self.dim].transpose(-1, -2)
        width, height = self._shape()
        seen = seen + shift.unsqueeze(-2)
        told = {"box": self.box, "pixel_size": 1.0, "widest": self.widest}
        return self.background + splat(seen, width, height, **told)

    def _shape(self) -> tuple[Tensor, Tensor]:
        """Widths (pixels) and heights `(A,)`."""
        height = self.first_height * (SPEED * self.brightness).exp()
        if not self._learned:
            return self.first_width, height
        growth = SPEED * self.log_width
        if self.widest is not None:
            growth = -GROWTH * elu(-growth / GROWTH)
        return self.first_width * growth.exp(), height * (SPEED * self.log_height).exp()

    def check(self, particles: Particles) -> None:
        """Raises InputError if the pixel size differs, or flat atoms get tilted rotations."""
        if not math.isclose(particles.pixel_size, self.pixel_size, rel_tol=1e-3):
            raise InputError(
                f"pixel_size: the particles have {particles.pixel_size:g} Å/px, the atoms were "
                f"made for {self.pixel_size:g}"
            )
        if self.dim == 2:
            refuse_tilted(particles, "a 2-D set of atoms", "Atoms(dim=3)")
