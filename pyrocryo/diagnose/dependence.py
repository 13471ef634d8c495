r"""Does `z` depend on something else that is known of each particle? Permutations say.

Whatever the other thing is, it explains a part `C`, `(K, K)`, of the covariance of `z` (latents
scaled to unit variance): by regression on features, by the means of groups, or by neighbours. The
diagonal of `C` holds R² of each latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["Dependence", "by_features", "by_groups", "by_neighbours", "dependence", "orthonormal"]

ALPHA = 0.05
LITTLE = 0.02  # share of a latent's variance below which a dependence is called little
SMALLEST = 1e-3  # singular values below, relative to the largest, carry rounding
PER_FEATURE = 5  # particles
POWER = 1.28  # standard deviations, that 9 of 10 exceed
SAME = 1e-9  # relative variance of directions of z that repeat others

Explain = Callable[[np.ndarray], np.ndarray]
Permute = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Dependence:
    """What one thing explains of `z`, against particles permuted.

    Attributes:
        what: The thing, in words.
        how: By what it explains.
        features: Numbers that describe it.
        share: R² of each latent less its floor, over 1 less the floor, `(K,)`; 0 at least.
        raw: R² of each latent `(K,)`, as it comes.
        floor: Its mean over permutations `(K,)`.
        p_each: Probability of an R² as large in any latent of permuted particles, `(K,)`:
            corrected for there being `K`.
        total: Share of the variance of all latents together, in the units they come in.
        strongest: Share of the direction of `z` that depends most, less what the best direction of
            permuted particles reaches.
        p: Of independence, all latents together.
        noticed: Share of one latent alone that would be found in about 8 of 10 cases (74 to 97 %
            of 50 simulated sets of 400 to 2000 particles, by view or turn).
        particles: How many were compared.
        permutations: How many; no p is below 1 / (permutations + 1).
        sentence: In words.
    """

    what: str
    how: str
    features: int
    share: np.ndarray
    raw: np.ndarray
    floor: np.ndarray
    p_each: np.ndarray
    total: float
    strongest: float
    p: float
    noticed: float
    particles: int
    permutations: int
    sentence: str


def dependence(
    z: np.ndarray,
    explain: Explain,
    *,
    what: str,
    how: str = "",
    features: int = 0,
    permutations: int = 999,
    permute: Permute | None = None,
    tests: int = 1,
    names: np.ndarray | None = None,
    seed: int = 0,
) -> Dependence:
    r"""Tests whether what ``explain`` knows of the particles tells of their `z`.

    The statistics are R² of each latent, the mean of R² over whitened directions of `z` (Pillai's
    trace over `K`), and the largest R² of any direction (the first canonical correlation squared);
    `z` is permuted against the rest. Each statistic is standardised over the data and all
    permutations, and the largest of them compared with its like, so that a faint dependence of all
    latents and a clear one of a single latent are both found, at one p-value that is uniform under
    independence (Westfall & Young 1993).

    Args:
        z: `(N, K)`, every column varying.
        explain: Takes standardised latents `(N, K)`, gives the explained covariance `(K, K)`.
        what: The thing, in words ("the direction of view").
        how: By what it explains.
        features: Numbers that describe it.
        permutations: How many.
        permute: Gives a random order `(N,)` of the rows; by default any.
        tests: Of how many tests this is one, for what it would have noticed.
        names: Numbers of the latents for the reading, `(K,)`, from 1 on.
        seed: Draws the permutations.
    """
    z = np.asarray(z, dtype=np.float64)
    n, k = z.shape
    if permutations < 19:
        raise InputError(f"permutations: expected 19 or more, got {permutations}")
    rng = np.random.default_rng(seed)
    permute = permute or (lambda rng: rng.permutation(n))
    sd = z.std(axis=0)
    scaled = (z - z.mean(axis=0)) / sd
    white = _whitening(scaled)
    table = np.empty((permutations + 1, k + 2))
    table[0] = _statistics(explain(scaled), white)
    for row in range(permutations):
        table[row + 1] = _statistics(explain(scaled[permute(rng)]), white)
    each, null = table[0, 2:], table[1:, 2:]
    floor = null.mean(axis=0)
    share = np.maximum((each - floor) / (1 - floor), 0.0)
    most = null.max(axis=1)
    p_each = (1 + (most[:, None] >= each - 1e-12).sum(axis=0)) / (permutations + 1)
    spread = table.std(axis=0)
    largest = ((table - table.mean(axis=0)) / np.where(spread > 0, spread, 1)).max(axis=1)
    p = float((largest >= largest[0] - 1e-12).mean())
    best = table[1:, 1].mean()
    found = {
        "share": share, "raw": each, "floor": floor, "p_each": p_each,
        "total": float((sd**2 * share).sum() / (sd**2).sum()),
        "strongest": float(np.clip((table[0, 1] - best) / (1 - best), 0, 1)),
        "p": p, "noticed": _noticed(table[1:], n, ALPHA / tests),
    }  # fmt: skip
    names = np.arange(k) + 1 if names is None else np.asarray(names)
    return Dependence(
        what, how, features, particles=n, permutations=permutations,
        sentence=_reading(what, names, **found), **found,
    )  # fmt: skip


def by_features(features: np.ndarray) -> tuple[Explain, int]:
    """Explains by regression on features `(N, F)`; also how many of them count."""
    q = orthonormal(features)

    def explain(z: np.ndarray) -> np.ndarray:
        m = q.T @ z
        return m.T @ m / len(z)

    return explain, q.shape[1]


def by_groups(labels: np.ndarray) -> tuple[Explain, int]:
    """Explains by the means of groups of particles with one label `(N,)`; also how many groups."""
    _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    which = which.reshape(-1)

    def explain(z: np.ndarray) -> np.ndarray:
        sums = np.stack([np.bincount(which, column) for column in z.T], axis=1)
        return (sums / counts[:, None]).T @ sums / len(z)

    return explain, len(counts)


def by_neighbours(points: np.ndarray, count: int = 10) -> tuple[Explain, int]:
    r"""Explains by the nearest neighbours of points `(N, F)`.

    :math:`C = \frac1N \sum_i z_i \bar z_i^T`, with :math:`\bar z_i` the mean of the neighbours
    (Moran's I in its diagonal): the share of variance in whatever varies slowly from neighbour to
    neighbour, without bias, as noise of two particles has no covariance.
    """
    from scipy.spatial import KDTree

    n = len(points)
    count = min(count, n - 1)
    # itself is the first, or of identical points any: taken out by its number
    near = KDTree(points).query(points, count + 1)[1]
    own = near == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    near = near[~own].reshape(n, count)

    def explain(z: np.ndarray) -> np.ndarray:
        mean = np.zeros_like(z)
        for column in near.T:
            mean += z[column]
        c = z.T @ mean / (count * n)
        return (c + c.T) / 2

    return explain, count


def orthonormal(features: np.ndarray) -> np.ndarray:
    """Orthonormal columns `(N, r)` that span centred features `(N, F)`.

    At most one for 5 particles: the directions along which particles differ most.
    """
    x = np.asarray(features, dtype=np.float64)
    x = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    values, vectors = values[::-1], vectors[:, ::-1]
    count = int((values > SMALLEST**2 * values[0]).sum()) if values[0] > 1e-20 * len(x) else 0
    count = min(count, max(1, len(x) // PER_FEATURE)) if count else 0
    return x @ vectors[:, :count] / np.sqrt(values[:count])


def _whitening(scaled: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    keep = values > SAME * values[-1]
    return vectors[:, keep] / np.sqrt(values[keep])


def _statistics(c: np.ndarray, white: np.ndarray) -> np.ndarray:
    turned = white.T @ c @ white
    values = np.linalg.eigvalsh(turned)
    return np.concatenate([[values.mean(), values[-1]], np.diag(c)])


def _noticed(null: np.ndarray, n: int, alpha: float) -> float:
    r"""Share `s` of one latent that passes what permutations pass at ``alpha`` nearly always.

    R² of a share `s` spreads by :math:`4 s (1 - s)^2 / N` about it (Kendall & Stuart), beside the
    permutations' own variance.
    """
    spread = null.std(axis=0)
    largest = ((null - null.mean(axis=0)) / np.where(spread > 0, spread, 1)).max(axis=1)
    own = float(spread[2:].mean())
    least = share = float(np.quantile(largest, 1 - alpha, method="higher")) * own
    for _ in range(20):
        share = min(least + POWER * np.sqrt(own**2 + 4 * share * (1 - share) ** 2 / n), 1.0)
    return float(share)


def _reading(
    what: str,
    names: np.ndarray,
    *,
    share: np.ndarray,
    p_each: np.ndarray,
    total: float,
    strongest: float,
    p: float,
    noticed: float,
    **_: np.ndarray,
) -> str:
    if p > ALPHA:
        return (
            f"no sign that z depends on {what} (p = {p:.2g}); more than about "
            f"{_percent(noticed)} of the variance of a latent would have been seen"
        )
    k = int(share.argmax())
    little = " by little" if max(share[k], strongest) < LITTLE else ""
    told = (
        f"z depends{little} on {what} (p = {p:.2g}), which explains {_percent(total)} of its "
        "variance"
    )
    if len(share) == 1:
        return told
    sure = [
        f"{_percent(one)} of z{name}"
        for name, one, chance in zip(names, share, p_each, strict=True)
        if chance <= ALPHA
    ]
    each = ", ".join(sure) if sure else "no latent for sure"
    return f"{told} ({each}; {_percent(strongest)} of the direction of z that depends most)"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
