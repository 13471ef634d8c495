"""Explicitness: whether a linear classifier can tell a factor's values apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from pyrocryo.metrics.factors import Factors, pair_up
from pyrocryo.metrics.r2 import halves
from pyrocryo.metrics.score import Score, with_floor

__all__ = ["explicitness", "explicitness_value"]

ROWS = 3000  # to fit on, at most
PENALTY = 1e-4  # a particle


def explicitness(
    factors: np.ndarray | Sequence[np.ndarray] | Factors,
    z: np.ndarray,
    *,
    kinds: Sequence[str] | None = None,
    frames: int = 1,
    seed: int = 0,
) -> Score:
    """Area under the ROC curve of a logistic regression of each factor (Ridgeway & Mozer 2018).

    One class against the rest, the mean over classes and factors; fitted on one half (3000
    particles at most) of the standardised latents and scored on the other. The penalty a particle
    is that of the original on its 10 000 (C = 1), however many there are here. Continuous factors
    are cut into 20 bins of equal counts, discrete ones taken as they are. .5 is chance, and what a
    linear classifier reads is blind to rotations: it says that information is there, not that it
    is separated.

    Args:
        factors: `(N, K)` numbers, or blocks of any kind.
        z: `(N, L)` latents.
        kinds: "linear", "circular" or "so3", one a factor.
        frames: Consecutive rows that belong to one molecule, and go into the same half.
        seed: Draws the halves and the floor.
    """
    factors, z = pair_up(factors, z, kinds)
    parts = halves(len(z), frames, seed)
    return with_floor(lambda z: explicitness_value(factors, z, parts), z, seed, permutations=1)


def explicitness_value(
    factors: Factors, z: np.ndarray, parts: tuple[np.ndarray, np.ndarray]
) -> float:
    """The explicitness alone, on given halves."""
    from sklearn.linear_model import LogisticRegression

    fit, score = parts[0][:ROWS], parts[1]
    sd = z[fit].std(axis=0)
    z = (z - z[fit].mean(axis=0)) / np.where(sd > 0, sd, 1.0)
    areas = []
    for classes in factors.classes.T:
        model = LogisticRegression(C=1 / (PENALTY * len(fit)), max_iter=5000, tol=1e-3)
        model.fit(z[fit], classes[fit])
        member = classes[score][:, None] == model.classes_
        areas.append(_area(member, model.predict_proba(z[score])))
    return float(np.mean(areas))


def _area(member: np.ndarray, scores: np.ndarray) -> float:
    """Mean ROC-AUC of columns `(N, classes)`, by ranks; classes that do not occur are left out."""
    inside = member.sum(axis=0)
    outside = len(member) - inside
    used = (inside > 0) & (outside > 0)
    ranks = np.where(member, rankdata(scores, axis=0), 0).sum(axis=0)
    above = ranks[used] - inside[used] * (inside[used] + 1) / 2
    return float((above / (inside[used] * outside[used])).mean())
