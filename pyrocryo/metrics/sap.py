"""SAP: how far the best latent of a factor predicts it better than the second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.factors import Factors, pair_up
from pyrocryo.metrics.information import top_two
from pyrocryo.metrics.r2 import halves
from pyrocryo.metrics.score import Score, with_floor

__all__ = ["sap", "sap_value"]


def sap(
    factors: np.ndarray | Sequence[np.ndarray] | Factors,
    z: np.ndarray,
    *,
    kind: str = "r2",
    kinds: Sequence[str] | None = None,
    frames: int = 1,
    seed: int = 0,
) -> Score:
    r"""Separated attribute predictability (Kumar et al. 2018).

    The mean over factors of (best - second best) score of a prediction from a single latent.
    "r2" is the squared correlation (multiple R² for angles and rotations), right for continuous
    factors. "svm" is the original for classes, the held-out accuracy of a linear support vector
    machine: perfect latents of 20 levels give .04 to .11, depending on their scale and offset, as
    a line resolves the outermost levels only, so it is of use for reproduction alone. After 22.5°
    "r2" gives .71, after 45° 0. Of an angle or a rotation it wants one latent: several
    that hold it together (cos φ and sin φ) are marked down, one that holds a part is not.

    Args:
        factors: `(N, K)` numbers, or blocks of any kind.
        z: `(N, L)` latents.
        kind: "r2" or "svm".
        kinds: "linear", "circular" or "so3", one a factor.
        frames: Consecutive rows that belong to one molecule, and go into the same half ("svm").
        seed: Draws the floor, and the halves ("svm").
    """
    if kind not in ("r2", "svm"):
        raise InputError(f"kind: expected 'r2' or 'svm', got {kind!r}")
    factors, z = pair_up(factors, z, kinds)
    if kind == "r2":
        return with_floor(lambda z: sap_value(factors, z), z, seed)
    parts = halves(len(z), frames, seed)
    return with_floor(lambda z: _gap(_accuracy(factors, z, parts)), z, seed, permutations=1)


def sap_value(factors: Factors, z: np.ndarray) -> float:
    """The SAP of squared correlations alone."""
    return _gap(factors.association(z) ** 2)


def _gap(size: np.ndarray) -> float:
    first, second = top_two(size)
    return float((first - second).mean())


def _accuracy(factors: Factors, z: np.ndarray, parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Held-out accuracy `(K, L)` of one latent's prediction of a factor's class."""
    from sklearn.svm import LinearSVC

    fit, score = parts
    accuracy = np.zeros((factors.count, z.shape[1]))
    for k, classes in enumerate(factors.classes.T):
        for j in np.flatnonzero(z.std(axis=0) > 0):
            model = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
            model.fit(z[fit, j, None], classes[fit])
            accuracy[k, j] = model.score(z[score, j, None], classes[score])
    return accuracy
