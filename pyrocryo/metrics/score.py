"""A metric's value, never without its floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["Score", "paired", "permuted_columns"]


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
    if factors.ndim != 2 or z.ndim != 2 or len(factors) != len(z):
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
