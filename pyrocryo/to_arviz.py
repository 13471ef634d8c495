"""From arrays to ArviZ, 0.23 and 1.x alike; needs neither torch nor pyro."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import UNPACKED, regular

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
    """Reads it back, all of it, so that the file is closed again.

    Raises:
        InputError: If it is no such file, names other files, or holds much more than it takes.
    """
    import arviz as az

    _check(Path(path))
    try:
        if version(az) >= 1:
            import xarray as xr

            with xr.open_datatree(str(path), engine="h5netcdf") as tree:
                return tree.load()
        with az.rc_context({"data.load": "eager"}):
            return az.from_netcdf(str(path), engine="h5netcdf")
    except Exception as error:  # a file that is none of ours fails in any way it likes
        raise InputError(f"{path}: cannot be read as a posterior ({error})") from error


def _check(path: Path) -> None:
    """Raises InputError unless a file is HDF5 that stands for itself, of about its own size."""
    import h5py

    regular(path)
    links, objects = [], []

    def visit(_: str, item: Any) -> None:  # each object once, under one of its names
        objects.append(item)
        if isinstance(item, h5py.Group):
            links.extend(item.get(n, getlink=True) for n in item)

    try:
        with h5py.File(path, "r") as file:
            visit("/", file)
            file.visititems(visit)
            sets = [item for item in objects if isinstance(item, h5py.Dataset)]
            total = sum(item.size * max(1, item.dtype.itemsize) for item in sets)
            own = all(isinstance(link, h5py.HardLink) for link in links)
            own = own and not any(item.external or item.is_virtual for item in sets)
            tree = len(links) == len(objects) - 1
    except Exception as error:
        raise InputError(f"{path}: cannot be read as a posterior ({error})") from error
    if not own:
        raise InputError(f"{path}: part of it lies in another file")
    if not tree:
        raise InputError(f"{path}: part of it has two names")
    if total > UNPACKED * path.stat().st_size:
        raise InputError(f"{path}: would take more than {UNPACKED} times its size")


def version(az: Any) -> int:
    """0 or 1: which of the two ArviZ this is."""
    return int(az.__version__.split(".")[0])
