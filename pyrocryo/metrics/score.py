"""A metric's value, never without its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["Score", "active", "paired", "permuted_columns", "with_floor"]

FLOORS = 5  # permutations behind the floor of a metric over thousands of particles


@dataclass(frozen=True)
class Score:
    """A metric beside what it gives when nothing was learned.

    Attributes:
        value: The metric.
        floor: Its mean over latents whose columns are each permuted over the particles.
        rotation_floor: Its mean over random rotations of the true factors themselves: what
            latents reach that hold everything and separate nothing. None where a rotation
            changes nothing.
    """

    value: float
    floor: float
    rotation_floor: float | None = None


def paired(factors: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 `(N, K)` arrays over the same particles.

    Raises:
        InputError: If shapes differ, fewer than 4 particles are given, or a factor is constant.
    """
    factors, z = np.asarray(factors, dtype=np.float64), np.asarray(z, dtype=np.float64)
    if factors.ndim != 2 or z.ndim != 2 or len(factors) != len(z) or not z.shape[1]:
        raise InputError(
            f"factors and z: expected (N, factors) and (N, latents), got {factors.shape} and "
            f"{z.shape}"
        )
    if len(z) < 4:
        raise InputError(f"factors and z: expected at least 4 particles, got {len(z)}")
    for name, array in (("factors", factors), ("z", z)):
        if not np.isfinite(array).all():
            raise InputError(f"{name}: expected finite numbers only")
    if (factors.std(axis=0) == 0).any():
        raise InputError(f"factors: factor {int(np.argmin(factors.std(axis=0)))} never varies")
    return factors, z


def permuted_columns(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`z` with each column permuted over the particles, so that nothing is left but marginals."""
    return rng.permuted(z, axis=0)


def with_floor(
    value: Callable[[np.ndarray], float], z: np.ndarray, seed: int, permutations: int = FLOORS
) -> Score:
    """``value`` of latents `(N, L)` beside its mean over permuted ones."""
    rng = np.random.default_rng(seed)
    permuted = [value(permuted_columns(z, rng)) for _ in range(permutations)]
    return Score(value(z), float(np.mean(permuted)))


def active(z: np.ndarray, threshold: float) -> np.ndarray:
    """Which latents `(L,)` have at least this share of the largest latent's sd.

    Raises:
        InputError: If no latent varies at all.
    """
    sd = np.where(np.ptp(z, axis=0) > 0, z.std(axis=0), 0.0)  # of equal numbers it is not quite 0
    if not sd.max() > 0:
        raise InputError("z: no latent varies")
    return (sd > 0) & (sd >= threshold * sd.max())
