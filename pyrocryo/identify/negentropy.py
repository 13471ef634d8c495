"""How far a law is from the Gaussian of its variance, with a standard error and a test."""

from __future__ import annotations

import numpy as np
from scipy import stats
from scipy.special import digamma

__all__ = ["GROUPS", "gaussian_p", "negentropy"]

REACH = 4  # neighbours to each side that a spacing spans
GROUPS = 20  # of particles, for standard errors
# 1 / twice the variance, under N(0, 1), of each function less its parts along 1, x and x²
ODD = 36 / (8 * np.sqrt(3) - 9)
EVEN = 24 / (16 * np.sqrt(3) - 27)


def negentropy(x: np.ndarray, *, frames: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    r"""Negentropy of each column, in nats, and its standard error.

    .. math:: J(x) = \tfrac12 \ln(2 \pi e \sigma^2) - H(x) \ge 0

    with zero for a Gaussian alone, .176 for a uniform law and .0724 for Laplace's. The entropy `H`
    is estimated from spacings of the ordered values (Vasicek 1976), each with the bias that it has
    under a uniform law taken off,

    .. math:: H = \frac1n \sum_i \ln(x_{(b_i)} - x_{(a_i)}) - \psi(b_i - a_i) + \psi(n + 1)

    from :math:`a_i = \max(i - 4, 1)` to :math:`b_i = \min(i + 4, n)`, and may come out slightly
    negative. The standard error is that over 20 random groups of particles, whose estimates are
    independent and vary by :math:`\sqrt{20}` times what that of all does.

    Args:
        x: `(N, k)`.
        frames: Consecutive rows that belong to one molecule and share its group.
        seed: Draws the groups.

    Returns:
        `(k,)` and `(k,)`.
    """
    order = np.random.default_rng(seed).permutation(len(x) // frames)
    rows = frames * order[:, None] + np.arange(frames)
    groups = np.stack([_spacings(x[g.reshape(-1)]) for g in np.array_split(rows, GROUPS)])
    return _spacings(x), groups.std(axis=0, ddof=1) / np.sqrt(GROUPS)


def _spacings(x: np.ndarray) -> np.ndarray:
    n = len(x)
    spread = x.std(axis=0)
    ordered = np.sort(x, axis=0)
    low, high = np.maximum(np.arange(n) - REACH, 0), np.minimum(np.arange(n) + REACH, n - 1)
    # values that are the same to the last digit would have minus infinity
    width = np.maximum(ordered[high] - ordered[low], 1e-12 * spread)
    inside = np.log(width) - digamma(high - low)[:, None]
    return np.log(spread) + 0.5 * np.log(2 * np.pi * np.e) - inside.mean(axis=0) - digamma(n + 1)


def gaussian_p(x: np.ndarray, count: int | None = None) -> np.ndarray:
    r"""Probability that draws of a Gaussian look at least as far from one, for each column.

    Hyvärinen's approximation of negentropy (1998, Eq. 26) with two bounded functions,

    .. math:: J = k_1 (E\, x e^{-x^2/2})^2 + k_2 (E\, e^{-x^2/2} - \sqrt{1/2})^2

    of standardised `x`: each term is half the square of a number that is standard normal for draws
    of a Gaussian, divided by their count, so that 2 `n` `J` follows :math:`\chi^2_2`.

    Args:
        x: `(N, k)`, draws on which the columns were not chosen.
        count: Independent ones among them; by default all.

    Returns:
        `(k,)`.
    """
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    bell = np.exp(-0.5 * np.square(x))
    odd, even = (x * bell).mean(axis=0), bell.mean(axis=0) - np.sqrt(0.5)
    j = ODD * np.square(odd) + EVEN * np.square(even)
    return stats.chi2.sf(2 * (count or len(x)) * j, 2)
