"""Pareto-smoothed importance sampling, one fit to the largest weights of each particle."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from pyrocryo.errors import InputError

__all__ = ["psis"]

FEWEST = 25  # draws; below, five of them or fewer would be the tail
FLAT = 1e-8  # largest spread of log weights that are all the same but for rounding
PRIOR, PRIOR_COUNT = 3.0, 10.0  # of Zhang & Stephens, and of Vehtari et al. on k-hat


def psis(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Smoothed log weights, normalised, and the tail index k-hat of each row.

    The largest :math:`M = \min(S / 5, 3 \sqrt S)` of S weights are replaced by quantiles of the
    generalised Pareto law fitted to them (Zhang & Stephens 2009), and none is larger than the
    largest there was (Vehtari et al. 2024). Where :math:`\hat k < .5` weights have a variance;
    above .7 no estimate from them is to be trusted. The same numbers as ``az.psislw`` of ArviZ
    0.23; 1.x takes another tail, and log ratios of the opposite sign.

    A guide that is too wide has bounded weights: k-hat below 0, and nothing to see. A Gaussian
    guide of `c` times the posterior's standard deviation has :math:`k = 1 - c^2`.

    Args:
        log_weights: `(..., S)` logarithms of weights, up to a constant in each row; minus infinity
            for draws that cannot be.

    Returns:
        `(..., S)` log weights whose exponentials sum to 1, and `(...)` k-hat: minus infinity for
        weights that are all the same, infinity where there are too few above zero to tell.

    Raises:
        InputError: If there are fewer than 25 draws, or NaN or plus infinity among them.
    """
    given = np.asarray(log_weights, dtype=np.float64)
    if given.ndim < 1 or given.shape[-1] < FEWEST:
        raise InputError(f"log_weights: expected {FEWEST} draws or more, got {given.shape}")
    if np.isnan(given).any() or (given == np.inf).any():
        raise InputError("log_weights: expected numbers below infinity, got NaN or infinity")
    rows = given.reshape(-1, given.shape[-1])
    if not np.isfinite(rows.max(axis=-1)).all():
        raise InputError("log_weights: expected a draw of positive weight in each row, got none")
    shifted = rows - rows.max(axis=-1, keepdims=True)
    draws = rows.shape[-1]
    tail = math.ceil(min(0.2 * draws, 3 * math.sqrt(draws)))
    order = np.argsort(shifted, axis=-1, kind="stable")[:, -tail - 1 :]
    largest = np.take_along_axis(shifted, order, axis=-1)  # (n, tail + 1), ascending
    cut = np.maximum(largest[:, 0], math.log(np.finfo(float).tiny))
    above = (largest[:, 1:] > cut[:, None]).sum(
        axis=-1
    )  # fewer than the tail where some are equal
    k = np.where(largest[:, -1] - largest[:, 0] < FLAT, -np.inf, np.inf)
    for count in np.unique(above[(k > 0) & (above >= FEWEST // 5)]):
        chosen = np.flatnonzero((above == count) & (k > 0))
        threshold = np.exp(cut[chosen, None])
        excess = np.exp(largest[chosen, -count:]) - threshold
        k[chosen], scale = _pareto(excess)
        smooth = np.log(_quantiles(int(count), k[chosen, None], scale[:, None]) + threshold)
        shifted[chosen[:, None], order[chosen, -count:]] = np.minimum(smooth, 0.0)
    shifted = shifted - logsumexp(shifted, axis=-1, keepdims=True)
    return shifted.reshape(given.shape), k.reshape(given.shape[:-1])


def _pareto(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shape and scale `(n,)` of generalised Pareto laws, of ascending `x` `(n, M)` above 0.

    The profile posterior mean of Zhang & Stephens (2009), drawn towards .5 as if by ten further
    observations.
    """
    count = x.shape[-1]
    grid = 30 + int(math.sqrt(count))
    quarter = x[:, int(count / 4 + 0.5) - 1]
    b = 1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    b = b / (PRIOR * quarter[:, None]) + 1 / x[:, -1:]  # (n, grid)
    k = np.log1p(-b[:, :, None] * x[:, None, :]).mean(axis=-1)
    likelihood = count * (np.log(-b / k) - k - 1)
    weight = np.exp(likelihood - logsumexp(likelihood, axis=-1, keepdims=True))
    weight[weight < 10 * np.finfo(float).eps] = 0.0
    weight /= weight.sum(axis=-1, keepdims=True)
    b = (b * weight).sum(axis=-1)
    shape = np.log1p(-b[:, None] * x).mean(axis=-1)
    scale = -shape / b
    return (shape * count + 0.5 * PRIOR_COUNT) / (count + PRIOR_COUNT), scale


def _quantiles(count: int, shape: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Quantiles `(n, count)` of generalised Pareto laws `(n, 1)`, amid equal shares."""
    outside = -np.log1p(-(np.arange(count) + 0.5) / count)
    straight = np.abs(shape) < 1e-12
    shape = np.where(straight, 1.0, shape)
    return scale * np.where(straight, outside, np.expm1(shape * outside) / shape)
