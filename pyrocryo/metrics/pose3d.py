"""Poses in space against true ones, up to the frame, the hand and the origin nobody knows."""

from __future__ import annotations

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.r2 import cubic, halves
from pyrocryo.rotations import angle_between, matrix_from_vector, vector_from_matrix

__all__ = ["RANDOM_MEDIAN", "mean_rotation", "rotation_errors", "shift_errors"]

RANDOM_MEDIAN = 132.35  # degrees between two random rotations (mean 126.48)
ROUNDS = 20  # of re-weighting, which takes the mean to the median
LEAST = 1e-3  # rad: errors below weigh no more
MIRROR = np.diag([1.0, 1.0, -1.0])


def rotation_errors(
    true: np.ndarray,
    inferred: np.ndarray,
    factors: np.ndarray | None = None,
    *,
    frames: int = 1,
    seed: int = 0,
) -> np.ndarray:
    r"""Errors of rotations on one half of the particles, the gauge fitted on the other.

    The gauge is one rotation `G` of the molecule, and its handedness: a mirrored molecule gives
    the same images from :math:`F A F`, F = diag(1, 1, -1). `G` minimises the sum of the angles
    between :math:`\hat A_i` and :math:`A_i G` (the geodesic median, by re-weighted means, so that
    particles that are lost do not draw it to them); the hand is the one with the smaller median
    on the half that is fitted. With a uniform pose prior the likelihood leaves more open,
    :math:`G(z)`: given ``factors``, rotation vectors of what the gauge leaves are regressed on
    cubic polynomials, as often as it gets better.

    Random poses leave a mean of 126.48° and a median of 132.35°.

    Args:
        true: `(N, 3, 3)` rotations.
        inferred: `(N, 3, 3)` rotations.
        factors: `(N, K)` true conformations, or None for the global gauge alone.
        frames: Consecutive rows that belong to one molecule, and go into the same half.
        seed: Draws the halves.

    Returns:
        Errors in degrees, in [0, 180], of the particles in the scored half.
    """
    true, inferred = np.asarray(true, dtype=np.float64), np.asarray(inferred, dtype=np.float64)
    if true.shape != inferred.shape or true.shape[1:] != (3, 3) or len(true) < 4:
        raise InputError(
            f"rotations: expected two arrays (N, 3, 3), N >= 4, got {true.shape} and "
            f"{inferred.shape}"
        )
    fit, score = halves(len(true), frames, seed)
    found = []
    for hand in (true, MIRROR @ true @ MIRROR):
        gauge = _median(np.swapaxes(hand[fit], -1, -2) @ inferred[fit])
        found.append((np.median(angle_between(hand[fit] @ gauge, inferred[fit])), hand @ gauge))
    expected = min(found, key=lambda pair: pair[0])[1]
    if factors is not None:
        features = cubic(np.asarray(factors, dtype=np.float64))
        left = vector_from_matrix(np.swapaxes(expected, -1, -2) @ inferred)
        near = fit[np.linalg.norm(left[fit], axis=-1) < np.pi / 2]  # the lost ones say nothing
        if len(near) > 2 * features.shape[1]:
            solution = np.linalg.lstsq(features[near], left[near], rcond=None)[0]
            expected = expected @ matrix_from_vector(features @ solution)
    return np.rad2deg(angle_between(expected[score], inferred[score]))


def shift_errors(
    true: np.ndarray,
    inferred: np.ndarray,
    rotation: np.ndarray,
    *,
    frames: int = 1,
    seed: int = 0,
) -> np.ndarray:
    r"""Errors of shifts on one half, the molecule's origin fitted on the other.

    An origin moved by `d` moves every image by the first two components of :math:`A d`.

    Args:
        true: `(N, 2)`, in Å.
        inferred: `(N, 2)`, in Å.
        rotation: `(N, 3, 3)` inferred rotations.
        frames: Consecutive rows that belong to one molecule, and go into the same half.
        seed: Draws the halves.

    Returns:
        Lengths in Å, of the particles in the scored half.
    """
    left = np.asarray(inferred, dtype=np.float64) - np.asarray(true, dtype=np.float64)
    beam = np.asarray(rotation, dtype=np.float64)[:, :2]
    if left.shape != (len(beam), 2) or len(left) < 4:
        raise InputError(f"shifts: expected (N, 2), N >= 4, got {left.shape}")
    fit, score = halves(len(left), frames, seed)
    origin = np.linalg.lstsq(beam[fit].reshape(-1, 3), left[fit].reshape(-1), rcond=None)[0]
    return np.linalg.norm(left[score] - beam[score] @ origin, axis=-1)


def mean_rotation(quaternions: np.ndarray) -> np.ndarray:
    r"""The mean `(..., 4)` of draws of unit quaternions `(n, ..., 4)`, whatever their signs.

    The first eigenvector of :math:`\sum q q^\top` (Markley et al. 2007).
    """
    q = np.asarray(quaternions, dtype=np.float64)
    moment = np.einsum("n...i,n...j->...ij", q, q)
    return np.linalg.eigh(moment)[1][..., -1]


def _median(rotations: np.ndarray) -> np.ndarray:
    """The rotation whose angles to these `(N, 3, 3)` have the smallest sum."""
    weight = np.ones(len(rotations))
    for _ in range(ROUNDS):
        u, _, vt = np.linalg.svd(np.einsum("n,nij->ij", weight, rotations))
        centre = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        weight = 1 / np.maximum(angle_between(rotations, centre), LEAST)
    return centre
