"""DCI: disentanglement, completeness and informativeness, by the regressor that is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.factors import Factors, pair_up
from pyrocryo.metrics.r2 import halves
from pyrocryo.metrics.score import Score, permuted_columns

__all__ = ["DCI", "boosted", "dci", "dci_values"]

ROWS = 3000  # to fit on, at most: importances have settled by then
LEAST = 0.02  # informativeness below is none, whatever the floor
SMALL = 1e-11


@dataclass(frozen=True)
class DCI:
    """The three scores, and what they were measured with.

    Attributes:
        disentanglement: Whether a latent matters to one factor only.
        completeness: Whether a factor is read from one latent only.
        informativeness: Held-out R² (regressors) or accuracy (classifiers), mean over factors.
        estimator: The regressor. It is part of the metric's name: at 22.5° boosted regression
            trees give D = .46, the original classifier .10.
    """

    disentanglement: Score
    completeness: Score
    informativeness: Score
    estimator: str


def dci(
    factors: np.ndarray | Sequence[np.ndarray] | Factors,
    z: np.ndarray,
    *,
    kinds: Sequence[str] | None = None,
    estimator: Any = None,
    frames: int = 1,
    seed: int = 0,
) -> DCI:
    r"""Disentanglement, completeness and informativeness (Eastwood & Williams 2018).

    With the importance `R_{lk}` of latent `l` to the prediction of factor `k`,

    .. math:: D = \sum_l \frac{\sum_k R_{lk}}{\sum R} [1 - H_K(R_{l\cdot})], \quad
        C = \sum_k \frac{\sum_l R_{lk}}{\sum R} [1 - H_L(R_{\cdot k})]

    `H_b` the entropy to base `b` of the normalised row or column. Where the latents predict
    nothing (informativeness no better than its floor, or below .02) importances are noise and D
    and C are 0. D needs two factors and C two latents, and are NaN otherwise.

    Importances of noise are no less than those of a signal, so latents that predict a factor
    badly, or one factor of several not at all, score low in D and C however well they are
    separated: 2° off, D is 1 without noise, .88 at R² = .8 and .39 at R² = .24.

    Regressors predict continuous factors as they are, so nothing needs classes; the cos and sin
    of an angle and the entries of a rotation are predicted one by one, and their importances
    weighed by what is explained of each. The original definition is
    ``estimator=GradientBoostingClassifier()``, which gets the classes of
    :class:`~pyrocryo.metrics.factors.Factors` and is slow (minutes). Lasso is no choice: it gives
    1 for random latents.

    Args:
        factors: `(N, K)` numbers, or blocks of any kind.
        z: `(N, L)` latents.
        kinds: "linear", "circular" or "so3", one a factor.
        estimator: A scikit-learn regressor or classifier with ``feature_importances_``; None for
            boosted regression trees (50 of depth 3).
        frames: Consecutive rows that belong to one molecule, and go into the same half.
        seed: Draws the halves, the trees and the floor.
    """
    factors, z = pair_up(factors, z, kinds)
    estimator = boosted() if estimator is None else estimator
    parts = halves(len(z), frames, seed)
    permuted = permuted_columns(z, np.random.default_rng(seed))
    floor = dci_values(factors, permuted, parts, estimator, seed)
    value = dci_values(factors, z, parts, estimator, seed, floor[2])
    return DCI(*(Score(*pair) for pair in zip(value, floor, strict=True)), repr(estimator))


def boosted() -> Any:
    """The default: 50 boosted trees of depth 3, each on half of the particles."""
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(n_estimators=50, subsample=0.5)


def dci_values(
    factors: Factors,
    z: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    estimator: Any,
    seed: int = 0,
    least: float = 0.0,
) -> tuple[float, float, float]:
    """D, C and I alone; D and C are 0 unless I is above ``least``."""
    from sklearn.base import clone, is_classifier

    fit, score = parts[0][:ROWS], parts[1]
    classify = is_classifier(estimator)
    importance, informativeness = np.empty((z.shape[1], factors.count)), []
    for k, targets in enumerate(factors.targets):
        if classify:
            targets = factors.classes[:, k : k + 1]
        predicted = np.empty((len(score), targets.shape[1]))
        of_target = np.empty((targets.shape[1], z.shape[1]))
        for n, target in enumerate(targets.T):
            model = clone(estimator)
            if "random_state" in model.get_params():
                model.set_params(random_state=seed)
            model.fit(z[fit], target[fit])
            if not hasattr(model, "feature_importances_"):
                raise InputError(f"estimator: {estimator!r} has no feature_importances_")
            of_target[n], predicted[:, n] = model.feature_importances_, model.predict(z[score])
        truth = targets[score]
        left = ((truth - predicted) ** 2).sum(axis=0)
        total = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
        explained = np.maximum(total - left, 1e-9 * total)
        importance[:, k] = of_target[0] if classify else explained @ of_target / explained.sum()
        informativeness.append(
            (truth == predicted).mean() if classify else 1 - left.sum() / total.sum()
        )
    found = float(np.mean(informativeness))
    if found <= max(least, LEAST) or importance.sum() == 0:
        return 0.0, 0.0, found
    return _concentration(importance), _concentration(importance.T), found


def _concentration(importance: np.ndarray) -> float:
    """1 - normalised entropy of each row, weighted by the row's sum."""
    if importance.shape[1] < 2:
        return float("nan")
    share = importance + SMALL
    share = share / share.sum(axis=1, keepdims=True)
    entropy = -(share * np.log(share)).sum(axis=1) / np.log(importance.shape[1])
    return float(np.average(1 - entropy, weights=importance.sum(axis=1)))
