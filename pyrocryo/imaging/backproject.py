"""Maps from particles whose poses are known: their central slices put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging.ctf import contrast_transfer
from pyrocryo.imaging.slices import half_plane
from pyrocryo.imaging.splat import pixel_centres
from pyrocryo.metrics import fsc, resolution
from pyrocryo.particles import Particles
from pyrocryo.precision import applied

__all__ = ["Consensus", "backproject"]

FLAT = 1e-4  # 1 - cos of the tilt, below which all particles are seen along one direction
SEEN = 0.143  # correlation of halves in a shell that shows signal (Rosenthal, Henderson 2003)
LEAST = 0.02  # Fourier shell correlation that a shell is granted at least
FINE = 10  # cycles a box up to which slices are sampled as finely as the grid
AT_ONCE = 2**19  # numbers put into the grid at once: with their addresses, they fit into a cache


@dataclass(frozen=True, eq=False)
class Consensus:
    """A map of particles, from :func:`backproject`.

    Attributes:
        map: `(D, D, D)` float32, indexed `[z, y, x]`, the origin at voxel ``D // 2``; its sum over
            voxels along the beam is an image.
        halves: `(2, D, D, D)` maps from every other molecule, not filtered.
        voxel_size: Å.
        fsc: `(D // 2 + 1,)` Fourier shell correlation of the halves.
    """

    map: np.ndarray
    halves: np.ndarray
    voxel_size: float
    fsc: np.ndarray

    @property
    def resolution(self) -> float:
        """Å at which the correlation of the halves falls below .143."""
        return resolution(self.fsc, self.voxel_size, threshold=SEEN)

    def __repr__(self) -> str:
        return (
            f"Consensus(box {len(self.map)}, {self.voxel_size:g} Å/voxel, "
            f"{self.resolution:.3g} Å by its halves)"
        )


def backproject(
    particles: Particles,
    *,
    weights: Any = None,
    snr: float | None = None,
    oversampling: int = 2,
) -> Consensus:
    r"""The map that particles of known poses show: one for all, or for those with ``weights``.

    The transform of each image, its shift undone, is a slice of the map's (as in
    :mod:`pyrocryo.imaging.slices`). With CTFs `C`, weights `w` and trilinear weights `g`,

    .. math:: V(k) = \frac{\sum_i w_i g_i C_i X_i}{\sum_i w_i g_i C_i^2 + \lambda(|k|)}

    on a grid ``oversampling`` times as fine as the box needs (what the interpolation does to the
    map, a :math:`\mathrm{sinc}^2` along each axis, is divided out), inside the sphere of Nyquist.
    By default λ is what the two halves of the molecules tell about noise in each shell,
    :math:`\lambda = \bar D (1 - FSC) / 2 FSC` with :math:`\bar D` the mean of the denominator's
    sum: Wiener's filter (Scheres 2012, the shells' signal from FSC). Few numbers make the
    first shells, whose FSC goes wrong by much: up to the last with an FSC of .143, no shell is
    taken to have less signal than those beyond.

    Molecules that move are averaged, blurred where they do. A map of one end of a latent is that
    of particles weighted by where they lie on it: ``weights=z[:, 0] > np.quantile(z[:, 0], .9)``.

    Args:
        particles: With ``rotation``, ``shift`` if they have any, and ``ctf`` if they are seen
            through one. Poses that were estimated go in by ``particles.having(rotation=...)``.
        weights: `(N,)` numbers from 0 on, one a particle; those of 0 are not read.
        snr: Of one image's Fourier coefficients, by which :math:`\lambda = 1 / snr` for all
            shells; without, the halves tell.
        oversampling: Fineness of the grid; at 2 a box of 128 takes half a GB.

    Returns:
        A :class:`Consensus`.

    Raises:
        InputError: If there are no rotations or all views are along one direction, weights are
            negative or of another shape, or fewer than two particles have any.
    """
    if "rotation" not in particles.fields:
        raise InputError("rotation: a map is made from particles whose rotations are known")
    if bool((1 - np.abs(particles.rotation[..., 2, 2]) < FLAT).all()):
        raise InputError("rotation: all particles are seen along one direction, as flat ones are")
    if snr is not None and not snr > 0:
        raise InputError(f"snr: expected a positive ratio, got {snr}")
    if oversampling < 1:
        raise InputError(f"oversampling: expected at least 1, got {oversampling}")
    weight = _weights(weights, len(particles))
    rows = np.flatnonzero(weight)
    if len(rows) < 2:
        raise InputError(f"weights: {len(rows)} particles have any; two halves need at least 2")
    box, wide = particles.box, oversampling * particles.box
    planes = _planes(box, oversampling)
    # halves; real, imaginary, C squared
    grid = torch.zeros(2, 3, wide * wide * (wide // 2 + 1), dtype=torch.float32)
    points = sum(len(plane.k) for plane in planes) * (particles.frames or 1)
    size = max(1, AT_ONCE // (8 * points))
    for half in range(2):
        mine = rows[half::2]
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            batch, share = particles.batch(part), torch.as_tensor(weight[part]).float()
            for plane in planes:
                values, points = _slices(batch, share, plane, box)
                _insert(grid[half], values, points * oversampling, wide)
    grid = grid.unflatten(-1, (wide, wide, wide // 2 + 1))
    _symmetrise(grid)
    halves = np.stack([_map(part, 0.0, box, wide) for part in grid])
    curve = fsc(*halves)
    whole = grid.sum(0)
    if snr is None:
        level = _shells(whole[2], curve, wide, oversampling)
    else:
        level = 1.0 / snr
    return Consensus(_map(whole, level, box, wide), halves, particles.pixel_size, curve)


def _weights(weights: Any, count: int) -> np.ndarray:
    found = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if found.shape != (count,) or not (np.isfinite(found) & (found >= 0)).all():
        raise InputError(
            f"weights: expected {count} numbers from 0 on, one a particle, got shape {found.shape}"
        )
    return found


class _Plane(NamedTuple):
    """Where slices are sampled: on the plane of a ``rfft2``, each pair `k`, `-k` once."""

    side: int  # of the lattice that the plane is of
    step: float  # cycles a box from one of its points to the next
    where: Tensor  # (M,) of its points
    k: Tensor  # (M, 2) cycles a box


def _planes(box: int, oversampling: int) -> list[_Plane]:
    """Points up to the frequency of Nyquist, close together where `k` is small.

    Where whole cycles a box lie on few circles, which would leave some of the grid empty.
    """
    found, edge = [], min(FINE, box / 2) if oversampling > 1 else 0.0
    sides = (2 * (FINE * oversampling + 1), oversampling, 0.0, edge), (box, 1, edge, box / 2)
    for side, fineness, low, high in sides:
        k = half_plane(side, dtype=torch.float32) * side / fineness
        inside = (k.norm(dim=-1) >= low - 1e-3) & (k.norm(dim=-1) < high - 1e-3)
        inside[:, 0] &= k[:, 0, 1] >= 0
        if inside.any():
            where = inside.flatten().nonzero().squeeze(-1)
            found.append(_Plane(side, 1 / fineness, where, k[inside]))
    return found


def _slices(batch: Any, share: Tensor, plane: _Plane, box: int) -> tuple[Tensor, Tensor]:
    """Values `(M, 3)`, w C X and w C squared, and points `(M, 3)` (x, y, z; cycles a box)."""
    images = batch.images.reshape(-1, box, box)
    several = len(images) // len(share)
    share = share.repeat_interleave(several)[:, None] * plane.step**2
    spectrum = _transform(images, plane).flatten(1)[:, plane.where]
    shift = torch.full((len(images), 2), float(box // 2), dtype=torch.float32)
    if hasattr(batch, "shift"):
        shift = shift + batch.shift.reshape(-1, 2).float() / batch.pixel_size.float()
    turn = 2 * torch.pi * torch.remainder(shift @ (plane.k / box).T, 1.0)
    spectrum = share * spectrum * torch.polar(torch.ones_like(turn), turn)
    square = share.expand_as(turn)
    if hasattr(batch, "ctf"):
        pixel = batch.pixel_size * (box / (plane.side * plane.step))
        ctf = batch.ctf.reshape(len(images), -1)
        transfer = contrast_transfer(ctf, box=plane.side, pixel_size=pixel)
        transfer = transfer.flatten(1)[:, plane.where].float()
        spectrum, square = spectrum * transfer, square * transfer.square()
    rotation = batch.rotation.reshape(-1, 1, 3, 3)
    points = applied(rotation[..., :2, :].transpose(-1, -2), plane.k)
    back = points[..., 0] < 0  # F(-k) is the conjugate of F(k): half of it is kept
    points = torch.where(back[..., None], -points, points)
    values = spectrum.real, torch.where(back, -spectrum.imag, spectrum.imag), square
    return torch.stack([v.flatten() for v in values], dim=-1).float(), points.reshape(-1, 3)


def _transform(images: Tensor, plane: _Plane) -> Tensor:
    """Fourier transforms of images at the points of the plane's lattice."""
    box = images.shape[-1]
    if plane.side == box and plane.step == 1:
        return torch.fft.rfft2(images)
    r = torch.arange(box, dtype=torch.float32)
    waves = []
    for k in torch.fft.fftfreq(plane.side), torch.fft.rfftfreq(plane.side):
        turn = torch.remainder((k * plane.side).round()[:, None] * r, box / plane.step)
        turn = turn * (-2 * torch.pi * plane.step / box)
        waves.append(torch.polar(torch.ones_like(turn), turn).to(torch.complex64))
    along_y, along_x = waves
    return along_y @ torch.complex(images @ along_x.real.T, images @ along_x.imag.T)


