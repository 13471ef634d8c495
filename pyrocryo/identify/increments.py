"""Before and after training: are the steps of `z` sparse, and independent of each other?"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pyrocryo.errors import InputError
from pyrocryo.identify.tails import moments, shapes
from pyrocryo.metrics.table import groups

__all__ = ["Increments", "increments", "inferred"]

TOLERANCE = 0.1  # of a lag, within which elapsed times count as that lag
CLUSTERS = 30  # stretches that a few long trajectories are cut into, for standard errors
STEPS = 50  # increments that a shape can be judged from
SURE = 3.0  # standard errors
SPARSE = 1.75  # α above which steps are called Gaussian (excess kurtosis .3)
LIGHT = -0.3  # excess kurtosis above which they are
LEAST = 0.1  # of z, that a posterior mean is taken to keep
TINY = 1e-300
DEPENDENT = 0.1  # correlation below which steps are called independent
HEAVY = 2.0  # standard errors by which the excess kurtosis of sparse steps exceeds 0
UNEVEN = 0.3  # sd of the noise's variance, of that of steps, which correlates sizes by .44 * .3²
MEASURED = (
    "count", "sd", "kurtosis", "kurtosis_se", "correlation", "correlation_se", "magnitude",
    "magnitude_se", "shape", "shape_se", "scale",
)  # fmt: skip


@dataclass(frozen=True)
class Increments:
    r"""Shapes of the steps :math:`\Delta_k = z_{t + l, k} - z_{t, k}`, for L lags.

    Standard errors count molecules (or stretches of long trajectories), not steps, as independent.

    Attributes:
        lags: Lags, in frames.
        count: Steps at each lag, `(L,)`.
        sd: Standard deviation of a step without noise, `(L, K)`.
        kurtosis: Its excess kurtosis, `(L, K)`: Gaussian 0, Laplace 3.
        kurtosis_se: Standard errors of that.
        shape: α of the generalised Gaussian :math:`e^{-|\Delta / s|^\alpha}` that fits best:
            Laplace 1, Gaussian 2; `(L, K)`.
        shape_se: Standard errors of that; nan where α is at an end of the range that is tried.
        scale: Its s (Laplace: b; Gaussian: √2 sd).
        correlation: Of steps of two components, `(L, K, K)`, noise included: it weakens them.
        correlation_se: Standard errors of that.
        magnitude: Correlation of their absolute values, `(L, K, K)`: components that jump
            together have one even where steps are uncorrelated. Noise is included: alike on all
            steps it weakens them, and where some molecules are seen worse than others, in all
            components, it makes some of its own.
        magnitude_se: Standard errors of that.
        gaussian: Whether the steps of all components that move are Gaussian within error, and
            the error is small enough to tell them from Laplace steps, at the first lag. False
            where nothing moves, or nobody can tell.
        dependent: Whether any two components' steps depend on each other at the first lag; by
            their correlation alone where noise is too uneven for their sizes.
        sentence: All this in words.
    """

    lags: tuple[int, ...]
    count: np.ndarray
    sd: np.ndarray
    kurtosis: np.ndarray
    kurtosis_se: np.ndarray
    shape: np.ndarray
    shape_se: np.ndarray
    scale: np.ndarray
    correlation: np.ndarray
    correlation_se: np.ndarray
    magnitude: np.ndarray
    magnitude_se: np.ndarray
    gaussian: bool
    dependent: bool
    sentence: str


def increments(
    z: np.ndarray,
    *,
    sd: Any = None,
    lags: Sequence[int] = (1, 2, 4),
    time: np.ndarray | None = None,
) -> Increments:
    r"""Shape, kurtosis and dependence of the steps of trajectories, by lag.

    What SlowVAE and its kin assume of data, checked before training on simulations, molecular
    dynamics or ``particles.truth``, and after training on what was inferred (:func:`inferred`).
    Physical diffusion has Gaussian steps at short lags and at long ones; only between do hops
    make them sparse, so try several lags. Gaussian noise of variance :math:`s^2` on a step leaves
    its fourth cumulant alone: :math:`kurt = (\mu_4 - 3 \mu_2^2) / (\mu_2 - s^2)^2`; the shape is
    that of maximum likelihood, with the noise convolved into the density.

    Args:
        z: `(N, T, K)`: N molecules, T frames.
        sd: Standard deviation of the Gaussian error of `z` in each frame, as a number, `(K,)` or
            anything that broadcasts with `z`; none by default.
        lags: In frames; with ``time``, in median intervals between frames. Those longer than the
            trajectories are left out.
        time: `(N, T)` or `(T,)`, where intervals are unequal: only frames that are a lag apart to
            10 % are compared.

    Raises:
        InputError: If the shapes are wrong, or there are too few steps at every lag (a lag of too
            few is left out).
    """
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 3 or z.shape[1] < 2:
        raise InputError(f"z: expected trajectories (N, T, K) with T >= 2, got shape {z.shape}")
    if not np.isfinite(z).all():
        raise InputError("z: expected finite numbers")
    lags = tuple(lags)
    if not lags or not all(isinstance(lag, numbers.Integral) and lag >= 1 for lag in lags):
        raise InputError(f"lags: expected positive whole numbers of frames, got {lags}")
    try:
        noise = np.broadcast_to(np.square(0.0 if sd is None else np.asarray(sd, float)), z.shape)
    except ValueError:
        raise InputError(
            f"sd: expected a number, ({z.shape[2]},) or {z.shape}, got shape {np.shape(sd)}"
        ) from None
    if not (np.isfinite(noise).all() and (sd is None or (np.asarray(sd) >= 0).all())):
        raise InputError("sd: expected standard deviations, at least 0")
    if time is not None:
        time = np.asarray(time, dtype=np.float64)
        if time.shape not in (z.shape[:2], z.shape[1:2]):
            raise InputError(f"time: expected shape {z.shape[:2]}, got {time.shape}")
        time = np.broadcast_to(time, z.shape[:2])
        if not (np.diff(time, axis=1) > 0).all():
            raise InputError("time: expected times that grow from frame to frame")
    kept: list[int] = []
    rows, uneven = [], False
    for lag in lags:
        steps, variance, group = _steps(z, noise, time, lag)
        if len(steps) >= STEPS and len(np.unique(group)) > 1:
            if not kept:
                wide = UNEVEN * np.square(steps - steps.mean(axis=0)).mean(axis=0)
                uneven = bool((variance.std(axis=0) > wide).any())
            kept.append(int(lag))
            read = steps, variance, group
            rows.append((len(steps), *moments(*read), *shapes(*read)))
    if not kept:
        raise InputError(f"z: fewer than {STEPS} steps at lags {lags}: too few to tell a shape")
    found = {
        name: np.array(column)
        for name, column in zip(MEASURED, zip(*rows, strict=True), strict=True)
    }
    first = {name: value[0] for name, value in found.items()}
    still = np.isnan(first["kurtosis"])
    gaussian = bool((still | _kinds(first)["gaussian"]).all() and not still.all())
    depends = _depends(first, uneven)
    dependent = bool(depends.any())
    reading = _reading(kept, found, gaussian, depends)
    if uneven:
        reading = reading[:-1] + "; noise is too uneven to tell if sizes of steps are dependent."
    return Increments(
        tuple(kept), **found, gaussian=gaussian, dependent=dependent, sentence=reading
    )


def inferred(
    post: Any, *, chain: int = 0, lags: Sequence[int] = (1, 2, 4), noisy: bool = True
) -> Increments:
    r"""The same of what one seed of a fit inferred, from its posterior means.

    Where all z have variance P, a mean whose posterior has standard deviation s is drawn to the
    prior's by :math:`w = 1 - s^2 / P` and left with an error of variance :math:`w s^2` (as
    conjugate Gaussians are); the error is taken out. Where widths differ, so do w, which alone
    would make Gaussian steps look sparse: all means are brought to the average w, which is left in
    ``sd`` and ``scale``. Widths of draws differ by chance too; that share of it is taken out.

    Args:
        post: What :func:`pyrocryo.posterior` returns, of particles with frames.
        chain: Which seed.
        lags: As for :func:`increments`.
        noisy: Take the posterior's width out.
    """
    draws = np.asarray(post["posterior"]["z"][chain], dtype=np.float64)
    if draws.ndim != 4:
        raise InputError("post: its particles have no frames, so nothing moves")
    mean = draws.mean(axis=0)
    sd = None
    if noisy and len(draws) > 1:
        own = draws.var(axis=0, ddof=1)
        usual, chance = own.mean(axis=0), 2 * np.square(own).mean(axis=0) / (len(draws) + 1)
        own = usual + (own - usual) * np.maximum(1 - chance / np.maximum(own.var(axis=0), TINY), 0)
        centre = mean.mean(axis=(0, 1))
        total = np.square(mean - centre).mean(axis=(0, 1)) + usual
        kept = np.maximum(1 - own / np.maximum(total, TINY), LEAST)
        alike = (1 - usual / np.maximum(total, TINY)) / kept
        mean = centre + (mean - centre) * alike
        sd = alike * np.sqrt(kept * own + own / len(draws))
    constant = post["constant_data"] if "constant_data" in groups(post) else {}
    time = np.asarray(constant["time"]) if "time" in constant else None
    return increments(mean, sd=sd, lags=lags, time=time)


def _steps(
    z: np.ndarray, noise: np.ndarray, time: np.ndarray | None, lag: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps `(n, K)`, their noise's variance `(n, K)` and the stretch `(n,)` each belongs to."""
    frames = z.shape[1]
    stretch = max(1, math.ceil(CLUSTERS / len(z)))
    parts = []
    offsets: Any = (lag,) if time is None else range(1, frames)
    usual = 1.0 if time is None else float(np.median(np.diff(time, axis=1)))
    for offset in offsets:
        if offset >= frames:
            break
        a, b = slice(None, -offset), slice(offset, None)
        start = np.broadcast_to(np.arange(frames - offset), (len(z), frames - offset))
        fits = np.ones(start.shape, bool)
        if time is not None:
            elapsed = (time[:, b] - time[:, a]) / usual
            fits = np.abs(elapsed - lag) <= TOLERANCE * lag
            if elapsed.min() > (1 + TOLERANCE) * lag:
                break
        which = np.arange(len(z))[:, None] * stretch + start * stretch // frames
        parts.append(((z[:, b] - z[:, a])[fits], (noise[:, b] + noise[:, a])[fits], which[fits]))
    if not parts:
        empty = np.empty((0, z.shape[2]))
        return empty, empty, np.empty(0, int)
    steps, variance, group = (np.concatenate(column) for column in zip(*parts, strict=True))
    return steps, variance, group


