"""Posterior predictive checks: whether images look like those that the model makes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from pyrocryo.diagnose.common import batches, first, models
from pyrocryo.diagnose.residuals import features, replicated
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Predictive", "predictive"]

LEVEL = 0.01
FEWEST = 40  # particles, for means to be normal
TESTS = ("level", "spectrum", "gain", "mean", "variance", "component")
ALONE = 1.1  # how much more a component must hold than the noise at large, to be spoken of


@dataclass(frozen=True)
class Predictive:
    """Residuals of n images beside those of replicates that the model made of them.

    Attributes:
        seeds: Seeds.
        n: Particles.
        names: The tests: ``level`` (mean square of the residuals), ``spectrum`` (their power, ring
            by ring), ``gain`` (how much of the decoded image is left in them, ring by ring),
            ``mean`` and ``variance`` (pixel by pixel) and ``component`` (the image along which
            residuals of one half of the particles vary most, in the other half).
        z: `(seeds, tests)` the largest z-score of each test, with its sign: of n differences
            between image and replicate.
        p: `(seeds, tests)` its p-value, times how many were looked at.
        worst: `(seeds, tests)` which of them it is, a ring or a pixel.
        body: Whether maps are in the particle's frame, as of flat volumes, or in the image's.
        frequency: `(R,)` of the rings, 1/Å.
        level: `(seeds,)` mean square, observed over replicated.
        spectrum: `(seeds, R)` power, observed over replicated.
        gain: `(seeds, R)` product with the decoded image over its power, less that of replicates.
        component: `(seeds,)` variance along it, observed over replicated.
        variance_map: `(seeds, D, D)` residual variance, observed over replicated.
        mean_map: `(seeds, D, D)` mean residual, less that of replicates.
        component_map: `(seeds, D, D)` that image, of unit length.
        passed: No p-value below .01 over all of them.
        verdict: In words.
    """

    seeds: tuple[int, ...]
    n: int
    names: tuple[str, ...]
    z: np.ndarray
    p: np.ndarray
    worst: np.ndarray
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
    verdict: str


def predictive(
    fit: Fit | Pair, particles: Particles, *, most: int = 512, replicates: int = 2, seed: int = 0
) -> Predictive:
    r"""Compares residuals of images with residuals of images that the model made of them.

    .. math:: z_i \sim q(z | x_i), \quad x_i' \sim p(x | z_i), \quad
              r_i = x_i - g(z), \; z \sim q(z | x_i), \quad r_i' = x_i' - g(z'), \; z' \sim q(z | x_i')

    If the model is right and q its posterior, :math:`x_i` and :math:`x_i'` can be exchanged, and
    so any statistic of the one has the law of that of the other (Gelman, Meng & Stern 1996): no
    noise level, number of parameters or error of interpolation need be accounted for. What a test
    averages over particles is compared with its replicates, particle by particle, by Student's t.

    A wrong noise level shows in all rings alike, wrong optics in gain and spectrum of some, a
    motion that the model lacks in a component. A guide that is off, under a right model, is off
    on replicates too, and mostly passes: :func:`pyrocryo.diagnose.importance` and ranks see that.

    Args:
        fit: A fit, or one trained pair.
        particles: Its particles; better some that it was not trained on.
        most: At most so many of them.
        replicates: Replicates of each.
        seed: Seed of all draws.

    Raises:
        InputError: If there are fewer than 40 particles, or the pair does not fit them.
    """
    if replicates < 1:
        raise InputError(f"replicates: expected at least 1, got {replicates}")
    if most < FEWEST:
        raise InputError(f"most: expected at least {FEWEST} particles, got {most}")
    pairs = models(fit, particles, FEWEST)
    some = first(particles, most)
    found = [_compared(pair, some, replicates, seed) for pair in pairs.values()]
    stacked = {name: np.stack([part[name] for part in found]) for name in found[0]}
    pair = next(iter(pairs.values()))
    frequency = np.arange(pair.box // 2 + 1) / (pair.box * particles.pixel_size)
    passed = bool(stacked["p"].min() * stacked["p"].size >= LEVEL)
    worst = int(stacked["p"].min(axis=1).argmin())
    one = {name: value[worst] for name, value in stacked.items()}
    verdict = _verdict(one, stacked["p"].size, frequency, len(some), passed)
    body = pair.volume.dim == 2
    return Predictive(
        tuple(pairs), len(some), TESTS, body=body, frequency=frequency, passed=passed,
        verdict=verdict, **stacked,
    )  # fmt: skip


def _compared(pair: Pair, particles: Particles, replicates: int, seed: int) -> dict[str, np.ndarray]:
    rows: list[list[dict[str, np.ndarray]]] = [[] for _ in range(replicates + 1)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in batches(pair, particles):
            rows[0].append(features(pair, batch))
            for several in rows[1:]:
                several.append(features(pair, replicated(pair, batch)))
    seen, *made = (
        {name: np.concatenate([part[name] for part in several]) for name in several[0]}
        for several in rows
    )
    image = "body" if "body" in seen else "mean"
    for part in (seen, *made):
        centre = part[image].mean(axis=0)
        part["variance"] = np.square(part[image] - centre)
        part["shown"] = part[image]
        part["gain"] = part["gain"] / np.maximum(part["signal"].mean(axis=0), 1e-12)
    along, component_map = _component(seen["shown"], [part["shown"] for part in made])
    tests = {name: (seen[name], [part[name] for part in made]) for name in TESTS[:-1]}
    if image == "body":  # where the molecule is, and where the camera is
        tests["mean"] = tuple(
            np.concatenate([seen["mean"], seen["body"]], axis=1)
            if k == 0
            else [np.concatenate([part["mean"], part["body"]], axis=1) for part in made]
            for k in range(2)
        )
    tests["component"] = along
    z, p, worst = zip(*(_paired(*tests[name]) for name in TESTS), strict=True)
    side = (pair.box, pair.box)
    mean = {
        name: (seen[name].mean(axis=0), np.mean([part[name] for part in made], axis=(0, 1)))
        for name in ("level", "spectrum", "gain", "variance", "shown")
    }
    ratio = {
        name: a / np.maximum(b, 1e-12) for name, (a, b) in mean.items() if name != "shown"
    }
    return {
        "z": np.array(z),
        "p": np.array(p),
        "worst": np.array(worst),
        "level": ratio["level"][0],
        "spectrum": ratio["spectrum"],
        "gain": mean["gain"][0] - mean["gain"][1],
        "component": along[0].mean() / max(np.mean(along[1]), 1e-12),
        "variance_map": ratio["variance"].reshape(side),
        "mean_map": (mean["shown"][0] - mean["shown"][1]).reshape(side),
        "component_map": component_map.reshape(side),
    }


def _paired(seen: np.ndarray, made: list[np.ndarray]) -> tuple[float, float, int]:
    """The largest z-score of differences `(n, F)` from replicates, its p-value, and which it is."""
    difference = seen - np.mean(made, axis=0)
    n, count = difference.shape
    mean, sd = difference.mean(axis=0), difference.std(axis=0, ddof=1)
    t = np.where(sd > 1e-12, mean / np.maximum(sd, 1e-12), 0.0) * np.sqrt(n)
    p = np.maximum(2 * stats.t.sf(np.abs(t), n - 1), 1e-300)
    worst = int(p.argmin())
    z = float(np.sign(t[worst]) * stats.norm.isf(p[worst] / 2))
    return z, float(min(1.0, count * p[worst])), worst


def _component(
    seen: np.ndarray, made: list[np.ndarray]
) -> tuple[tuple[np.ndarray, list[np.ndarray]], np.ndarray]:
    """Squares `(n, 1)` along the leading component of the other half, and that of all."""
    halves = np.arange(len(seen)) % 2
    squares = [np.empty((len(seen), 1)) for _ in range(1 + len(made))]
    for half in (0, 1):
        along = _leading(seen[halves == half])
        for column, images in zip(squares, (seen, *made), strict=True):
            other = images[halves != half]
            column[halves != half] = np.square((other - other.mean(axis=0)) @ along)[:, None]
    return (squares[0], squares[1:]), _leading(seen)


def _leading(images: np.ndarray) -> np.ndarray:
    centred = images - images.mean(axis=0)
    if len(images) < images.shape[1]:
        along = centred.T @ np.linalg.eigh(centred @ centred.T)[1][:, -1]
        return along / max(np.linalg.norm(along), 1e-12)
    return np.linalg.eigh(centred.T @ centred)[1][:, -1]


def _verdict(
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
        told.append(
            f"{100 * one['gain'][ring]:+.0f} % of the decoded image is left at "
            f"{_length(frequency[ring])}: optics, contrast or map are wrong"
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
    if not told:
        told.append(f"the test of their {min(bad)} fails")
    return (
        f"{n} images do not look like those that the model makes of them (p = "
        f"{one['p'].min():.1g}, {', '.join(sorted(bad))}): of the residuals, {'; '.join(told)}."
    )


def _length(frequency: float) -> str:
    return "zero frequency" if frequency == 0 else f"{1 / frequency:.0f} Å"
