"""Whether ranks that should be uniform are."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from pyrocryo.errors import InputError

__all__ = ["alarming", "histogram", "uniform"]

LEVEL = 0.001  # of all p-values of a diagnostic together
BINS, FULL = 20, 10  # bins at most, and counts to expect in each at least


def uniform(ranks: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Tests of the ranks of truths among ``draws`` draws, column by column.

    With :math:`u = (r + \frac12) / (S + 1)`, the mean of `u` (½ if uniform) and its variance
    beside the :math:`(1 - (S + 1)^{-2}) / 12` of uniform ranks, both by their standard errors,
    and χ² over bins: three p-values, the smallest times three. For a normal posterior, a guide of
    `c` times its standard deviation has the variance ratio

    .. math:: \frac6\pi \arcsin \frac1{1 + c^2}

    (1.405 at c = .7, .658 at 1.4), and one that lies `b` standard deviations above it the mean
    rank :math:`\Phi(-b / \sqrt2)`.

    Args:
        ranks: `(n, Q)` integers of 0 to ``draws``.
        draws: S.

    Returns:
        p-values, mean ranks and variance ratios, each `(Q,)`.
    """
    ranks = np.asarray(ranks)
    n = len(ranks)
    if ranks.ndim != 2 or n < 10 or ranks.min() < 0 or ranks.max() > draws:
        raise InputError(
            f"ranks: expected (n, Q), of ten particles or more and between 0 and {draws}, got "
            f"{ranks.shape}"
        )
    levels = draws + 1
    u = (ranks + 0.5) / levels
    expected = (1 - levels**-2) / 12
    fourth = np.mean(((np.arange(levels) + 0.5) / levels - 0.5) ** 4)
    mean, square = u.mean(axis=0), np.square(u - 0.5).mean(axis=0)
    z = (mean - 0.5) / math.sqrt(expected / n)
    v = (square - expected) / math.sqrt((fourth - expected**2) / n)
    counts, share = histogram(ranks, draws)
    squares = np.square(counts - n * share[:, None]) / (n * share[:, None])
    p = np.stack([2 * stats.norm.sf(np.abs(z)), 2 * stats.norm.sf(np.abs(v))])
    if len(share) > 1:
        chi = stats.chi2.sf(squares.sum(axis=0), len(share) - 1)
        p = np.concatenate([p, chi[None]])
    ratio = u.var(axis=0, ddof=1) / expected
    return np.minimum(1.0, len(p) * p.min(axis=0)), mean, ratio


def alarming(p: np.ndarray) -> np.ndarray:
    """Which p-values are below .001 when as many are looked at (Bonferroni)."""
    return ~(p * p.size >= LEVEL)


def histogram(ranks: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts `(B, Q)` of ranks `(n, Q)` in bins, and the share of each bin if uniform `(B,)`."""
    bins = max(1, min(BINS, len(ranks) // FULL, draws + 1))
    edges = np.linspace(0, draws + 1, bins + 1).round().astype(int)
    counts = np.stack([np.histogram(column, edges - 0.5)[0] for column in ranks.T], axis=-1)
    return counts, np.diff(edges) / (draws + 1)
