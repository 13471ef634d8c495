"""From arrays to ArviZ, 0.23 and 1.x alike; needs neither torch nor pyro."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["from_netcdf", "to_arviz", "to_netcdf", "version"]


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
