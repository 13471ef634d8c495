"""A volume of atoms: Gaussians that the conformation moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from pyrocryo.errors import InputError
from pyrocryo.imaging import splat, splat_map, window
from pyrocryo.particles import Particles
from pyrocryo.perceptron import perceptron
from pyrocryo.precision import exact
from pyrocryo.volumes.grid import MOST_VOXELS_A_SIDE, refuse_tilted

__all__ = ["Atoms"]

SPEED = 5.0  # widths and heights move this much faster than the networks' weights
GROWTH = math.log(1.5)  # most that the logarithm of a width grows where images use windows
FILLED = 0.7  # share of the half-box that atoms without a reference fill at first


class Atoms(nn.Module):
    r"""Gaussians at :math:`r_a(z) = r_a^{(0)} + \sum_k z_k d_{ak}`: a reference and its modes.

    .. math:: x(r) = b + \sum_a w_a e^{-|r - \pi_\phi r_a(z)|^2 / 2 s_a^2}

    Images are exact (:func:`pyrocryo.imaging.splat`). Learned are the displacement modes `d`, the
    heights `w`, the widths `s` and the background `b`; without a reference, positions too. With
    ``hidden`` layers the displacement is a network of `z`, and motions may be curved.
    :meth:`known` makes the volume of a molecule whose motion is known.

    Where atoms are narrow beside the box (:func:`pyrocryo.imaging.window` of 1.5 times the first
    width: atoms of 1 pixel from 90 pixels on, of 1.5 from 212), images are made from a window
    around each, to 4e-6 of its height. Widths then stay below 1.5 times the first:
    :math:`\log s / s^{(0)} = \lambda (1 - e^{-t / \lambda})` of the learned `t > 0`, with
    :math:`\lambda = \log 1.5`.

    Args:
        reference: `(A, 2)` or `(A, 3)` positions in Å from the box centre, or None for ``count``
            atoms on a lattice that learn where to go.
        pixel_size: Å per pixel of the images.
        dim: 2 or 3; only needed without a reference.
        count: Number of atoms without a reference.
        width: First standard deviation in Å of each Gaussian (default: what fills the space
            between atoms on a lattice; 4 Å for a reference).
        hidden: Widths of hidden layers between `z` and the displacements; () for linear modes.
        side: Voxels along an edge of exported maps; by default the box, but at most 128 or 48.
    """

    def __init__(
        self,
        reference: Any = None,
        *,
        pixel_size: float,
        dim: int = 2,
        count: int = 64,
        width: float | None = None,
        hidden: tuple[int, ...] = (64,),
        side: int | None = None,
    ) -> None:
        super().__init__()
        if not pixel_size > 0:
            raise InputError(f"pixel_size: expected a positive number of Å, got {pixel_size}")
        if width is not None and not width > 0:
            raise InputError(f"width: expected a positive number of Å, got {width}")
        if reference is not None:
            reference = torch.as_tensor(reference, dtype=torch.get_default_dtype())
            if reference.dim() != 2 or reference.shape[1] not in (2, 3) or not len(reference):
                raise InputError(
                    f"reference: expected positions (A, 2) or (A, 3), got {tuple(reference.shape)}"
                )
            dim, count = reference.shape[1], len(reference)
        if dim not in (2, 3) or count < 1:
            raise InputError(f"dim, count: expected 2 or 3, and at least 1, got {dim}, {count}")
        self.dim = dim
        self.count = count
        self.pixel_size = float(pixel_size)
        self.hidden = tuple(hidden)
        self.side = side
        self.widest: float | None = None  # pixels, where images use windows
        self._reference = reference
        self._width = width
        self._known: Callable[[Tensor], Tensor] | None = None
        self._weight: Tensor | None = None

    @classmethod
    def known(cls, molecule: Any, *, pixel_size: float) -> Atoms:
        """The volume of a molecule whose motion is known: only its brightness is learned.

        `z` is the molecule's own conformation, so give the pair ``rotate=False``.

        Args:
            molecule: With ``centres(z)``, ``width``, ``weight`` and ``dim``, such as
                :class:`pyrocryo.molecules.AdenylateKinase`.
            pixel_size: Å per pixel of the images.
        """
        at_rest = molecule.centres(torch.zeros(molecule.dim))
        new = cls(at_rest, pixel_size=pixel_size)
        new.dim = molecule.spatial
        new._known, new._latent = molecule.centres, molecule.dim
        new._width, new._weight = molecule.width, molecule.weight
        return new

    def build(self, latent: int, box: int) -> Atoms:
        """Makes the parameters for `z` of ``latent`` numbers and images of ``box`` pixels."""
        if self._known is not None and latent != self._latent:
            raise InputError(f"dim: the molecule moves in {self._latent} ways, z has {latent}")
        self.box = box
        self.side = self.side or min(box, MOST_VOXELS_A_SIDE[self.dim])
        learned = self._known is None
        if self._reference is None:
            start, width = _lattice(self.count, self.dim, FILLED * box / 2)
        else:
            start = self._reference / self.pixel_size
            width = torch.tensor((4.0 if self._width is None else 1.0) / self.pixel_size)
        if self._width is not None:
            width = torch.as_tensor(self._width) / self.pixel_size
        height = torch.ones(self.count) if self._weight is None else self._weight
        self.register_buffer("start", start)
        self.register_buffer("first_width", width.expand(self.count).clone())
        widest = float(self.first_width.max()) * (math.exp(GROWTH) if learned else 1.0)
        self.widest = widest if window(widest, box=box, pixel_size=1.0) else None
        still = splat(start, self.first_width, height, box=box, pixel_size=1.0)
        # images come in units of the noise, and few have a variance far from it
        self.register_buffer("first_height", height / still.std().clamp_min(1e-6))
        self.brightness = nn.Parameter(torch.zeros(()))
        self.background = nn.Parameter(torch.zeros(()))
        if learned:
            free = torch.zeros_like(start)
            self.offset = nn.Parameter(free, requires_grad=self._reference is None)
            self.log_width = nn.Parameter(torch.zeros(self.count))
            self.log_height = nn.Parameter(torch.zeros(self.count))
            self.displacement = perceptron(latent, self.hidden, start.numel(), bias=False)
        return self

    def reset_parameters(self) -> None:
        """Back to the reference, or the lattice (the displacements reset themselves)."""
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        told = f"dim={self.dim}, count={self.count}, pixel_size={self.pixel_size:g}"
        if self.widest is not None:
            told += f", widest={self.widest:.4g}"
        if self._known is None:
            return told
        moved = self._known(torch.linspace(-2, 2, self._latent)).abs().mean(dim=0)
        return f"{told}, known={[round(x, 4) for x in moved.tolist()]}"

    @property
    def numbers_an_image(self) -> int:
        """Numbers held while one image is made, for those who choose how many to make at once."""
        return self.box**2 + 3 * self.count * (2 * self.box + self.dim)

    def centres(self, z: Tensor) -> Tensor:
        """Positions `(..., A, dim)` in pixels from the box centre."""
        if self._known is not None:
            return self._known(z)[..., : self.dim] / self.pixel_size
        moved = self.displacement(z).unflatten(-1, self.start.shape)
        return self.start + SPEED * self.offset + moved

    def density(self, z: Tensor) -> Tensor:
        """Density maps `(..., side, side[, side])`, indexed `[(z,) y, x]`, of `z` `(..., K)`."""
        voxel = self.box / self.side
        width, height = self._shape()
        centres = self.centres(z)
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
        seen = self.centres(z) @ rotation[..., :2, : self.dim].transpose(-1, -2)
        width, height = self._shape()
        seen = seen + shift.unsqueeze(-2)
        told = {"box": self.box, "pixel_size": 1.0, "widest": self.widest}
        return self.background + splat(seen, width, height, **told)

    def _shape(self) -> tuple[Tensor, Tensor]:
        """Widths (pixels) and heights `(A,)`."""
        height = self.first_height * (SPEED * self.brightness).exp()
        if self._known is not None:
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


def _lattice(count: int, dim: int, radius: float) -> tuple[Tensor, Tensor]:
    """About evenly spread positions `(count, dim)` in a ball, and a width that fills the gaps.

    The R-sequence of Roberts (2018), a low-discrepancy set, mapped into the ball.
    """
    golden = {2: 1.32471795724474602596, 3: 1.22074408460575947536}[dim]
    n = torch.arange(1, 8 * count + 1, dtype=torch.float64)
    cube = torch.stack([(0.5 + n / golden**k) % 1 for k in range(1, dim + 1)], dim=-1)
    ball = 2 * cube - 1
    ball = ball[ball.norm(dim=-1) <= 1][:count].to(torch.get_default_dtype()) * radius
    spacing = radius * (math.pi if dim == 2 else 4.19) ** (1 / dim) / count ** (1 / dim)
    return ball, torch.tensor(0.6 * spacing)
