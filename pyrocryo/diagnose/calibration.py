"""Whether credible sets hold the truth as often as they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from pyrocryo import unit_vectors
from pyrocryo.diagnose.joint import Dreamt, dreamt
from pyrocryo.diagnose.tarp import distance
from pyrocryo.diagnose.uniform import alarming
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Calibration", "calibration", "coverage"]

LEVELS = (0.5, 0.9)
SLACK = 0.03  # how far off coverage may be all the same


@dataclass(frozen=True)
class Calibration:
    """Share of truths within credible sets.

    Attributes:
        seeds: Seeds.
        names: Q: each latent and shift by its central interval, poses by the ball about their
            mean.
        levels: `(L,)` what the sets say, .5 and .9.
        coverage: `(seeds, Q, L)` what they hold.
        se: `(L,)` standard error of these, if right.
        passed: None is off by more than .03 and by more than chance allows (p < .001 over all).
        sentence: In words.
    """

    seeds: tuple[int, ...]
    names: tuple[str, ...]
    levels: np.ndarray
    coverage: np.ndarray
    se: np.ndarray
    passed: bool
    sentence: str


def calibration(
    fit: Fit | Pair, particles: Particles, *, n: int = 512, draws: int = 199, seed: int = 0
) -> Calibration:
    """Coverage of the guide's 50 % and 90 % credible sets, in the model's own frame.

    Of particles drawn from the model, as for :func:`pyrocryo.diagnose.sbc`. Where the truth of
    real or simulated particles is known in the very frame of the fit (the decoder being the
    molecule itself, say), :func:`coverage` compares it with the draws of ``pc.posterior``.

    Args:
        fit: A fit, or one trained pair.
        particles: For known poses, CTFs and other contexts; their images are not looked at.
        n: Particles to draw from the model.
        draws: Draws of the guide for each.
        seed: Seed of all draws.
    """
    return calibrated(dreamt(fit, particles, n=n, draws=draws, seed=seed))


def coverage(
    truth: np.ndarray, draws: np.ndarray, levels: tuple[float, ...] = LEVELS
) -> np.ndarray:
    r"""Share of truths within central credible intervals, or balls about mean poses.

    The interval of level α holds a truth whose rank among S draws is in the middle α of S + 1
    places, so that sampling does not widen it; a ball, one nearer to the mean pose than all but
    a share 1 − α of the draws. Of a place that is in it by half, half of the truths count, so
    that exact posteriors hold α whatever S.

    Args:
        truth: `(n, Q)` numbers; or poses, unit vectors `(n, 1, 2)` or quaternions `(n, 1, 4)`.
        draws: `(S, n, Q)`, or `(S, n, 1, 2 or 4)`.
        levels: L levels.

    Returns:
        `(Q, L)`.
    """
    truth, draws = np.asarray(truth), np.asarray(draws)
    if draws.shape[1:] != truth.shape or truth.ndim not in (2, 3) or len(draws) < 9:
        raise InputError(
            f"draws: expected (S, n, Q) beside a truth (n, Q), of 9 or more, got {draws.shape} "
            f"and {truth.shape}"
        )
    if truth.ndim == 2:
        rank, count = (draws < truth).sum(axis=0), len(draws) + 1
        return _held(rank, count, [(0.5 * (1 - a), 0.5 * (1 + a)) for a in levels])
    half = len(draws) // 2  # a centre of the same draws would be nearer to them than to the truth
    centre = unit_vectors.mean(torch.as_tensor(draws[:half])).numpy()
    rank = (distance(draws[half:], centre) < distance(truth, centre)).sum(axis=0)
    return _held(rank, len(draws) - half + 1, [(0.0, a) for a in levels])


def _held(rank: np.ndarray, count: int, sets: list[tuple[float, float]]) -> np.ndarray:
    """Share `(Q, L)` of ranks `(n, Q)` in sets of `count` places, from 0 to 1 altogether."""
    low, high = rank / count, (rank + 1) / count
    inside = [np.minimum(high, b) - np.maximum(low, a) for a, b in sets]
    return np.stack([(np.maximum(one, 0.0) * count).mean(axis=0) for one in inside], axis=-1)


def calibrated(dreams: dict[int, Dreamt]) -> Calibration:
    """The same of what was drawn already."""
    found = []
    for dream in dreams.values():
        parts, names = [], []
        for label, truth, draws in _columns(dream):
            parts.append(coverage(truth, draws))
            names += label
        found.append(np.concatenate(parts))
    held, levels, n = np.stack(found), np.array(LEVELS), len(dream.truth["z"])
    se = np.sqrt(levels * (1 - levels) / n)
    off = held - levels
    p = 2 * stats.norm.sf(np.abs(off) / se)
    bad = alarming(p) & (np.abs(off) > SLACK)
    worst = np.unravel_index((np.abs(off) / se).argmax(), off.shape)
    low, high = (100 * f(held[..., -1]) for f in (np.min, np.max))
    sentence = (
        f"90 % credible sets hold {low:.0f} to {high:.0f} % of the truths, over {n} particles "
        f"from the model and {held.shape[1]} numbers"
    )
    if bad.any():
        name, level = names[worst[1]], 100 * levels[worst[2]]
        side = "too narrow, or off" if off[worst] < 0 else "too wide"
        sentence += (
            f"; worst is {name}, whose {level:.0f} % sets hold {100 * held[worst]:.0f} %: {side}."
        )
    else:
        sentence += ": as they should."
    return Calibration(tuple(dreams), tuple(names), levels, held, se, not bad.any(), sentence)


def _columns(dream: Dreamt) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, truths and draws of what is covered alike; of several frames, the first."""
    columns = []
    for site, truth in dream.truth.items():
        draws = dream.draws[site]
        if dream.frames is not None:
            truth, draws = truth[..., 0, :], draws[..., 0, :]
        if site == "pose":
            columns.append(([site], truth[:, None], draws[:, :, None]))
        else:
            labels = [
                f"z{k + 1}" if site == "z" else f"{site}_{'xy'[k]}" for k in range(truth.shape[-1])
            ]
            columns.append((labels, truth, draws))
    return columns
