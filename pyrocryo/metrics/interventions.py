"""Metrics that intervene: BetaVAE and FactorVAE need a simulator and an encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.score import Score

__all__ = ["Encode", "Sampler", "betavae", "factorvae"]

Sampler = Callable[[int, Mapping[int, np.ndarray], np.random.Generator], Any]
Encode = Callable[[Any], np.ndarray]
GLOBAL = 10_000  # particles behind the global variance, at most
PRUNED = 0.05


def betavae(
    sampler: Sampler,
    encode: Encode,
    *,
    points: tuple[int, int] = (2000, 1000),
    batch: int = 64,
    pool: int | None = None,
    seed: int = 0,
) -> Score | list[Score]:
    """Which factor two batches share, told by what their latents share (Higgins et al. 2017).

    A point is the mean over ``batch`` pairs of |z - z'|, both of a pair with the same value of
    factor k, all other factors drawn anew; a logistic regression (C = 1) of the training points
    tells k, and its accuracy on fresh points is the score. Chance, and the floor, is 1 / K.
    Latents are standardised first, as the score would depend on their scale otherwise. It
    saturates: 1 after a rotation by 22.5° and still at 43°, from where it falls to chance at 45°,
    so it cannot rank models.

    Encoding images is dear. With ``pool``, that many pairs are drawn once for each factor, as many
    again for evaluation, and every point picks its ``batch`` from them; the original draws all
    afresh (2 · 64 · 3000 encodings here). The two agree within .02 on average over draws; away
    from 1 one draw of 4000 pairs varies by .02, of 2000 by .04 (fresh: .01).

    Args:
        sampler: ``sampler(n, fixed, rng)`` → factors `(n, K)` (or a sequence of blocks), ``fixed``
            {} or {factor: values `(n,)`}.
        encode: Factors → latents `(n, L)`, or `(S, n, L)` of S seeds at once.
        points: For training, and for evaluation.
        batch: Pairs a point.
        pool: Pairs a factor, or None for fresh ones.
        seed: Draws everything.

    Returns:
        A score, or a list of one a seed; NaN for a seed whose latents are not all finite.
    """
    from sklearn.linear_model import LogisticRegression

    count, many = _checked(sampler, encode, points, batch)
    if pool is not None and pool < batch:
        raise InputError(f"pool: expected at least batch = {batch} pairs, got {pool}")
    rng = np.random.default_rng(seed)
    labels = [rng.integers(0, count, number) for number in points]
    features, variances = [], []
    for shared in labels:
        parts = []
        for k in range(count):
            mine = int((shared == k).sum())
            n = batch * mine if pool is None else pool
            first = sampler(n, {}, rng)
            z = _latents(encode, first)
            other = _latents(encode, sampler(n, {k: _column(first, k)}, rng))
            picked = (
                np.arange(n).reshape(mine, batch)
                if pool is None
                else rng.permuted(np.tile(np.arange(pool), (mine, 1)), axis=1)[:, :batch]
            )
            parts.append(np.abs(z - other)[:, picked].mean(axis=2))
            variances.append(z.var(axis=1))
        order = np.argsort(np.argsort(shared, kind="stable"), kind="stable")
        features.append(np.concatenate(parts, axis=1)[:, order])
    sd = np.sqrt(np.mean(variances, axis=0))
    sd = np.where(sd == 0, 1.0, sd)[:, None]
    sound = [np.isfinite(part).all(axis=(1, 2)) for part in features]
    values = np.full(len(sd), np.nan)
    for n in np.flatnonzero(sound[0] & sound[1]):
        model = LogisticRegression(max_iter=1000).fit(features[0][n] / sd[n], labels[0])
        values[n] = model.score(features[1][n] / sd[n], labels[1])
    return _scores(values, count, many)


def factorvae(
    sampler: Sampler,
    encode: Encode,
    *,
    points: tuple[int, int] = (2000, 1000),
    batch: int = 64,
    pool: int | None = None,
    seed: int = 0,
) -> Score | list[Score]:
    """Which factor is held fixed, told by the latent that varies least (Kim & Mnih 2018).

    A point is a batch with one value of factor k; the latent with the smallest variance, relative
    to its variance at large, votes for k. Each latent stands for the factor it got most votes for,
    and the score is the accuracy of that on fresh points. Chance, and the floor, is 1 / K. Latents
    with less than .05 of the largest sd are left out. It saturates as :func:`betavae` does.

    With ``pool``, that many batches are drawn once for each factor, as many again for evaluation,
    and every point draws ``batch`` from one of them with replacement; the original draws all
    afresh. At 100 batches the two agree within .02 on average over draws; one draw varies by .02
    (fresh: .01) where the score is not at an end of its scale.

    Args:
        sampler: As for :func:`betavae`.
        encode: As for :func:`betavae`.
        points: For training, and for evaluation.
        batch: Particles a point.
        pool: Batches a factor, or None for fresh ones.
        seed: Draws everything.

    Returns:
        A score, or a list of one a seed; NaN for a seed whose latents are not all finite, or
        never vary.
    """
    count, many = _checked(sampler, encode, points, batch)
    if pool is not None and pool < 1:
        raise InputError(f"pool: expected a positive number of batches, got {pool}")
    rng = np.random.default_rng(seed)
    at_large = _latents(encode, sampler(GLOBAL if pool is None else pool * batch, {}, rng))
    sound = np.isfinite(at_large).all(axis=(1, 2))
    sd = at_large.std(axis=1, ddof=1)
    used = (sd > 0) & (sd >= PRUNED * sd.max(axis=1, keepdims=True))
    scale = np.where(used, sd**2, 1.0)
    votes = np.zeros((2, len(at_large), count, at_large.shape[-1]))
    for part, number in enumerate(points):
        fixed = rng.integers(0, count, number)
        for k in range(count):
            mine = int((fixed == k).sum())
            groups = mine if pool is None else pool
            value = _column(sampler(groups, {}, rng), k)
            drawn = sampler(groups * batch, {k: np.repeat(value, batch, axis=0)}, rng)
            z = _latents(encode, drawn).reshape(len(at_large), groups, batch, -1)
            sound &= np.isfinite(z).all(axis=(1, 2, 3))
            if pool is not None:
                group = rng.integers(0, pool, mine)[:, None]
                z = z[:, group, rng.integers(0, batch, (mine, batch))]
            variance = z.var(axis=2, ddof=1) / scale[:, None]
            least = np.where(used[:, None], variance, np.inf).argmin(axis=-1)
            for seed_votes, voted in zip(votes[part], least, strict=True):
                seed_votes[k] += np.bincount(voted, minlength=at_large.shape[-1])
    stands_for = votes[0].argmax(axis=1)
    right = np.take_along_axis(votes[1], stands_for[:, None], axis=1).sum(axis=(1, 2))
    sound &= used.any(axis=1)
    return _scores(np.where(sound, right / points[1], np.nan), count, many)


def _checked(
    sampler: Sampler, encode: Encode, points: tuple[int, int], batch: int
) -> tuple[int, bool]:
    """Number of factors, and whether latents of several seeds come."""
    factors = sampler(2, {}, np.random.default_rng(0))
    count = factors.shape[1] if hasattr(factors, "ndim") else len(factors)
    if count < 2:
        raise InputError(f"sampler: expected at least 2 factors, got {count}")
    if len(points) != 2 or min(points) < 10 * count or batch < 2:
        raise InputError(
            f"points, batch: expected two numbers of at least {10 * count} points and batches of "
            f"at least 2, got {points} and {batch}"
        )
    return count, np.ndim(encode(factors)) == 3


def _column(factors: Any, k: int) -> np.ndarray:
    return np.asarray(factors[:, k] if hasattr(factors, "ndim") else factors[k])


def _latents(encode: Encode, factors: Any) -> np.ndarray:
    """`(S, n, L)`."""
    z = np.asarray(encode(factors), dtype=np.float64)
    if z.ndim not in (2, 3):
        raise InputError(f"encode: expected latents (n, L) or (seeds, n, L), got {z.shape}")
    z = z[None] if z.ndim == 2 else z
    lost = ~np.isfinite(z).all(axis=(1, 2))
    return np.where(lost[:, None, None], np.nan, z)


def _scores(values: np.ndarray, count: int, many: bool) -> Score | list[Score]:
    scores = [Score(float(value), 1 / count) for value in values]
    return scores if many else scores[0]
