"""Posterior predictive checks: whether images look like those that the model makes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from pyrocryo.diagnose.common import batches, models
from pyrocryo.diagnose.residuals import features, numbers, replicated
from pyrocryo.diagnose.uniform import LEVEL
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Predictive", "predictive"]

FEWEST = 40  # particles, for means to be normal
TESTS = ("level", "spectrum", "gain", "mean", "variance", "component", "outlier")
FINE = ("mean", "body")  # the features that take the memory
HELD = 4e9  # bytes of them, at most
AT_ONCE = 64  # columns of them in double precision
FAR = 8.0  # medians of |difference|, some 5 standard deviations: more than that counts as that
FAINT = 0.01  # of the noise: power of decoded images below which a ring's gain is not tested
MANY = 0.1  # share of the images that are not a few stray ones
TINY, SMALLEST = 1e-280, 1e-300
ALONE = 1.1  # how much more a component must hold than the noise at large, to be spoken of


@dataclass(frozen=True)
class Predictive:
    """Residuals of n images beside those of replicates that the model made of them.

    Attributes:
        seeds: Seeds.
        n: Particles.
        names: The tests: ``level`` (mean square of the residuals), ``spectrum`` (their power, ring
            by ring), ``gain`` (how much of the decoded image is
            left in them, in rings where it has 1 % of the power of the noise or more),
            ``mean`` and ``variance`` (pixel by pixel), ``component`` (the image along which
            residuals of one half of the particles vary most, in the other half) and ``outlier``
            (the one image whose mean square lies farthest beyond those of all replicates).
        z: `(seeds, tests)` the largest z-score of each test, with its sign: of n differences
            between image and replicate.
        p: `(seeds, tests)` its p-value, times how many were looked at.
        worst: `(seeds, tests)` which of them it is, a ring or a pixel; of ``outlier`` its row in
            the stack.
        outliers: `(seeds,)` how many images lie beyond all replicates (p < .001 each).
        body: Whether maps are in the particle's frame, as of flat volumes, or in the image's.
        frequency: `(R,)` of the rings, 1/Å.
        level: `(seeds,)` mean square, observed over replicated.
        spectrum: `(seeds, R)` power, observed over replicated.
        gain: `(seeds, R)` product with the decoded image over its power, less that of replicates.
        component: `(seeds,)` variance along it, observed over replicated.
        variance_map: `(seeds, M, M)` residual variance, observed over replicated.
        mean_map: `(seeds, M, M)` mean residual, less that of replicates.
        component_map: `(seeds, C, C)` that image, of unit length, of at most 24 pixels a side.
        passed: No p-value below .001 over all of them.
        sentence: In words.
    """

    seeds: tuple[int, ...]
    n: int
    names: tuple[str, ...]
    z: np.ndarray
    p: np.ndarray
    worst: np.ndarray
    outliers: np.ndarray
    body: bool
    frequency: np.ndarray
    level: np.ndarray
    spectrum: np.ndarray
    gain: np.ndarray
    component: np.ndarray
    variance_map: np.ndarray
    mean_map: np.ndarray
    component_map: np.ndarray
    passed: bool
    sentence: str


def predictive(
    fit: Fit | Pair, particles: Particles, *, most: int = 2048, seed: int = 0
) -> Predictive:
    r"""Compares residuals of images with residuals of images that the model made of them.

    .. math:: z_i \sim q(z | x_i), \quad x_i' \sim p(x | z_i), \quad
              r_i = x_i - g(z), \; z \sim q(z | x_i), \quad
              r_i' = x_i' - g(z'), \; z' \sim q(z | x_i')

    If the model is right and q its posterior, :math:`x_i` and :math:`x_i'` can be exchanged, and
    so any statistic of the one has the law of that of the other (Gelman, Meng & Stern 1996): no
    noise level, number of parameters or error of interpolation need be accounted for. What a test
    averages over particles is compared with that of one replicate each, particle by particle, by
    Student's t: such differences are symmetric, as the mean over several replicates is not. None
    counts for more than 8 times the median one, or a few images of ice or carbon would hide what
    is wrong with all others; these have a test of their own, ``outlier``.

    A wrong noise level shows in all rings alike, wrong optics in gain and spectrum of some, a
    motion that the model lacks in a component. A guide that is off, under a right model, is off
    on replicates too, and mostly passes: :func:`pyrocryo.diagnose.importance` and ranks see that.

    Args:
        fit: A fit, or one trained pair.
        particles: Its particles; better some that it was not trained on.
        most: At most so many of them; more than some 50 000 take too much memory.
        seed: Seed of all draws.

    Raises:
        InputError: If there are fewer than 40 particles, or the pair does not fit them, or their
            residuals take more than 4 GB (40 to 70 kB an image of 64 pixels or more); on the way
            memory rises to half as much again.
    """
    if most < FEWEST:
        raise InputError(f"most: expected at least {FEWEST} particles, got {most}")
    pairs = models(fit, particles, FEWEST)
    some = particles.spread(most)
    for pair in pairs.values():
        _fits(pair, len(some))
    found = [_compared(pair, some, seed) for pair in pairs.values()]
    stacked = {name: np.stack([part[name] for part in found]) for name in found[0]}
    pair = next(iter(pairs.values()))
    frequency = np.arange(pair.box // 2 + 1) / (pair.box * particles.pixel_size)
    passed = bool(stacked["p"].min() * stacked["p"].size >= LEVEL)
    worst = int(stacked["p"].min(axis=1).argmin())
    one = {name: value[worst] for name, value in stacked.items()}
    sentence = _sentence(one, stacked["p"].size, frequency, len(some), passed)
    body = pair.volume.dim == 2
    return Predictive(
        tuple(pairs), len(some), TESTS, body=body, frequency=frequency, passed=passed,
        sentence=sentence, **stacked,
    )  # fmt: skip


def _fits(pair: Pair, n: int) -> None:
    """Raises InputError where residuals of n images and of their replicates are too many."""
    each = 8 * numbers(pair)  # bytes, of an image and of a replicate
    if n * each > HELD:
        raise InputError(
            f"most: residuals of {n} images take {n * each / 1e9:.1f} GB, expected at most "
            f"{int(HELD // each)} images (of {pair.box} pixels; {HELD / 1e9:g} GB)"
        )


def _gathered(pair: Pair, particles: Particles) -> tuple[dict[str, np.ndarray], ...]:
    """Features `(n, F)` of all images, and of as many replicates."""
    held: tuple[dict[str, np.ndarray], ...] = ({}, {})
    start = 0
    for batch in batches(pair, particles):
        for part, one in zip(held, (batch, replicated(pair, batch)), strict=True):
            for name, values in features(pair, one).items():
                if name not in part:
                    part[name] = np.empty((len(particles), values.shape[1]), values.dtype)
                part[name][start : start + len(values)] = values
        start += len(batch.images)
    for part in held:
        if not all(np.isfinite(values).all() for values in part.values()):
            raise InputError("fit: residuals of these particles are not finite numbers")
        part |= {name: values.astype(float) for name, values in part.items() if name not in FINE}
    return held


def _compared(pair: Pair, particles: Particles, seed: int) -> dict[str, np.ndarray]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        seen, made = _gathered(pair, particles)
    image = "body" if "body" in seen else "mean"
    for part in (seen, made):
        least = 1e-12 * part["spectrum"].mean() + TINY
        part["gain"] = part["gain"] / np.maximum(part["signal"].mean(axis=0), least)
        part["component"] = part["coarse"]
    component_map = _component(seen, made)
    # of rings where next to nothing is decoded nothing depends, and trained maps hold noise there
    decoded = made["signal"].mean(axis=0) / np.maximum(made["spectrum"].mean(axis=0), TINY)
    faint = decoded < min(FAINT, decoded.max())
    gain = [part["gain"].mean(axis=0) for part in (seen, made)]
    for part in (seen, made):
        part["gain"] = np.where(faint, 0.0, part["gain"])
    columns = {name: _columns(seen[name], made[name]) for name in TESTS[:-1] if name in seen}
    # where the molecule is, and where the camera is
    both = [_columns(seen[name], made[name]) for name in FINE if name in seen]
    columns |= {"mean": itertools.chain(*both)}
    columns |= {"variance": map(_squares, _columns(seen[image], made[image]))}
    found, mean = zip(*(_paired(columns[name]) for name in TESTS[:-1]), strict=True)
    *odd, outliers = _alone(seen["level"][:, 0], made["level"][:, 0])
    odd[-1] = int(particles.index[odd[-1]])
    z, p, worst = zip(*found, odd, strict=True)
    ratio = {name: a / np.maximum(b, TINY) for name, (a, b) in zip(TESTS[:-1], mean, strict=True)}
    shown = [part[image].mean(axis=0, dtype=float) for part in (seen, made)]
    return {
        "z": np.array(z),
        "p": np.array(p),
        "worst": np.array(worst),
        "outliers": np.array(outliers),
        "level": ratio["level"][0],
        "spectrum": ratio["spectrum"],
        "gain": gain[0] - gain[1],
        "component": ratio["component"][0],
        "variance_map": ratio["variance"].reshape(_square(len(ratio["variance"]))),
        "mean_map": (shown[0] - shown[1]).reshape(_square(len(ratio["variance"]))),
        "component_map": component_map.reshape(_square(len(component_map))),
    }


Columns = Iterable[tuple[np.ndarray, np.ndarray]]  # of images and of replicates


def _columns(seen: np.ndarray, made: np.ndarray) -> Columns:
    """Columns `(n, some)` of both, in double precision: all at once would fill the memory."""
    for start in range(0, seen.shape[1], AT_ONCE):
        yield tuple(part[:, start : start + AT_ONCE].astype(float) for part in (seen, made))


def _squares(several: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of both, about a centre of both alike."""
    seen, made = several
    centre = 0.5 * (seen.mean(axis=0) + made.mean(axis=0))
    return np.square(seen - centre), np.square(made - centre)


def _paired(
    columns: Columns,
) -> tuple[tuple[float, float, int], tuple[np.ndarray, np.ndarray]]:
    """The largest z-score of differences `(n, F)` from replicates, its p-value, its place.

    And the means `(F,)` of images and replicates.
    """
    found, means = [], []
    for seen, made in columns:
        difference, n = seen - made, len(seen)
        far = FAR * np.median(np.abs(difference), axis=0)  # the same whichever sign each has
        far[far == 0] = np.inf
        difference = np.clip(difference, -far, far)
        mean, sd = difference.mean(axis=0), difference.std(axis=0, ddof=1)
        t = np.sign(mean) * np.minimum(np.abs(mean) / np.maximum(sd, TINY), 1e100)
        found.append(t * math.sqrt(n))
        means.append((seen.mean(axis=0), made.mean(axis=0)))
    t = np.concatenate(found)
    p = np.maximum(2 * stats.t.sf(np.abs(t), n - 1), SMALLEST)
    worst = int(p.argmin())
    z = float(np.sign(t[worst]) * stats.norm.isf(p[worst] / 2))
    seen, made = (np.concatenate(part) for part in zip(*means, strict=True))
    return (z, float(min(1.0, len(t) * p[worst])), worst), (seen, made)


def _alone(seen: np.ndarray, made: np.ndarray) -> tuple[float, float, int, int]:
    r"""The z-score of the level farthest beyond those of replicates, its p-value, place and peers.

    If right, the largest of n levels and that of n replicates differ by a logistic number of
    scale β, where their law ends like :math:`e^{-x / \beta}`; β is read off how far the largest
    replicate lies above the median, :math:`\beta \ln n`, and taken twice, as one number says
    little of it. Thinner tails give larger p-values.
    """
    found = []
    for sign in (1, -1):
        top, middle = (sign * made).max(), np.median(sign * made)
        scale = max(2 * (top - middle) / math.log(len(made)), 1e-12 * abs(middle), TINY)
        p = np.exp(np.minimum((top - sign * seen) / scale, 0.0))
        found.append((p.min(), sign, int(p.argmin()), int((p < LEVEL).sum())))
    smallest, sign, worst, _ = min(found)
    p = min(1.0, 2 * max(float(smallest), SMALLEST))
    return sign * float(stats.norm.isf(p / 2)), p, worst, sum(one[-1] for one in found)


def _component(seen: dict[str, np.ndarray], made: dict[str, np.ndarray]) -> np.ndarray:
    """The leading component of the coarse residuals; they become squares `(n, 1)` along it.

    Each along the component of the half of the images that it is not in.
    """
    images = seen["component"]
    halves = np.arange(len(images)) % 2
    along = np.stack([_leading(images[halves != half]) for half in (0, 1)])[halves]
    centre = 0.5 * (seen["component"].mean(axis=0) + made["component"].mean(axis=0))
    for part in (seen, made):
        centred = part["component"] - centre
        part["component"] = np.square((centred * along).sum(axis=-1, keepdims=True))
    return _leading(images)


def _square(count: int) -> tuple[int, int]:
    return math.isqrt(count), math.isqrt(count)


def _leading(images: np.ndarray) -> np.ndarray:
    centred = images - images.mean(axis=0)
    if len(images) < images.shape[1]:
        along = centred.T @ np.linalg.eigh(centred @ centred.T)[1][:, -1]
        return along / max(np.linalg.norm(along), 1e-12)
    return np.linalg.eigh(centred.T @ centred)[1][:, -1]


def _sentence(
    one: dict[str, np.ndarray], looked: int, frequency: np.ndarray, n: int, passed: bool
) -> str:
    if passed:
        return (
            f"{n} images look like those that the model makes of them (smallest p "
            f"{one['p'].min():.2g} of {len(TESTS)} tests): noise level, optics and motions are "
            "none that residuals would tell from the model's."
        )
    bad = {name for name, p in zip(TESTS, one["p"], strict=True) if p * looked < LEVEL}
    level, component = float(one["level"]), float(one["component"])
    told = []
    if "component" in bad and component > ALONE * level:
        told.append(
            f"they vary {component:.1f} times as much along one image, which may be a motion that "
            "the model lacks"
        )
    if "gain" in bad:
        ring = int(one["worst"][TESTS.index("gain")])
        gain, where = one["gain"][ring], _length(frequency[ring])
        told.append(
            f"at {where}, {100 * gain:.0f} % of the decoded image is left: it should be brighter, "
            "by contrast, optics or map"
            if gain > 0
            else f"at {where}, {min(-100 * gain, 100):.0f} % of the decoded image is not in the "
            "images: optics are wrong, or the map is noise there"
        )
    if "level" in bad:
        told.append(f"their variance is {level:.2f} times the model's")
    if "spectrum" in bad and not told:
        ring = int(one["worst"][TESTS.index("spectrum")])
        told.append(
            f"their power at {_length(frequency[ring])} is {one['spectrum'][ring]:.2f} times the "
            "model's: noise of another colour, or wrong optics"
        )
    if "mean" in bad and not told:
        told.append("their mean is not zero: there is something that the model never shows")
    if "outlier" in bad:
        row, count = int(one["worst"][TESTS.index("outlier")]), int(one["outliers"])
        why = "these may be no particles" if count < MANY * n else "noise is not the same in all"
        told.append(f"beyond all replicates: {count}, row {row} of the stack farthest ({why})")
    if not told:
        told.append(f"the test of their {min(bad)} fails")
    return (
        f"{n} images do not look like those that the model makes of them (p = "
        f"{one['p'].min():.1g}, {', '.join(sorted(bad))}): of the residuals, {'; '.join(told)}."
    )


def _length(frequency: float) -> str:
    return "zero frequency" if frequency == 0 else f"{1 / frequency:.0f} Å"
