"""From arrays to ArviZ, 0.23 and 1.x alike; needs neither torch nor pyro."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["from_netcdf", "to_arviz", "to_elpd", "to_netcdf", "version"]

GOOD = 0.7  # k-hat


def to_arviz(
    groups: Mapping[str, Mapping[str, Any]],
    *,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Converts arrays to an ``InferenceData`` (ArviZ 0.23) or a ``DataTree`` (1.x).

    Args:
        groups: Group → variable → array. Sampled groups hold `(chain, draw, *dims)`, with one
            chain a seed; ``observed_data`` and ``constant_data`` hold `(*dims,)`. A variable of
            ``log_likelihood`` has no event dimensions: as many of its ``dims`` are used as it has.
        dims: Variable → names of its dimensions after chain and draw.
        coords: Dimension → labels.
        attrs: Attributes of the whole.

    Returns:
        Either way ``result["posterior"]["z"]`` is an `xarray.DataArray`.
    """
    import arviz as az

    groups = {
        group: {name: np.asarray(value) for name, value in variables.items()}
        for group, variables in groups.items()
        if variables
    }
    dims = {name: list(names) for name, names in dims.items()}
    coords, attrs = dict(coords or {}), dict(attrs or {})
    # a chain is a seed here, and there may well be more seeds than replicated images: both
    # versions would take that for swapped dimensions
    if version(az) >= 1:
        root = {"/": attrs} if attrs else None
        return az.from_dict(groups, dims=dims, coords=coords, attrs=root, check_conventions=False)
    likelihood = groups.pop("log_likelihood", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="More chains", category=UserWarning)
        result = az.from_dict(**groups, dims=dims, coords=coords, attrs=attrs)
    if likelihood is not None:  # 0.23 would want the event dimensions too
        shorter = {
            name: dims.get(name, [])[: value.ndim - 2] for name, value in likelihood.items()
        }
        result.extend(az.from_dict(log_likelihood=likelihood, dims=shorter, coords=coords))
    return result


def to_elpd(
    value: np.ndarray, khat: np.ndarray, index: np.ndarray, *, draws: int, sentence: str
) -> Any:
    """Log-likelihoods of held-out particles as what ``az.compare`` and ``az.plot_khat`` take.

    Args:
        value: `(n,)` of each particle, nats.
        khat: `(n,)` of its importance weights.
        index: `(n,)` its row in the stack.
        draws: How many weights there were.
        sentence: What is to be read beside it, in the attribute ``identifiability``.

    Returns:
        An ``ELPDData`` (ArviZ 0.23) or ``ELPDDataLOO`` (1.x).
    """
    import arviz as az
    import xarray as xr

    n = len(value)
    k = xr.DataArray(khat, dims=["particle"], coords={"particle": index}, name="pareto_k")
    point = k.copy(data=value).rename("loo_i")
    se, warning = float(value.std(ddof=0) * math.sqrt(n)), bool((khat > GOOD).any())
    told = {"n_samples": draws, "n_data_points": n, "scale": "log", "warning": warning}
    told |= {"se": se, "good_k": GOOD, "pareto_k": k}
    if version(az) >= 1:
        from arviz_stats.utils import ELPDDataLOO

        result = ELPDDataLOO(elpd=float(value.sum()), p=math.nan, elpd_i=point, **told)
        result.identifiability = sentence
        return result
    from arviz.stats.stats_utils import ELPDData

    told |= {"elpd_loo": float(value.sum()), "p_loo": math.nan, "loo_i": point}
    order = ("elpd_loo", "se", "p_loo", "n_samples", "n_data_points", "warning", "loo_i")
    order += ("pareto_k", "scale", "good_k")
    numbers = {name: told[name] for name in order} | {"identifiability": sentence}
    return ELPDData(data=list(numbers.values()), index=list(numbers))


def to_netcdf(tree: Any, path: str | Path) -> None:
    """Writes what :func:`to_arviz` gave to one netCDF file."""
    tree.to_netcdf(str(path), engine="h5netcdf")


def from_netcdf(path: str | Path) -> Any:
    """Reads it back, all of it, so that the file is closed again."""
    import arviz as az

    if version(az) >= 1:
        import xarray as xr

        with xr.open_datatree(str(path), engine="h5netcdf") as tree:
            return tree.load()
    with az.rc_context({"data.load": "eager"}):
        return az.from_netcdf(str(path), engine="h5netcdf")


def version(az: Any) -> int:
    """0 or 1: which of the two ArviZ this is."""
    return int(az.__version__.split(".")[0])
