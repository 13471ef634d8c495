"""Tests of accuracy with random points: coverage of balls about points drawn from the prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrocryo.diagnose.joint import Dreamt, dreamt
from pyrocryo.diagnose.uniform import alarming, uniform
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Balls", "distance", "tarp"]

ALPHA = np.linspace(0.0, 1.0, 21)


@dataclass(frozen=True)
class Balls:
    """Expected coverage of balls, for `z`, poses and shifts, each with all its axes at once.

    Attributes:
        seeds: Seeds.
        names: P of ``z``, ``pose`` and ``shift``.
        alpha: `(A,)` credible levels.
        coverage: `(seeds, P, A)` share of truths within; ``alpha`` if right.
        p: `(seeds, P)` p-values.
        passed: No p-value below .001 over all of them.
        sentence: In words.
    """

    seeds: tuple[int, ...]
    names: tuple[str, ...]
    alpha: np.ndarray
    coverage: np.ndarray
    p: np.ndarray
    passed: bool
    sentence: str


def tarp(
    fit: Fit | Pair, particles: Particles, *, n: int = 512, draws: int = 99, seed: int = 0
) -> Balls:
    r"""Balls of the balls about random points that reach to the truth.

    .. math:: f = \frac1S \#\{s : d(z_s, r) < d(z, r)\}

    is uniform, whatever the law of the points `r`, if the draws are from the posterior (Lemos et
    al. 2023, theorem 3), here with `r` from the prior: Euclidean distances for `z` (each latent in
    standard deviations of its truths) and shifts, angles between poses. All axes are tested
    together, so that a posterior with the right margins and a wrong shape shows. A guide that is
    off the same way everywhere is seen poorly, as the points lie on all sides of it: ranks
    (:func:`pyrocryo.diagnose.sbc`) are made for that. Of several frames the first is looked at.

    Args:
        fit: A fit, or one trained pair.
        particles: For known poses, CTFs and other contexts; their images are not looked at.
        n: Particles to draw from the model.
        draws: Draws of the guide for each.
        seed: Seed of all draws.
    """
    return covered(dreamt(fit, particles, n=n, draws=draws, seed=seed))


def covered(dreams: dict[int, Dreamt]) -> Balls:
    """The same of what was drawn already."""
    curves, p = [], []
    for dream in dreams.values():
        names = tuple(dream.truth)
        ranks = np.stack([_ranks(dream, name) for name in names], axis=-1)
        draws = len(dream.draws["z"])
        p.append(uniform(ranks, draws)[0])
        f = (ranks + 0.5) / (draws + 1)
        curves.append([np.searchsorted(np.sort(column), ALPHA) / len(f) for column in f.T])
    p, curves = np.stack(p), np.array(curves)
    passed = not alarming(p).any()
    seed, worst = np.unravel_index(p.argmin(), p.shape)
    off = curves[seed, worst] - ALPHA
    inside = off[3 * len(ALPHA) // 4 :].mean() - off[: len(ALPHA) // 4].mean()
    if passed:
        sentence = (
            f"balls about random points hold as many truths as draws (smallest p {p.min():.2g} of "
            f"{p.size}): joint coverage is right, as far as these points can tell."
        )
    else:
        shape = "too wide" if inside > 0 else "too narrow, or off"
        sentence = (
            f"balls about random points do not hold as many truths as draws (p = {p.min():.1g}, "
            f"coverage off by up to {abs(off).max():.2f}): the guide of {names[worst]} is {shape}."
        )
    return Balls(tuple(dreams), names, ALPHA, curves, p, passed, sentence)


def _ranks(dream: Dreamt, name: str) -> np.ndarray:
    """`(n,)` how many draws lie nearer to the random point than the truth."""
    truth, draws, point = dream.truth[name], dream.draws[name], dream.other[name]
    if dream.frames is not None:
        truth, draws, point = truth[..., 0, :], draws[..., 0, :], point[..., 0, :]
    if name == "pose":
        return (distance(draws, point) < distance(truth, point)).sum(axis=0)
    scale = np.maximum(truth.std(axis=0), 1e-12)
    near, far = (np.linalg.norm((a - point) / scale, axis=-1) for a in (draws, truth))
    return (near < far).sum(axis=0)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles (rad) `(...)` between poses: unit vectors `(..., 2)`, or quaternions `(..., 4)`."""
    if a.shape[-1] == 4:  # q and -q are one rotation
        near = np.minimum(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))
        return 4 * np.arcsin(np.minimum(near / 2, 1.0))
    return 2 * np.arcsin(np.minimum(np.linalg.norm(a - b, axis=-1) / 2, 1.0))
