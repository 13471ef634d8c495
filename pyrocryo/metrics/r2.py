"""How much of the factors can be read off the latents at all, whatever their axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.factors import Factors, pair_up
from pyrocryo.metrics.score import Score, permuted_columns

__all__ = ["cubic", "halves", "held_out", "r2", "r2_value"]

NEIGHBOURS = 10


def r2(
    factors: np.ndarray | Sequence[np.ndarray] | Factors,
    z: np.ndarray,
    *,
    kind: str = "linear",
    kinds: Sequence[str] | None = None,
    frames: int = 1,
    seed: int = 0,
) -> Score:
    """R² of a regression of factors on latents, fitted on one half and scored on the other.

    The mean over factors of 1 - SS_residual / SS_total. "linear" is least squares (blind to any
    invertible linear map of `z`), "cubic" the same on cubic polynomials of `z`, "knn" the mean
    over 10 nearest neighbours in standardised `z` (both blind to smooth warps as well). Near 1
    with a low MCC: the information is there, but turned. An angle is predicted as (cos, sin) and
    a rotation by its entries, whose sums of squares are added up.

    Args:
        factors: `(N, K)` true factors, or blocks of any kind.
        z: `(N, L)` latents.
        kind: "linear", "cubic" or "knn".
        kinds: "linear", "circular" or "so3", one a factor.
        frames: Consecutive rows that belong to one molecule, and go into the same half.
        seed: Draws the halves and the floor.
    """
    if kind not in ("linear", "cubic", "knn"):
        raise InputError(f"kind: expected 'linear', 'cubic' or 'knn', got {kind!r}")
    factors, z = pair_up(factors, z, kinds)
    rng = np.random.default_rng(seed)
    parts = halves(len(z), frames, seed)
    return Score(
        r2_value(factors, z, parts, kind),
        r2_value(factors, permuted_columns(z, rng), parts, kind),
    )


def r2_value(
    factors: Factors, z: np.ndarray, parts: tuple[np.ndarray, np.ndarray], kind: str = "linear"
) -> float:
    """The R² alone, on given halves."""
    from sklearn.metrics import r2_score

    predicted = _predicted(np.column_stack(factors.targets), z, parts, kind)
    edges = np.cumsum([targets.shape[1] for targets in factors.targets])[:-1]
    return float(
        np.mean(
            [
                r2_score(targets[parts[1]], found, multioutput="variance_weighted")
                for targets, found in zip(
                    factors.targets, np.split(predicted, edges, axis=1), strict=True
                )
            ]
        )
    )


def halves(n: int, frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of ``n`` rows; ``frames`` consecutive rows are never parted."""
    if frames < 1 or n % frames or n // frames < 2:
        raise InputError(
            f"frames: {n} rows cannot be two or more molecules of {frames} frames each"
        )
    order = np.random.default_rng(seed).permutation(n // frames)
    rows = (frames * order[:, None] + np.arange(frames)).reshape(-1)
    middle = frames * (len(order) // 2)
    return rows[:middle], rows[middle:]


def held_out(
    factors: np.ndarray, z: np.ndarray, parts: tuple[np.ndarray, np.ndarray], kind: str
) -> float:
    """R² of ``factors`` from `z`, fitted on one half of the particles, scored on the other."""
    from sklearn.metrics import r2_score

    return float(r2_score(factors[parts[1]], _predicted(factors, z, parts, kind)))


def _predicted(
    targets: np.ndarray, z: np.ndarray, parts: tuple[np.ndarray, np.ndarray], kind: str
) -> np.ndarray:
    from sklearn.linear_model import LinearRegression
    from sklearn.neighbors import KNeighborsRegressor

    sd = z.std(axis=0)
    z = (z - z.mean(axis=0)) / np.where(sd > 0, sd, 1.0)
    fit, score = parts
    if kind == "cubic":
        z = cubic(z)
    model = (
        KNeighborsRegressor(n_neighbors=min(NEIGHBOURS, len(fit)))
        if kind == "knn"
        else LinearRegression()
    )
    return model.fit(z[fit], targets[fit]).predict(z[score])


def cubic(x: np.ndarray) -> np.ndarray:
    """All monomials of `x` `(N, K)` up to the third degree, the constant among them."""
    from sklearn.preprocessing import PolynomialFeatures

    return PolynomialFeatures(degree=3).fit_transform(x)
