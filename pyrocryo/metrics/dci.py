"""DCI: disentanglement, completeness and informativeness, by the regressor that is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.factors import Factors, pair_up
from pyrocryo.metrics.r2 import block_r2, halves
from pyrocryo.metrics.score import Score, permuted_columns

__all__ = ["DCI", "dci", "dci_values", "forest"]

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
        estimator: The regressor. It is part of the metric's name: at 22.5° a forest gives D = .46,
            the original classifier .10.
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

    Regressors predict continuous factors as they are, so nothing needs classes; an angle is
    predicted as (cos, sin) and a rotation by its entries. The original definition is
    ``estimator=GradientBoostingClassifier()``, which gets the classes of
    :class:`~pyrocryo.metrics.factors.Factors` and is slow (minutes). Lasso is no choice: it gives
    1 for random latents.

    Args:
        factors: `(N, K)` numbers, or blocks of any kind.
        z: `(N, L)` latents.
        kinds: "linear", "circular" or "so3", one a factor.
        estimator: A scikit-learn regressor or classifier with ``feature_importances_``; None for a
            random forest. It must take several targets where factors are not plain numbers.
        frames: Consecutive rows that belong to one molecule, and go into the same half.
        seed: Draws the halves, the trees and the floor.
    """
    factors, z = pair_up(factors, z, kinds)
    estimator = forest() if estimator is None else estimator
    parts = halves(len(z), frames, seed)
    permuted = permuted_columns(z, np.random.default_rng(seed))
    floor = dci_values(factors, permuted, parts, estimator, seed)
    value = dci_values(factors, z, parts, estimator, seed, floor[2])
    return DCI(*(Score(*pair) for pair in zip(value, floor, strict=True)), repr(estimator))


def forest() -> Any:
    """The default: 20 trees with leaves of 5."""
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(n_estimators=20, min_samples_leaf=5)


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
        y = factors.classes[:, k] if classify else targets
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        model = clone(estimator)
        if "random_state" in model.get_params():
            model.set_params(random_state=seed)
        model.fit(z[fit], y[fit])
        if not hasattr(model, "feature_importances_"):
            raise InputError(f"estimator: {estimator!r} has no feature_importances_")
        importance[:, k] = model.feature_importances_
        predicted = model.predict(z[score])
        informativeness.append(
            (predicted == y[score]).mean()
            if classify
            else block_r2([targets[score]], predicted.reshape(len(score), -1))[0]
        )
    found = float(np.mean(informativeness))
    if found <= max(least, LEAST) or importance.sum() == 0:
        gated = 0.0
        return gated, gated, found
    return _concentration(importance), _concentration(importance.T), found


def _concentration(importance: np.ndarray) -> float:
    """1 - normalised entropy of each row, weighted by the row's sum."""
    if importance.shape[1] < 2:
        return float("nan")
    share = importance + SMALL
    share = share / share.sum(axis=1, keepdims=True)
    entropy = -(share * np.log(share)).sum(axis=1) / np.log(importance.shape[1])
    return float(np.average(1 - entropy, weights=importance.sum(axis=1)))
