r"""What molecules do between frames: steps of four shapes, all of the same variance.

Excess kurtoses of a step, which is what breaks the rotation of independent components: Gaussian
0 (breaks nothing), Laplace 3, jumps 9.7 / :math:`\Delta t`, Student-t with 3 degrees of freedom
infinite (its sample kurtosis grows with the sample).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import log_ndtr, ndtr, stdtrit
from scipy.stats import poisson

from pyrocryo.errors import InputError

__all__ = ["SHAPES", "Shape", "drawn", "framed", "normal", "numbers", "stamps"]

Shape = Literal["laplace", "student", "jump", "gaussian"]
SHAPES = get_args(Shape)
DEGREES = 3  # of freedom of Student's t: the fewest whole number with a variance
JUMPS = 0.25  # a mean interval: 22 % of steps hold at least one
CREEP = 0.1  # share of the variance of a step that is there without a jump


def normal(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> np.ndarray:
    """Standard normals `(..., K)`; any two of the K are correlated by ``correlation``."""
    own = rng.standard_normal(shape)
    if not correlation:
        return own
    common = rng.standard_normal((*shape[:-1], 1))
    return np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own


def drawn(
    kind: Shape | Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
    rng: np.random.Generator,
    gap: np.ndarray,
    dim: int,
    correlation: float = 0.0,
) -> np.ndarray:
    r"""Steps `(n, K)` of variance :math:`2 \Delta t`, that of Laplace steps of scale 1 at a gap 1.

    Laplace, Student-t and Gaussian steps are :math:`\sqrt{\Delta t}` times those of a unit gap.
    Jumps are a compound Poisson process on a slow diffusion, whose steps add up to steps of the
    same process over any gap:

    .. math:: \Delta \sim N(0, 2 \Delta t [w + (1 - w) m / r \Delta t]), \quad
              m \sim Poisson(r \Delta t)

    with `r` = .25 jumps in a unit gap and `w` = .1, so that a step holds a jump with probability
    :math:`1 - e^{-r \Delta t}`, and its excess kurtosis is
    :math:`3 (1 - w)^2 / r \Delta t = 9.7 / \Delta t`. Over a gap of 1, and but for steps with two
    jumps (2.6 %), :class:`pyrocryo.priors.JumpTransition` with rate .25, small .45 `b` and large
    2.7 `b` is the law of such steps times `b`. Over longer gaps more steps hold several jumps, of
    which it counts one.

    Dependent steps keep their marginals and share a Gaussian copula; of jumps, their number and
    their size each have one.

    Args:
        kind: A shape, or a function that draws independent steps of unit variance, of a shape
            `(n, K)`; it is called with the generator and that shape. Its copula acts on the
            quantiles of all it drew, so components must share one law. The variance is not
            checked.
        rng: What they are drawn from.
        gap: `(n,)` intervals :math:`\Delta t`, in units of the mean one.
        dim: `K`.
        correlation: Of the copula.
    """
    shape = (len(gap), dim)
    spread = np.sqrt(gap)[:, None]
    if callable(kind):
        return np.sqrt(2) * spread * _own(kind, rng, shape, correlation)
    if kind == "laplace" and not correlation:
        return spread * rng.laplace(size=shape)
    g = normal(rng, shape, correlation)
    if kind == "laplace":
        return spread * -np.sign(g) * (np.log(2) + log_ndtr(-np.abs(g)))
    if kind == "student":
        t = -np.sign(g) * stdtrit(DEGREES, ndtr(-np.abs(g)))
        return spread * np.sqrt(2 * (DEGREES - 2) / DEGREES) * t
    if kind == "gaussian":
        return spread * np.sqrt(2) * g
    mean = JUMPS * gap[:, None]
    jumps = poisson.ppf(ndtr(normal(rng, shape, correlation)), mean)
    return spread * np.sqrt(2 * (CREEP + (1 - CREEP) * jumps / mean)) * g


def stamps(
    interval: float | tuple[float, float],
    rng: np.random.Generator,
    n: int,
    frames: int,
    name: str = "interval",
) -> tuple[np.ndarray, np.ndarray]:
    """Times `(n, T)` from 0, and the gaps between them `(n, T - 1)` over the mean gap.

    Args:
        interval: The gap, or the shortest and the longest of gaps that are uniform between them.
        rng: What they are drawn from; nothing is drawn where all are the same.
        n: Number of molecules.
        frames: `T`, at least 2.
        name: What the interval is called in errors.
    """
    framed(frames)
    ends = np.atleast_1d(numbers(name, interval))
    if ends.shape not in ((1,), (2,)) or not (0 < ends).all() or not np.isfinite(ends).all():
        raise InputError(
            f"{name}: expected a positive number of seconds, or the shortest and the longest, got "
            f"{interval}"
        )
    if ends[0] > ends[-1]:
        raise InputError(f"{name}: expected the shortest first, got {interval}")
    if len(ends) == 1:
        time = np.broadcast_to(ends[0] * np.arange(frames), (n, frames))
        return time.copy(), np.ones((n, frames - 1))
    gap = rng.uniform(*ends, size=(n, frames - 1))
    return np.pad(gap.cumsum(axis=1), ((0, 0), (1, 0))), gap / ends.mean()


def framed(frames: int) -> None:
    """Raises InputError unless ``frames`` is a number of frames in time."""
    if not isinstance(frames, (int, np.integer)) or frames < 2:
        raise InputError(f"frames: expected a whole number, at least 2, got {frames!r}")


def numbers(name: str, value: Any) -> np.ndarray:
    """``value`` as an array of floats, or an error that names it."""
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected numbers, got {value!r}") from None


def _own(
    draw: Any, rng: np.random.Generator, shape: tuple[int, ...], correlation: float
) -> np.ndarray:
    """What a function of the user's draws, its quantiles in the order of a copula."""
    found = np.asarray(draw(rng, shape))
    if found.shape != shape or found.dtype.kind not in "iuf" or not np.isfinite(found).all():
        raise InputError(
            f"steps: expected finite numbers of shape {shape} from {draw!r}, got "
            f"{found.dtype} of shape {found.shape}"
        )
    if not correlation:
        return found
    level = ndtr(normal(rng, shape, correlation))
    ranked = np.sort(found, axis=None)
    return ranked[np.minimum((level * found.size).astype(int), found.size - 1)]