def _kinds(first: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the steps of each component are; none of it where nobody can tell."""
    shape, error = first["shape"], first["shape_se"]
    kurtosis, wide = first["kurtosis"], first["kurtosis_se"]
    peaked = shape < np.fmin(2 - SURE * error, SPARSE)
    light = kurtosis < np.minimum(-SURE * wide, LIGHT)
    # a density peaked at 0 without the tails that such a peak comes with: one of several peaks
    due = np.minimum(stats.gennorm.stats(shape, moments="k") / 2, 1)
    odd = peaked & (kurtosis + SURE * wide < due)
    return {
        "sparse": peaked & ~odd & (kurtosis > HEAVY * wide),
        "odd": odd,
        "light": light & ~peaked,
        "gaussian": ~peaked & ~light & (SURE * error < 1),
    }


def _depends(first: Mapping[str, np.ndarray], uneven: bool) -> np.ndarray:
    """Which pairs of components depend on each other, `(K, K)`."""
    found = [
        np.abs(first[name]) > np.maximum((SURE + 1) * first[f"{name}_se"], DEPENDENT)
        for name in (("correlation",) if uneven else ("correlation", "magnitude"))
    ]
    return np.triu(np.any(found, axis=0), 1)


def _reading(
    lags: Sequence[int], found: Mapping[str, np.ndarray], gaussian: bool, depends: np.ndarray
) -> str:
    first = {name: value[0] for name, value in found.items()}
    kurtosis, error = found["kurtosis"], found["kurtosis_se"]
    kinds, still = _kinds(first), np.isnan(first["kurtosis"])
    sparse, size = kinds["sparse"], len(still)

    def told(who: np.ndarray) -> str:
        return f"excess kurtosis {np.median(kurtosis[0][who]):.2g}"

    alpha = float(np.median(first["shape"][sparse])) if sparse.any() else math.nan
    if still.all():
        text = "Nothing moves beyond its noise"
    elif gaussian:
        moving = ~still
        wide = float(np.median(error[0][moving]))
        text = (
            f"Gaussian within error ({told(moving)} ± {wide:.1g}): these increments alone "
            "identify no axes, as a rotation (of whitened z) costs nothing"
        )
    elif sparse.all():
        # the tails beyond those that the shape has, which the steps near 0 decide
        tails = kurtosis[0] - stats.gennorm.stats(first["shape"], moments="k")
        if np.median(tails - SURE * error[0]) > 0.5:
            fits = "with heavier tails than that: a Student-t or jump transition fits"
        elif alpha < 0.8:
            fits = "sparser than Laplace steps: a Student-t or jump transition fits"
        elif alpha <= 1.25:
            fits = "a Laplace transition fits"
        else:
            fits = (
                "between Laplace and Gaussian: axes cost less than Laplace steps would make them"
            )
        text = f"Sparse (α = {alpha:.2f}, {told(sparse)}): {fits}"
    elif sparse.any():
        text = (
            f"Sparse in {sparse.sum()} of {size} components (α = {alpha:.2f}, {told(sparse)}), "
            "not in the others"
        )
        if kinds["gaussian"].sum() > 1:
            text += ", which can be turned among themselves at no cost"
    elif kinds["odd"].any():
        odd = kinds["odd"]
        text = (
            f"Peaked without the tails of sparse steps (α = {np.median(first['shape'][odd]):.2f} "
            f"and {told(odd)} disagree): no sparse transition fits; steps with several peaks look "
            "so, as differences of independent draws"
        )
    elif kinds["light"].any():
        text = (
            f"Lighter-tailed than Gaussian ({told(kinds['light'])}): a prior of sparse steps is "
            "wrong about them"
        )
    else:
        wide = float(np.median(error[0][~still]))
        text = f"Too few steps to tell their shape ({told(~still)} ± {wide:.1g})"
    middle = np.array([np.median(row[~still]) if (~still).any() else 0.0 for row in kurtosis])
    best = int(middle.argmax())
    wide = float(np.median(error[best][~still])) if (~still).any() else 0.0
    if middle[best] > max(1.5 * middle[0], middle[0] + SURE * wide, SPARSE):
        text += f"; sparser at a lag of {lags[best]} (excess kurtosis {middle[best]:.2g})"
    if still.any() and not still.all():
        names = ", ".join(str(k + 1) for k in np.flatnonzero(still))
        text += f"; component {names} does not move beyond its noise"
    if depends.any():
        r, sizes = first["correlation"], first["magnitude"]
        strength = np.where(depends, np.maximum(np.abs(r), np.abs(sizes)), 0)
        i, k = np.unravel_index(strength.argmax(), strength.shape)
        text += (
            f"; the components' steps are dependent ({i + 1} and {k + 1} correlate by "
            f"{r[i, k]:.2f}, their sizes by {sizes[i, k]:.2f}), which no prior of "
            "independent steps is right about"
        )
    return text + "."
