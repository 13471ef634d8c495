"""Posteriors on disk, looked at before ArviZ opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyrocryo.errors import InputError
from pyrocryo.files import UNPACKED, regular
from pyrocryo.to_arviz import from_netcdf

__all__ = ["check", "read_posterior"]


def read_posterior(path: str | Path) -> Any:
    """What a ``posterior.nc`` holds, as :func:`pyrocryo.to_arviz.from_netcdf` gives it.

    Raises:
        InputError: If it is no such file, names other files, or holds much more than it takes.
    """
    check(Path(path))
    try:
        return from_netcdf(path)
    except Exception as error:  # a file that is none of ours fails in any way it likes
        raise InputError(f"{path}: cannot be read as a posterior ({error})") from error


def check(path: Path) -> None:
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
