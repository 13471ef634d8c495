"""Kurtosis, dependence and shape of steps, with standard errors, through Gaussian noise."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

__all__ = ["moments", "shapes"]

GRIDS = (1024, 65536)  # points of the density of step and noise
SHAPES = (0.3, 8.0)  # of the generalised Gaussian
MOST = 50_000  # steps that a shape is fitted to, evenly picked
LEVELS = 12  # of noise that are told apart
RATIO = 1.25  # of two variances that are not
NEARLY = 0.01  # variance of noise, of that of steps, below which it is hardly any
STEP = 0.02  # of ln α and of ln s, for derivatives


def _error(influence: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Standard error of a mean, from what each step adds to it, `(n, ...)`."""
    _, where = np.unique(group, return_inverse=True)
    sums = np.zeros((where.max() + 1, *influence.shape[1:]))
    np.add.at(sums, where, influence)
    lost = len(sums) / max(1, len(sums) - 1)
    return np.sqrt(lost * np.square(sums).sum(axis=0)) / len(influence)


def moments(steps: np.ndarray, variance: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
    """Standard deviation, excess kurtosis, and correlations of steps and of their sizes.

    Args:
        steps: `(n, K)`.
        variance: Of the Gaussian noise on each, `(n, K)`.
        group: `(n,)`, which of them are not independent.

    Returns:
        Standard deviation `(K,)`; kurtosis `(K,)` and its standard error; correlation `(K, K)` and
        its standard error; that of absolute values and its standard error.
    """
    x = steps - steps.mean(axis=0)
    second, fourth = np.square(x).mean(axis=0), (x**4).mean(axis=0)
    left = second - variance.mean(axis=0)
    left = np.where(left > 1e-3 * second, left, np.nan)  # a component that stands still
    # noise whose variance differs from step to step has a fourth cumulant of its own
    uneven = 3 * variance.var(axis=0)
    cumulant = fourth - 3 * second**2 - uneven
    d4, d2 = x**4 - fourth, np.square(x) - second
    influence = d4 / left**2 - (6 * second / left**2 + 2 * cumulant / left**3) * d2
    joint: list[np.ndarray] = []
    for y in (x, np.abs(x)):
        size = y.std(axis=0)
        y = (y - y.mean(axis=0)) / np.where(size > 0, size, 1.0)
        product = y[:, :, None] * y[:, None, :]
        r = product.mean(axis=0)
        squares = np.square(y)
        drift = product - 0.5 * r * (squares[:, :, None] + squares[:, None, :])
        joint += [r, _error(drift, group)]
    return np.sqrt(left), cumulant / left**2, _error(influence, group), *joint


def shapes(steps: np.ndarray, variance: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
    """Shape α of the generalised Gaussian, its standard error, and its scale, `(K,)` each.

    By maximum likelihood. Steps of about the same noise are taken to have that of their mean
    variance. The standard error is that of the sandwich estimator, right for steps of other laws
    too; nan where α is at one end of its range.
    """
    few = slice(None, None, max(1, len(steps) // MOST))
    steps, variance, group = steps[few], variance[few], group[few]
    rows = [
        _shape(steps[:, k] - np.median(steps[:, k]), variance[:, k], group)
        for k in range(steps.shape[1])
    ]
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def _shape(x: np.ndarray, variance: np.ndarray, group: np.ndarray) -> tuple[float, float, float]:
    left = np.square(x).mean() - variance.mean()
    if not left > 1e-3 * np.square(x).mean():
        return math.nan, math.nan, math.nan
    size, low, high = math.sqrt(left), *np.log(SHAPES)
    levels = [(which, math.sqrt(variance[which].mean())) for which in _levels(variance, left)]

    def logs(at: np.ndarray) -> np.ndarray:
        alpha, scale = math.exp(np.clip(at[0], low, high)), size * math.exp(at[1])
        found = np.empty_like(x)
        for which, noise in levels:
            if noise:
                found[which] = _blurred(x[which], alpha, scale, noise)
            else:
                constant = math.log(alpha / (2 * scale)) - math.lgamma(1 / alpha)
                found[which] = constant - (np.abs(x[which]) / scale) ** alpha
        return found

    # the scale of the Gaussian and of Laplace of this variance lie about 0.2 and -0.35
    found = optimize.minimize(
        lambda at: -logs(at).mean(), (0.3, -0.1), method="Nelder-Mead",
        options={"xatol": 1e-4, "fatol": 1e-9},
    ).x  # fmt: skip
    found[0] = np.clip(found[0], low, high)
    alpha, scale = math.exp(found[0]), size * math.exp(found[1])
    if not low + 2 * STEP < found[0] < high - 2 * STEP:
        return alpha, math.nan, scale
    up = STEP * np.eye(2)
    scores = np.stack([(logs(found + h) - logs(found - h)) / (2 * STEP) for h in up], axis=-1)
    corners = [[(logs(found + h + g) - logs(found + h - g)).mean() for g in up] for h in up]
    others = [[(logs(found - h + g) - logs(found - h - g)).mean() for g in up] for h in up]
    bend = (np.array(others) - np.array(corners)) / (2 * STEP) ** 2
    if not np.linalg.eigvalsh(bend)[0] > 0:
        return alpha, math.nan, scale
    error = _error(scores @ np.linalg.inv(bend), group)[0]
    return alpha, alpha * float(error), scale


def _levels(variance: np.ndarray, left: float) -> list[np.ndarray]:
    """Indices of steps whose noise is about the same."""
    least = max(variance.min(), NEARLY * left)
    span = math.log(max(variance.max() / least, 1.0))
    count = min(LEVELS, math.ceil(span / math.log(RATIO)) or 1)
    edges = least * np.exp(span * np.arange(1, count) / count)
    which = np.searchsorted(edges, variance)
    return [np.flatnonzero(which == n) for n in np.unique(which)]


def _blurred(x: np.ndarray, alpha: float, scale: float, noise: float) -> np.ndarray:
    """Log-density of a generalised Gaussian step seen through Gaussian noise."""
    edge = 1.05 * np.abs(x).max() + 6 * noise
    points = int(np.clip(8 * edge / noise, *GRIDS))
    middles = np.linspace(-edge, edge, points)
    width = middles[1] - middles[0]
    edges = np.append(middles - width / 2, middles[-1] + width / 2)
    mass = np.diff(stats.gennorm.cdf(edges, alpha, scale=scale))
    frequency = np.fft.rfftfreq(2 * points, width)
    damped = np.fft.rfft(mass, 2 * points) * np.exp(-2 * np.square(np.pi * frequency * noise))
    density = np.fft.irfft(damped, 2 * points)[:points] / width
    return np.log(np.interp(x, middles, np.maximum(density, 1e-12 / edge)))
