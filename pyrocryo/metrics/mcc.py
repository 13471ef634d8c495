"""Mean correlation coefficient, and the rotation left between latents and factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import ortho_group

from pyrocryo.errors import InputError
from pyrocryo.metrics.factors import Factors, correlation, pair_up
from pyrocryo.metrics.score import Score, paired, permuted_columns

__all__ = ["correlation", "matched", "mcc", "mcc_value", "rotation_angle", "whitened"]

PERMUTATIONS = 20  # behind a floor
ROTATIONS = 1000


def mcc(
    factors: np.ndarray | Sequence[np.ndarray] | Factors,
    z: np.ndarray,
    *,
    kind: str = "pearson",
    kinds: Sequence[str] | None = None,
    seed: int = 0,
) -> Score:
    r"""Mean |correlation| of factors and latents under the best one-to-one assignment.

    .. math:: MCC = \max_\pi \frac1K \sum_k |corr(f_k, z_{\pi(k)})|

    (Khemakhem et al. 2020.) Rectangular: a factor without a latent counts as 0, surplus latents
    do not count. After a rotation by θ of two equally distributed factors MCC is
    max(|cos θ|, |sin θ|), so .71 at K = 2 means that nothing was separated. Angles and rotations
    correlate with a latent by their multiple R
    (:meth:`~pyrocryo.metrics.factors.Factors.association`); there is no rotation floor then, and 1
    does not say that an angle is recovered, as cos φ alone has it: read
    :func:`~pyrocryo.metrics.r2` or :func:`~pyrocryo.metrics.pose_correlation` beside it.

    Args:
        factors: `(N, K)` true factors, or blocks of any kind.
        z: `(N, L)` latents.
        kind: "pearson", or "spearman" for a score that monotone maps leave alone.
        kinds: "linear", "circular" or "so3", one a factor.
        seed: Draws the floors.
    """
    if kind not in ("pearson", "spearman"):
        raise InputError(f"kind: expected 'pearson' or 'spearman', got {kind!r}")
    factors, z = pair_up(factors, z, kinds)
    rng = np.random.default_rng(seed)
    permuted = [mcc_value(factors, permuted_columns(z, rng), kind) for _ in range(PERMUTATIONS)]
    value, floor = mcc_value(factors, z, kind), float(np.mean(permuted))
    if set(factors.kinds) != {"linear"}:
        return Score(value, floor)
    # whitened factors turned by Q correlate with the factors as |Q|, ranks of Gaussian ones as
    # (6 / pi) asin(|Q| / 2)
    turned = np.abs(_rotations(factors.count, rng))
    if kind == "spearman":
        turned = 6 / np.pi * np.arcsin(turned / 2)
    rotated = [q[linear_sum_assignment(-q)].mean() for q in turned]
    return Score(value, floor, float(np.mean(rotated)))


def mcc_value(factors: Factors, z: np.ndarray, kind: str = "pearson") -> float:
    """The MCC alone."""
    return _assigned(factors.association(z, kind))[0]


def matched(
    factors: np.ndarray, z: np.ndarray, kind: str = "pearson"
) -> tuple[float, np.ndarray, np.ndarray]:
    """MCC, and the matched factor and latent of each pair."""
    return _assigned(np.abs(correlation(factors, z, kind)))


def _assigned(size: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean over factors of `(K, L)` under the best assignment, and the pairs of it."""
    rows, columns = linear_sum_assignment(-size)
    return float(size[rows, columns].sum() / len(size)), rows, columns


def rotation_angle(factors: np.ndarray, z: np.ndarray) -> Score:
    r"""Mean angle (degrees) by which latents' axes are turned from the factors' axes.

    Both are whitened; the polar factor `Q` of their cross-covariance is the rotation between them,
    and the angle is the mean of :math:`\arccos |Q_{k,\pi(k)}|` under the best assignment. Two
    factors give an angle in [0, 45] whose mean over random rotations is 22.5.

    Raises:
        InputError: If the numbers of factors and latents differ, or a latent never varies.
    """
    factors, z = paired(factors, z)
    if factors.shape != z.shape:
        raise InputError(
            f"rotation_angle: expected as many latents as factors, got {z.shape[1]} for "
            f"{factors.shape[1]}"
        )
    rng = np.random.default_rng(0)
    white = whitened(factors)
    u, _, vt = np.linalg.svd(white.T @ whitened(z))
    turned = [_angle(q) for q in _rotations(factors.shape[1], rng)]
    floor = float(np.mean(turned))
    return Score(_angle(u @ vt), floor, floor)


def whitened(x: np.ndarray) -> np.ndarray:
    r"""Zero mean and identity covariance, by the symmetric :math:`\Sigma^{-1/2}`."""
    x = np.asarray(x, dtype=np.float64)
    x = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    if values[0] <= 1e-12 * max(values[-1], 1e-300):
        raise InputError("whitening: a latent never varies, or two carry the same numbers")
    return x @ (vectors / np.sqrt(values)) @ vectors.T


def _angle(q: np.ndarray) -> float:
    size = np.abs(q)
    rows, columns = linear_sum_assignment(-size)
    return float(np.rad2deg(np.arccos(np.clip(size[rows, columns], 0, 1))).mean())


def _rotations(dim: int, rng: np.random.Generator) -> np.ndarray:
    if dim == 1:
        return np.ones((1, 1, 1))
    return ortho_group.rvs(dim, size=ROTATIONS, random_state=rng)
