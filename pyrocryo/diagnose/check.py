"""All checks of a posterior together, from one set of draws each, and one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrocryo.diagnose.calibration import Calibration, calibrated
from pyrocryo.diagnose.common import models
from pyrocryo.diagnose.dimensions import Dimensions, dimensions
from pyrocryo.diagnose.importance import Importance, importance
from pyrocryo.diagnose.joint import FEWEST_DREAMS, dreamt
from pyrocryo.diagnose.predictive import FEWEST, Predictive, predictive
from pyrocryo.diagnose.sbc import Ranks, ranked
from pyrocryo.diagnose.sensitivity import Sensitivity, scaled
from pyrocryo.diagnose.tarp import Balls, covered
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Checked", "check"]

FEWEST_DRAWS = 50  # of 25, k-hat is above .7 for a tenth of the particles of an exact guide
GUIDE = ("khat", "gap", "sbc", "tarp", "calibration")


@dataclass(frozen=True)
class Checked:
    """What the checks found.

    Attributes:
        seeds: Seeds.
        particles: `(n,)` rows in the stack of the particles that were looked at.
        importance: k-hat, effective draws, gap.
        sbc: Ranks in the model's own frame.
        tarp: Balls of balls about random points.
        calibration: Balls of credible sets.
        predictive: Residuals beside those of replicates.
        dimensions: Active latents and widths, one a seed.
        sensitivity: To prior and likelihood.
        alarms: Which of ``khat``, ``gap``, ``sbc``, ``tarp``, ``calibration`` and ``predictive``
            did not pass.
        sentence: The verdict.
    """

    seeds: tuple[int, ...]
    particles: np.ndarray
    importance: Importance
    sbc: Ranks
    tarp: Balls
    calibration: Calibration
    predictive: Predictive
    dimensions: tuple[Dimensions, ...]
    sensitivity: Sensitivity
    alarms: tuple[str, ...]
    sentence: str

    @property
    def passed(self) -> bool:
        """Whether no alarm was raised."""
        return not self.alarms

    def as_dict(self) -> dict[str, Any]:
        """What ``diagnose.json`` holds: all but the draws."""
        told = {name: getattr(self, name) for name in ("sentence", "passed", "alarms", "seeds")}
        told |= {"particles": self.particles, "importance": self.importance.as_dict()}
        names = ("sbc", "tarp", "calibration", "dimensions", "sensitivity")
        told |= {name: getattr(self, name) for name in names}
        told["predictive"] = seen = {**vars(self.predictive)}
        for name in ("variance_map", "mean_map", "component_map"):
            size = max(float(np.abs(seen[name]).max()), 1e-280)  # images may be of any scale
            seen[name] = (seen[name] / size).round(4) * size
        return told


def check(
    fit: Fit | Pair,
    particles: Particles,
    *,
    draws: int = 200,
    n: int = 512,
    images: int = 2048,
    most: int = 256,
    seed: int = 0,
) -> Checked:
    """Asks of a fit whether its posterior is to be believed.

    First whether the guide is the posterior of the model: importance weights of particles that
    were held out (all, where none were), ranks and coverage of particles drawn from the model.
    Then whether the model is that of the images: posterior predictive checks. What each can see
    is in ``docs/calibrate_and_trust.md``. Where all is right, each raises a false alarm in about
    one case of a thousand.

    Example::

        checked = pc.diagnose.check(fit, particles)
        print(checked.sentence)

    Args:
        fit: A fit, or one trained pair.
        particles: Its particles, at least 40.
        draws: Draws of the guide for each particle whose weights are looked at.
        n: Particles to draw from the model.
        images: At most so many images are compared with replicates.
        most: Particles whose weights are looked at.
        seed: Seed of all draws.

    Raises:
        InputError: If there are fewer than 40 particles, 50 draws, ``n`` of 20, 40 images or
            ``most`` of 2, or the pair does not fit the particles.
    """
    if len(particles) < FEWEST:
        raise InputError(f"particles: expected at least {FEWEST}, got {len(particles)}")
    least = {"draws": FEWEST_DRAWS, "n": FEWEST_DREAMS, "images": FEWEST, "most": 2}
    for name, value in (("draws", draws), ("n", n), ("images", images), ("most", most)):
        if value < least[name]:
            raise InputError(f"{name}: expected at least {least[name]}, got {value}")
    models(fit, particles, FEWEST)
    some = particles
    if particles.has_test and len(particles.test) >= FEWEST:
        some = particles.test
    weights = importance(fit, some, draws=draws, most=most, seed=seed)
    dreams = dreamt(fit, some, n=n, draws=99, seed=seed)
    ranks, balls, sets = ranked(dreams), covered(dreams), calibrated(dreams)
    seen = predictive(fit, some, most=images, seed=seed)
    k = weights.z.shape[-1]
    told = tuple(
        dimensions(z.mean(axis=0).reshape(-1, k), np.maximum(z.std(axis=0), 1e-9).reshape(-1, k))
        for z in weights.z
    )
    good = {
        "khat": weights.khat_passed,
        "gap": weights.gap_passed,
        "sbc": ranks.passed,
        "tarp": balls.passed,
        "calibration": sets.passed,
        "predictive": seen.passed,
    }
    alarms = tuple(name for name, passed in good.items() if not passed)
    sentences = {
        "khat": weights.sentence,
        "gap": weights.sentence,
        "sbc": ranks.sentence,
        "tarp": balls.sentence,
        "calibration": sets.sentence,
        "predictive": seen.sentence,
    }
    return Checked(
        weights.seeds,
        some.spread(most).index,
        weights,
        ranks,
        balls,
        sets,
        seen,
        told,
        scaled(weights),
        alarms,
        _sentence(alarms, sentences),
    )


def _sentence(alarms: tuple[str, ...], sentences: dict[str, str]) -> str:
    guide = [name for name in alarms if name in GUIDE]
    if not alarms:
        return (
            "No alarm: the guide's draws are those of the model's posterior, and the images look "
            "like the model's. Neither says that the axes of z are identified."
        )
    parts = []
    if guide:
        # ranks say in which way it is off; weights, how much
        chosen = next(
            name for name in ("sbc", "gap", "khat", "tarp", "calibration") if name in guide
        )
        parts.append(
            f"The guide is not the model's posterior ({', '.join(guide)}): {sentences[chosen]}"
        )
    if "predictive" in alarms:
        parts.append(f"The model does not describe the images: {sentences['predictive']}")
    elif guide:
        parts.append("Of the model itself, residuals show nothing wrong.")
    return " ".join(parts)
