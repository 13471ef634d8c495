r"""How far maps along the latents can be trusted: two trainings, each on a half of the particles.

Two models that never saw the same particle, started from different weights, are brought to the
same latents, and their maps of each conformation compared in Fourier shells. What they share is
not noise of either half. It can still be a mistake of both, as they share poses and model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrocryo.context import wanted
from pyrocryo.draws import moments
from pyrocryo.errors import InputError
from pyrocryo.identify.consistency import FOUND, Consistency, consistency
from pyrocryo.imaging.backproject import Consensus, backproject
from pyrocryo.metrics import fsc, resolution
from pyrocryo.metrics.mcc import matched
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit, fit

__all__ = [
    "HalfMaps",
    "Transfer",
    "binned",
    "check_halves",
    "half_maps",
    "random_halves",
    "transfer",
]

LEVEL = 0.143  # of the correlation of half maps (Rosenthal & Henderson 2003)
FLAT = 1e-6  # of the largest deviation of a latent, below which one does not vary
FEWEST = 50  # held-out particles that latents are aligned by; below that, those trained on
MOST = 5000  # particles, at most, that latents are compared on


@dataclass(frozen=True)
class Transfer:
    """From the latents of one model to those of another: `z` to ``(z - centre) @ matrix + other``.

    Attributes:
        kind: "order and sign", where the axes agree; else "affine"; "none" where the latents share
            less than half of their variance, and maps are compared by an affine map all the same.
        matrix: `(K, K)`.
        centre: `(K,)` mean in the first.
        other: `(K,)` mean in the second.
        agreement: What it was judged by.
    """

    kind: str
    matrix: np.ndarray
    centre: np.ndarray
    other: np.ndarray
    agreement: Consistency

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """Latents `(..., K)` of the first model, in the coordinates of the second."""
        return (z - self.centre) @ self.matrix + self.other


@dataclass(frozen=True, eq=False)
class HalfMaps:
    """Maps along each latent from two halves of the particles, from :func:`half_maps`.

    Attributes:
        maps: `(K, along, 2, D, D[, D])`, one from each half, neither filtered nor masked.
        points: `(K, along, K)` latents of the first half's model.
        curves: `(K, along, D // 2 + 1)` Fourier shell (in two dimensions: ring) correlations.
        voxel_size: Å.
        transfer: How latents of the second model were aligned.
        sizes: Particles in each half.
        fits: Of each half.
    """

    maps: np.ndarray
    points: np.ndarray
    curves: np.ndarray
    voxel_size: float
    transfer: Transfer
    sizes: tuple[int, int]
    fits: tuple[Fit, Fit]

    @property
    def resolution(self) -> np.ndarray:
        """Å at which each correlation first falls below .143, `(K, along)`; Nyquist at best."""
        found = [[resolution(c, self.voxel_size, LEVEL) for c in line] for line in self.curves]
        return np.array(found)


def random_halves(particles: Particles, *, seed: int = 0) -> np.ndarray:
    """Which half each particle is in, `(N,)` of 0 and 1: as many in each, drawn from ``seed``.

    All windows of a molecule (:meth:`Particles.windows`) are in the same half.
    """
    molecule = np.unique(particles.molecule_rows, return_inverse=True)[1]
    count = int(molecule.max()) + 1
    order = np.random.default_rng(seed).permutation(count)
    return (order % 2)[molecule]


def transfer(first: np.ndarray, second: np.ndarray, *, frames: int = 1) -> Transfer:
    r"""Aligns the latents that two models give to the same particles.

    Where they agree on every axis (:func:`pyrocryo.identify.consistency`): by order, sign, mean
    and standard deviation. Else by the affine map that takes mean and covariance of the first to
    those of the second, turned as fits best,

    .. math:: z' - \bar z' = (z - \bar z) \, \Sigma^{-1/2} Q \, \Sigma'^{1/2}, \qquad
              Q = U V^\top, \quad U S V^\top = \Sigma^{-1/2} C \, \Sigma'^{-1/2}

    with `C` the cross-covariance (Schönemann 1966). Unlike a regression it does not shrink what
    either model is unsure of.

    Args:
        first: Posterior means `(N, K)`.
        second: Of the same particles, `(N, K)`.
        frames: Consecutive rows that belong to one molecule.
    """
    agreement = consistency([first, second], frames=frames)
    a, b = (np.asarray(z, dtype=np.float64) for z in (first, second))
    centre, other = a.mean(axis=0), b.mean(axis=0)
    a, b = a - centre, b - other
    shared = max(agreement.affine, agreement.permutation**2)
    if agreement.agree and shared >= FOUND:
        _, rows, columns = matched(a, b)
        matrix = np.zeros((a.shape[1], b.shape[1]))
        sd = [np.maximum(z.std(axis=0), 1e-12) for z in (a, b)]
        for i, k in zip(rows, columns, strict=True):
            matrix[i, k] = np.sign(a[:, i] @ b[:, k] or 1.0) * sd[1][k] / sd[0][i]
        return Transfer("order and sign", matrix, centre, other, agreement)
    (_, inverse), (root, other_inverse) = _roots(a), _roots(b)
    u, _, vt = np.linalg.svd(inverse @ (a.T @ b / len(a)) @ other_inverse)
    matrix = inverse @ u @ vt @ root
    kind = "affine" if shared >= FOUND else "none"
    return Transfer(kind, matrix, centre, other, agreement)


def check_halves(pair: Pair) -> None:
    """Raises InputError if maps of two trainings of this pair cannot be compared."""
    if pair.pose.latent and getattr(pair.pose, "sd", None) is None:
        raise InputError(
            "halves: poses are unknown, so the maps of each half would have a frame of their "
            "own; write the poses of one fit (pyrocryo.posed) and take them as known"
        )
    if "index" in wanted(pair.encoder):
        raise InputError(
            "halves: this guide keeps a table of the particles it was trained on, and has no "
            "latents for those of the other half"
        )


def half_maps(
    pair: Pair,
    particles: Particles,
    *,
    halves: np.ndarray | None = None,
    seed: int = 0,
    along: int = 5,
    folder: str | Path | None = None,
    **settings: Any,
) -> HalfMaps:
    """Trains a pair on each half of ``particles.train``, and compares maps along the latents.

    Each half has its own initial weights (seeds ``seed`` and ``seed + 1``), order of particles and
    noise. Latents are aligned on the held-out particles, which neither saw, or on all where none
    are held out. Maps lie on a straight line along each latent of the first model, through its
    median, from the 2 % to the 98 % quantile.

    Args:
        pair: Model and guide, with poses that are known or looked for near known ones: unknown
            ones leave each half a frame of its own.
        particles: The data.
        halves: Which half each of ``particles`` is in, `(N,)` of two values, such as RELION's
            ``rlnRandomSubset`` (:func:`pyrocryo.io.read_halves`); random by default.
        seed: Of all that is drawn.
        along: Maps along each latent.
        folder: Where the checkpoints of the halves are kept, ``half1.pt`` and ``half2.pt``; those
            that are there already are gone on from.
        **settings: As for :func:`pyrocryo.fit`: ``steps``, ``batch_size``, ``device``, ...

    Raises:
        InputError: If poses are unknown, or the halves are not two.
    """
    check_halves(pair)
    if along < 2:
        raise InputError(f"along: expected at least 2 maps along a latent, got {along}")
    train = particles.train
    half = random_halves(train, seed=seed) if halves is None else _checked(halves, particles)
    parts = [train.take(np.flatnonzero(half == n)) for n in (0, 1)]
    if min(map(len, parts)) < 2:
        raise InputError(f"halves: {len(parts[0])} and {len(parts[1])} particles to train on")
    fits = []
    for n, part in enumerate(parts):
        kept = None if folder is None else Path(folder) / f"half{n + 1}.pt"
        again = {"checkpoint": kept, "resume": kept is not None and kept.exists()}
        fits.append(fit(pair, part, seeds=[seed + n], **again, **settings))
    common = particles.test if particles.has_test else train
    common = common if len(common) >= FEWEST else train
    common = common.spread(MOST)
    means = [moments(one, common)[0].reshape(-1, pair.dim) for one in fits]
    aligned = transfer(*means, frames=common.frames or 1)
    points = _lines(means[0], along)
    where = points, aligned(points)
    maps = np.stack([_maps(f.pairs[0], z) for f, z in zip(fits, where, strict=True)], axis=2)
    curves = np.array([[fsc(*two) for two in line] for line in maps])
    voxel = particles.box * particles.pixel_size / maps.shape[-1]
    sizes = len(parts[0]), len(parts[1])
    return HalfMaps(maps, points, curves, voxel, aligned, sizes, (fits[0], fits[1]))


def binned(
    particles: Particles, z: np.ndarray, *, bins: int = 4, **options: Any
) -> list[Consensus]:
    """Weighted back-projections of the particles in bins of a latent, each with its half maps.

    Without any decoder: maps of the images themselves, to set beside those of a model. A bin has
    as many particles as another; the halves of each are every other of them.

    Args:
        particles: With known poses in space.
        z: One latent of each particle, `(N,)`.
        bins: How many.
        **options: As for :func:`pyrocryo.imaging.backproject`.
    """
    z = np.asarray(z, dtype=np.float64)
    if z.shape != (len(particles),) or not np.isfinite(z).all():
        raise InputError(
            f"z: expected {len(particles)} finite numbers, one a particle, got shape {z.shape}"
        )
    if not 1 <= bins <= len(particles) // 2:
        raise InputError(f"bins: expected 1 to {len(particles) // 2}, got {bins}")
    rank = np.argsort(np.argsort(z, kind="stable"), kind="stable")
    which = rank * bins // len(z)
    return [backproject(particles, weights=which == n, **options) for n in range(bins)]


def _checked(halves: np.ndarray, particles: Particles) -> np.ndarray:
    """Of 0 and 1, one for each particle that is trained on."""
    halves = np.asarray(halves)
    values = np.unique(halves)
    if halves.shape != (len(particles),) or len(values) != 2:
        raise InputError(
            f"halves: expected {len(particles)} of two values, one a particle, got "
            f"{len(values)} values of shape {halves.shape}"
        )
    place = {int(row): n for n, row in enumerate(particles.index)}
    return (halves[[place[int(row)] for row in particles.train.index]] == values[1]).astype(int)


def _roots(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square root and inverse square root of the covariance of centred `x` `(N, K)`."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    least = max(FLAT**2 * values[-1], 1e-24)
    root = np.sqrt(np.maximum(values, least))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _lines(z: np.ndarray, along: int) -> np.ndarray:
    """Points `(K, along, K)` along each latent, through the median."""
    low, middle, high = np.quantile(z, [0.02, 0.5, 0.98], axis=0)
    points = np.broadcast_to(middle, (z.shape[1], along, z.shape[1])).copy()
    for k in range(z.shape[1]):
        points[k, :, k] = np.linspace(low[k], high[k], along)
    return points


def _maps(pair: Pair, points: np.ndarray) -> np.ndarray:
    """Maps `(K, along, D, D[, D])`, a line of them at a time."""
    lines: Sequence[np.ndarray] = [
        pair.density(torch.as_tensor(line)).cpu().numpy() for line in points
    ]
    return np.stack(lines)
