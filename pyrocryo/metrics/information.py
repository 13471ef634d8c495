"""Metrics of the mutual information of each factor with each latent: MIG and Modularity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.factors import Factors, binned, pair_up
from pyrocryo.metrics.score import Score, active, with_floor

__all__ = ["mig", "mig_value", "modularity", "modularity_value", "mutual_information"]


def mig(
    factors: np.ndarray | Sequence[np.ndarray] | Factors,
    z: np.ndarray,
    *,
    kinds: Sequence[str] | None = None,
    width: bool = False,
    seed: int = 0,
) -> Score:
    r"""Mutual information gap: how far the best latent of a factor is ahead of the second.

    .. math:: MIG = \frac1K \sum_k \frac{I(f_k; z_{(1)}) - I(f_k; z_{(2)})}{H(f_k)}

    (Chen et al. 2018, Eq. 6.) Continuous factors and latents are cut into 20 bins of equal counts,
    discrete ones taken as they are (:class:`~pyrocryo.metrics.factors.Factors`); bins of equal
    width on latents are the original. A latent copied twice gives 0. Perfect latents with `b` bins
    give :math:`1 - (b-1)^2 / (2 N \ln b)`: the bias of the second information, so small sets
    score low. After 22.5° .27, after 45° 0 (two uniform or normal factors). Of an angle or
    a rotation it wants one latent: several that hold it together (cos φ and sin φ) are marked
    down, one that holds a part is not.

    Args:
        factors: `(N, K)` numbers, or blocks of any kind.
        z: `(N, L)` latents.
        kinds: "linear", "circular" or "so3", one a factor.
        width: Cut latents into bins of equal width, not of equal counts.
        seed: Draws the floor.
    """
    factors, z = pair_up(factors, z, kinds)
    return with_floor(lambda z: mig_value(factors, z, width=width), z, seed)


def mig_value(factors: Factors, z: np.ndarray, *, width: bool = False) -> float:
    """The MIG alone."""
    information, entropy = mutual_information(factors, z, width=width)
    first, second = top_two(information)
    return float(((first - second) / entropy).mean())


def modularity(
    factors: np.ndarray | Sequence[np.ndarray] | Factors,
    z: np.ndarray,
    *,
    kinds: Sequence[str] | None = None,
    width: bool = False,
    threshold: float = 0.05,
    seed: int = 0,
) -> Score:
    r"""Modularity: whether each latent knows of one factor only.

    .. math:: \frac1L \sum_l 1 - \frac{\sum_k I_{kl}^2 - \max_k I_{kl}^2}{(K-1) \max_k I_{kl}^2}

    (Ridgeway & Mozer 2018.) Every latent counts the same, so those that hardly vary are left out
    first: their information is noise. A latent of pure noise that varies stays in and costs its
    share. Bins as for :func:`mig`. It hardly sees small rotations: .97 at 22.5°.

    Args:
        factors: `(N, K)` numbers, or blocks of any kind; K >= 2.
        z: `(N, L)` latents.
        kinds: "linear", "circular" or "so3", one a factor.
        width: Cut latents into bins of equal width, not of equal counts.
        threshold: Latents with less than this share of the largest sd are left out.
        seed: Draws the floor.
    """
    factors, z = pair_up(factors, z, kinds)
    return with_floor(
        lambda z: modularity_value(factors, z, width=width, threshold=threshold), z, seed
    )


def modularity_value(
    factors: Factors, z: np.ndarray, *, width: bool = False, threshold: float = 0.05
) -> float:
    """The modularity alone."""
    if factors.count < 2:
        raise InputError(f"modularity: expected at least 2 factors, got {factors.count}")
    information = mutual_information(factors, z[:, active(z, threshold)], width=width)[0]
    square, best = (information**2).sum(axis=0), (information**2).max(axis=0)
    nothing = np.full_like(best, factors.count - 1)
    other = np.divide(square - best, best, out=nothing, where=best > 0)
    return float((1 - other / (factors.count - 1)).mean())


def mutual_information(
    factors: Factors, z: np.ndarray, *, width: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Plug-in mutual information (nats) `(K, L)` of binned latents, and entropies `(K,)`."""
    codes = [binned(column, width=width) for column in z.T]
    sizes = [code.max() + 1 for code in codes]
    information = np.empty((factors.count, z.shape[1]))
    entropy = np.empty(factors.count)
    for k, classes in enumerate(factors.classes.T):
        of_factor = _entropy(np.bincount(classes))
        entropy[k] = of_factor
        for j, (code, size) in enumerate(zip(codes, sizes, strict=True)):
            joint = _entropy(np.bincount(classes * size + code))
            information[k, j] = of_factor + _entropy(np.bincount(code)) - joint
    return np.maximum(information, 0), entropy


def top_two(size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest and the second largest of each row `(K, L)`; with one latent the second is 0."""
    ordered = np.sort(np.pad(size, ((0, 0), (1, 0))), axis=1)
    return ordered[:, -1], ordered[:, -2]


def _entropy(counts: np.ndarray) -> float:
    counts = counts[counts > 0]
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())
