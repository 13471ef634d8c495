"""All metrics of latents that match true factors, for several seeds at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.dci import boosted, dci_values
from pyrocryo.metrics.explicitness import explicitness_value
from pyrocryo.metrics.factors import Factors, pair_up
from pyrocryo.metrics.information import mig_value, modularity_value
from pyrocryo.metrics.interventions import Encode, Sampler, betavae, factorvae
from pyrocryo.metrics.irs import irs_value
from pyrocryo.metrics.mcc import mcc, mcc_value
from pyrocryo.metrics.r2 import halves, r2_value
from pyrocryo.metrics.sap import sap_value
from pyrocryo.metrics.score import Score, permuted_columns

__all__ = ["NAMES", "each", "row", "suite"]

log = logging.getLogger("pyrocryo")

Parts = tuple[np.ndarray, np.ndarray]
POOLS = {"betavae": 4000, "factorvae": 100}  # pairs, batches of 64, a factor

VALUES: dict[str, Callable[[Factors, np.ndarray, Parts], float]] = {
    "mcc_pearson": lambda f, z, _: mcc_value(f, z),
    "mcc_spearman": lambda f, z, _: mcc_value(f, z, "spearman"),
    "r2_linear": lambda f, z, parts: r2_value(f, z, parts, "linear"),
    "r2_knn": lambda f, z, parts: r2_value(f, z, parts, "knn"),
    "mig": lambda f, z, _: mig_value(f, z),
    "modularity": lambda f, z, _: modularity_value(f, z),
    "explicitness": explicitness_value,
    "sap": lambda f, z, _: sap_value(f, z),
    "irs": lambda f, z, _: irs_value(f, z),
}
DCI_NAMES = ("dci_disentanglement", "dci_completeness", "dci_informativeness")
NAMES = (*VALUES, *DCI_NAMES)  # without a simulator


def suite(
    factors: np.ndarray | Sequence[np.ndarray],
    codes: np.ndarray,
    *,
    kinds: Sequence[str] | None = None,
    sampler: Sampler | None = None,
    encode: Encode | None = None,
    frames: int = 1,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Every metric, seed by seed.

    MCC, R², MIG, Modularity, DCI (by boosted trees, named in the row's ``estimator``),
    Explicitness, SAP and IRS; with a simulator of two factors or more BetaVAE and FactorVAE, too.
    Classes of factors, halves and floors are made once: a floor belongs to permuted latents of the
    first seed that has finite ones that vary. A metric that is not defined for a seed is NaN
    there, and the log says why.

    Args:
        factors: `(N, K)` true factors, or blocks `(N,)` and `(N, 3, 3)`.
        codes: `(S, N, L)` latents of S seeds, or `(N, L)`.
        kinds: "linear", "circular" (rad) or "so3", one a factor; numbers if not said.
        sampler: ``sampler(n, fixed, rng)`` → factors, as for
            :func:`~pyrocryo.metrics.betavae`; from pools of 4000 pairs and 100 batches a factor.
        encode: Factors → latents `(S, n, L)`, or `(n, L)`.
        frames: Consecutive rows that belong to one molecule, and go into the same half.
        seed: Draws halves, trees and floors.

    Returns:
        Metric → ``{mean, sd, per_seed, floor}``; MCC also has ``rotation_floor``, DCI
        ``estimator``.
    """
    codes = np.asarray(codes, dtype=np.float64)
    codes = codes[None] if codes.ndim == 2 else codes
    if codes.ndim != 3 or not len(codes):
        raise InputError(f"codes: expected (N, L) or (seeds, N, L), got {codes.shape}")
    if (sampler is None) != (encode is None):
        raise InputError("sampler and encode: give both or neither")
    sound = [z for z in codes if np.isfinite(z).all() and np.ptp(z, axis=0).any()]
    factors, first = pair_up(factors, sound[0] if sound else np.zeros(codes.shape[1:]), kinds)
    parts = halves(len(first), frames, seed)
    permuted = permuted_columns(first, np.random.default_rng(seed))
    table = {}
    for name, value in VALUES.items():
        floor, *per_seed = each(name, lambda z, f=value: f(factors, z, parts), (permuted, *codes))
        table[name] = row(per_seed, floor)
    for kind in ("pearson", "spearman") if set(factors.kinds) == {"linear"} else ():
        score = mcc(factors, first, kind=kind, seed=seed)
        table[f"mcc_{kind}"] |= {"floor": score.floor, "rotation_floor": score.rotation_floor}
    table |= _dci(factors, codes, permuted, parts, seed)
    if sampler is not None and encode is not None and factors.count > 1:
        for name, metric in (("betavae", betavae), ("factorvae", factorvae)):
            scores = metric(sampler, encode, pool=POOLS[name], seed=seed)
            table[name] = row([scores] if isinstance(scores, Score) else scores)
    return table


def _dci(
    factors: Factors, codes: np.ndarray, permuted: np.ndarray, parts: Parts, seed: int
) -> dict[str, dict[str, Any]]:
    estimator = boosted()
    undefined = (np.nan,) * len(DCI_NAMES)

    def value(z: np.ndarray, least: float = 0.0) -> tuple[float, float, float]:
        return dci_values(factors, z, parts, estimator, seed, least)

    floor = each("floor of dci", value, [permuted], undefined)[0]
    values = np.array(each("dci", lambda z: value(z, floor[2]), codes, undefined))
    return {
        name: row(values[:, i], floor[i]) | {"estimator": repr(estimator)}
        for i, name in enumerate(DCI_NAMES)
    }


def each(
    name: str,
    metric: Callable[[np.ndarray], Any],
    codes: Iterable[np.ndarray],
    undefined: Any = float("nan"),
) -> list[Any]:
    """The metric of every seed's latents; where it is not defined, what stands for that.

    The first reason is logged (scikit-learn's complaints are ValueErrors, too).
    """
    found, reasons = [], []
    for z in codes:
        try:
            if not np.isfinite(z).all():
                raise InputError("z: expected finite numbers only")
            found.append(metric(z))
        except ValueError as error:
            found.append(undefined)
            reasons.append(error)
    if reasons:
        log.warning("%s is not defined everywhere: %s", name, reasons[0])
    return found


def row(
    values: Sequence[float] | Sequence[Score] | np.ndarray, floor: float | None = None
) -> dict[str, Any]:
    """A line of ``metrics.json``: ``{mean, sd, per_seed, floor}``; scores bring their floor."""
    if len(values) and isinstance(values[0], Score):
        floor, values = values[0].floor, [score.value for score in values]
    values = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "per_seed": values.tolist(),
        "floor": None if floor is None else float(floor),
    }