def _insert(grid: Tensor, values: Tensor, points: Tensor, wide: int) -> None:
    """Adds values `(M, 3)` to the eight neighbours of each point in ``grid`` `(3, ...)`."""
    first = points.floor()
    part = points - first
    first = first.long()
    step, places, shares = wide // 2 + 1, [], []
    for corner in range(8):
        share, place = 1.0, 0
        for axis, stride in enumerate((1, step, step * wide)):
            up = corner >> axis & 1
            share = share * (part[:, axis] if up else 1 - part[:, axis])
            at = first[:, axis] + up
            place = place + (at if axis == 0 else torch.remainder(at, wide)) * stride
        places.append(place)
        shares.append(share)
    place, share = torch.cat(places), torch.cat(shares)
    for total, value in zip(grid, values.T, strict=True):
        total.index_add_(0, place, value.repeat(8) * share)


def _symmetrise(grid: Tensor) -> None:
    """On the plane :math:`k_x = 0`, adds what was left at `-k`."""
    face = grid[..., 0]
    back = face.flip(-1, -2).roll((1, 1), (-1, -2)).clone()
    back[..., 1, :, :] *= -1
    grid[..., 0] = face + back


def _shells(total: Tensor, curve: np.ndarray, wide: int, oversampling: int) -> Tensor:
    """Wiener's λ at each place of the grid, from the halves' correlation `(D // 2 + 1,)`."""
    shell = (_radius(wide) / oversampling).round().long().clamp_max(len(curve) - 1)
    filled = total > 0
    count = torch.bincount(shell[filled], minlength=len(curve)).clamp_min(1)
    mean = torch.bincount(shell[filled], total[filled].double(), minlength=len(curve)) / count
    agreed = torch.as_tensor(curve).clamp(LEAST, 1.0)
    level = mean * (1 - agreed) / (2 * agreed)
    seen = 1 + int((agreed >= SEEN).nonzero().max()) if (agreed >= SEEN).any() else 1
    level[:seen] = level[:seen].flip(0).cummin(0).values.flip(0)
    return level.float()[shell]


def _radius(wide: int) -> Tensor:
    k, half = torch.fft.fftfreq(wide, 1 / wide), torch.fft.rfftfreq(wide, 1 / wide)
    return (k[:, None, None].square() + k[:, None].square() + half.square()).sqrt()


def _map(grid: Tensor, level: Tensor | float, box: int, wide: int) -> np.ndarray:
    """The map `(D, D, D)` of sums `(3, W, W, W // 2 + 1)`."""
    real, imaginary, total = grid
    below = (total + level).clamp_min(torch.finfo(total.dtype).tiny)
    keep = (total > 0) & (_radius(wide) < wide / 2)
    scale = torch.where(keep, 1 / below, 0.0)
    whole = torch.fft.irfftn(torch.complex(real * scale, imaginary * scale), s=(wide,) * 3)
    r = pixel_centres(box)
    at = torch.remainder(r, wide).long()
    small = whole[at][:, at][:, :, at]
    fall = torch.sinc(r / wide).square()
    return (small / (fall[:, None, None] * fall[:, None] * fall)).float().numpy()
