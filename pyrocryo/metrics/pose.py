"""Poses against true poses, up to the frames that nobody can know, and their trace in z."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from pyrocryo.errors import InputError
from pyrocryo.metrics.mcc import correlation
from pyrocryo.metrics.r2 import cubic, halves, held_out
from pyrocryo.metrics.score import Score, paired, permuted_columns

__all__ = [
    "circular_linear",
    "in_plane_angle",
    "mcc_with_pose",
    "mean_angle",
    "pose_correlation",
    "pose_errors",
    "pose_leak",
]

HARMONICS = 4
IN_PLANE = 1e-4
FLOORS = 20  # permutations behind a floor


def in_plane_angle(rotation: np.ndarray) -> np.ndarray | None:
    """Angles (rad) `(...,)` of rotations `(..., 3, 3)` about the beam; None if any is not."""
    rotation = np.asarray(rotation)
    if (rotation[..., 2, 2] < 1 - IN_PLANE).any():
        return None
    return np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])


def mean_angle(poses: np.ndarray) -> np.ndarray:
    """Mean angles (rad) `(chain, ...)` of draws of unit vectors `(chain, draw, ..., 2)`."""
    mean = np.asarray(poses).mean(axis=1)
    return np.arctan2(mean[..., 1], mean[..., 0])


def pose_errors(
    true: np.ndarray,
    inferred: np.ndarray,
    factors: np.ndarray | None = None,
    *,
    frames: int = 1,
    seed: int = 0,
) -> np.ndarray:
    r"""Errors of in-plane angles on one half of the particles, the gauge fitted on the other.

    The global gauge is the offset (and the sign, for programs that turn the other way) that
    maximises :math:`|E e^{i (\hat\phi \mp \phi)}|`. With a uniform pose prior the likelihood
    leaves more open: :math:`\hat\phi = \phi + \alpha(z)` for any function α. Given ``factors``,
    α is fitted too: cos and sin of what the gauge leaves are regressed on cubic polynomials.

    Args:
        true: `(N,)` rad.
        inferred: `(N,)` rad.
        factors: `(N, K)` true conformations, or None for the global gauge alone.
        frames: Consecutive rows that belong to one molecule, and go into the same half.
        seed: Draws the halves.

    Returns:
        Errors in degrees, in [0, 180], of the particles in the scored half.
    """
    true, inferred = np.asarray(true, dtype=np.float64), np.asarray(inferred, dtype=np.float64)
    if true.shape != inferred.shape or true.ndim != 1 or len(true) < 4:
        raise InputError(
            f"angles: expected two arrays (N,), N >= 4, got {true.shape} and {inferred.shape}"
        )
    fit, score = halves(len(true), frames, seed)
    means = {sign: np.exp(1j * (inferred - sign * true))[fit].mean() for sign in (1, -1)}
    sign = max(means, key=lambda s: abs(means[s]))
    left = np.exp(1j * (inferred - sign * true)) * np.exp(-1j * np.angle(means[sign]))
    if factors is not None:
        features = cubic(np.asarray(factors, dtype=np.float64))
        solution = np.linalg.lstsq(features[fit], left[fit], rcond=None)[0]
        left = left * np.exp(-1j * np.angle(features @ solution))
    return np.abs(np.rad2deg(np.angle(left[score])))


def pose_correlation(true: np.ndarray, inferred: np.ndarray) -> float:
    r"""Agreement of in-plane angles (rad) `(N,)` but for an offset and a sign, from 0 to 1.

    :math:`\max_\pm |E e^{i (\hat\phi \mp \phi)}|`, where Pearson's would depend on the offset.
    Angles that keep to a part of the circle agree well without being the same: independent
    ones, uniform within ± a, by (sin a / a)².
    """
    true, inferred = np.asarray(true), np.asarray(inferred)
    return float(max(abs(np.exp(1j * (inferred - sign * true)).mean()) for sign in (1, -1)))


def circular_linear(angle: np.ndarray, z: np.ndarray) -> np.ndarray:
    r"""Circular-linear correlation `(L,)` of an angle (rad) `(N,)` with each latent `(N, L)`.

    .. math:: R^2 = \frac{r_c^2 + r_s^2 - 2 r_c r_s r_{cs}}{1 - r_{cs}^2}

    with Pearson's correlations of the latent with cos φ and sin φ, and of these two with one
    another (Mardia 1976): the R of a regression of the latent on both.
    """
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    (c, s), between = correlation(waves, z), correlation(waves[:, :1], waves[:, 1:]).item()
    square = (c**2 + s**2 - 2 * c * s * between) / max(1 - between**2, 1e-12)
    return np.sqrt(np.clip(square, 0, 1))


def mcc_with_pose(
    true: np.ndarray, inferred: np.ndarray, factors: np.ndarray, z: np.ndarray, *, seed: int = 0
) -> Score:
    r"""Mean correlation coefficient over pose and conformation together (the paper's Fig. 3C).

    As :func:`~pyrocryo.metrics.mcc`, with the pose as one more factor and one more latent: two
    angles are compared by :func:`pose_correlation`, an angle and a number by
    :func:`circular_linear`, two numbers by Pearson's correlation.

    Args:
        true: `(N,)` rad.
        inferred: `(N,)` rad.
        factors: `(N, K)` true conformations.
        z: `(N, L)` latents.
        seed: Draws the floor.
    """
    factors, z = paired(factors, z)
    rng = np.random.default_rng(seed)

    def value(inferred: np.ndarray, z: np.ndarray) -> float:
        size = np.empty((1 + factors.shape[1], 1 + z.shape[1]))
        size[0, 0] = pose_correlation(true, inferred)
        size[0, 1:], size[1:, 0] = circular_linear(true, z), circular_linear(inferred, factors)
        size[1:, 1:] = np.abs(correlation(factors, z))
        rows, columns = linear_sum_assignment(-size)
        return float(size[rows, columns].sum() / len(size))

    floor = [value(rng.permutation(inferred), permuted_columns(z, rng)) for _ in range(FLOORS)]
    return Score(value(np.asarray(inferred), z), float(np.mean(floor)))


def pose_leak(true: np.ndarray, z: np.ndarray, *, frames: int = 1, seed: int = 0) -> Score:
    r"""Share of the variance of `z` that the pose explains.

    R² of each latent regressed on :math:`\cos h\phi, \sin h\phi`, `h` = 1..4, of the true in-plane
    angle, fitted on one half and scored on the other; the mean over latents that vary. 0 is right:
    a molecule does not know how it lies on the grid.

    Args:
        true: `(N,)` rad.
        z: `(N, L)` latents.
        frames: Consecutive rows that belong to one molecule.
        seed: Draws the halves and the floor.
    """
    true = np.asarray(true, dtype=np.float64)
    order = np.arange(1, HARMONICS + 1) * true[:, None]
    waves, z = paired(np.concatenate([np.cos(order), np.sin(order)], axis=1), z)
    z = z[:, z.std(axis=0) > 0]
    if not z.shape[1]:
        raise InputError("pose_leak: no latent varies")
    parts = halves(len(z), frames, seed)
    floor = permuted_columns(z, np.random.default_rng(seed))
    return Score(held_out(z, waves, parts, "linear"), held_out(floor, waves, parts, "linear"))
