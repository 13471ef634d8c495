"""Simulation-based calibration: ranks of true latents among the guide's draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrocryo.diagnose.joint import Dreamt, dreamt
from pyrocryo.diagnose.uniform import alarming, uniform
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Ranks", "sbc"]

WIDTH, BIAS = 0.05, 0.03  # of variance ratios and mean ranks, that go without saying


@dataclass(frozen=True)
class Ranks:
    """Ranks of Q numbers (conformations, angles, shifts) of n particles that each model drew.

    Attributes:
        seeds: Seeds.
        names: Q names.
        draws: S.
        ranks: `(seeds, n, Q)`, 0 to S.
        p: `(seeds, Q)` p-values of uniformity (:func:`pyrocryo.diagnose.uniform`).
        mean_rank: `(seeds, Q)`; ½ if right, less where the guide lies too high.
        variance_ratio: `(seeds, Q)`; 1 if right, more where the guide is too narrow, less where it
            is too wide.
        passed: No p-value below .001 over all of them.
        sentence: In words.
    """

    seeds: tuple[int, ...]
    names: tuple[str, ...]
    draws: int
    ranks: np.ndarray
    p: np.ndarray
    mean_rank: np.ndarray
    variance_ratio: np.ndarray
    passed: bool
    sentence: str


def sbc(
    fit: Fit | Pair, particles: Particles, *, n: int = 512, draws: int = 99, seed: int = 0
) -> Ranks:
    r"""Ranks of `z`, angles and shifts among draws of the guide, in the model's own frame.

    .. math:: z \sim p, \quad x \sim p(x | z), \quad z_s \sim q(z | x), \quad
              r = \#\{s : z_s < z\}

    are uniform if q is the posterior of this model (Cook, Gelman & Rubin 2006; Talts et al. 2018),
    and so are those of any function of latents and image (Modrák et al. 2023), such as an angle
    counted from a pose that the guide names. Drawn from the fitted model, `z` needs no alignment
    with a truth. A model that does not describe the data is not noticed, nor a guide that ignores
    the images altogether (it ranks as its prior does: the gap of
    :func:`pyrocryo.diagnose.importance` tells).

    Args:
        fit: A fit, or one trained pair.
        particles: For known poses, CTFs and other contexts; their images are not looked at.
        n: Particles to draw.
        draws: Draws of the guide for each.
        seed: Seed of all draws.
    """
    return ranked(dreamt(fit, particles, n=n, draws=draws, seed=seed))


def ranked(dreams: dict[int, Dreamt]) -> Ranks:
    """The same of what was drawn already."""
    parts, ranks = [], []
    for dream in dreams.values():
        names, truth, drawn = dream.numbers()
        ranks.append((drawn < truth).sum(axis=0))
        parts.append(uniform(ranks[-1], len(drawn)))
    p, mean, ratio = (np.stack(part) for part in zip(*parts, strict=True))
    sentence, passed = _sentence(names, p, mean, ratio, len(truth)), not alarming(p).any()
    return Ranks(
        tuple(dreams), tuple(names), len(drawn), np.stack(ranks), p, mean, ratio, passed, sentence
    )


def _sentence(names: list[str], p: np.ndarray, mean: np.ndarray, ratio: np.ndarray, n: int) -> str:
    seed, worst = np.unravel_index(p.argmin(), p.shape)
    bad = int(alarming(p).sum())
    if not bad:
        return (
            f"ranks of the truth among the guide's draws are uniform for {n} particles from the "
            f"model (smallest p {p.min():.2g} of {p.size}): the guide is calibrated, as far as "
            "ranks can tell."
        )
    width, off = ratio[seed, worst], mean[seed, worst]
    faults = []
    if abs(off - 0.5) > BIAS:
        faults.append(f"lies too {'high' if off < 0.5 else 'low'} (mean rank {off:.2f})")
    if abs(width - 1) > WIDTH:
        narrow = "narrow" if width > 1 else "wide"
        faults.append(f"is too {narrow} (rank variance {width:.2f} of uniform)")
    fault = " and ".join(faults) or "has the wrong shape"
    return (
        f"ranks of the truth among the guide's draws are not uniform for {bad} of {p.size} "
        f"numbers (p = {p.min():.1g}): the guide of {names[worst]} {fault}."
    )
