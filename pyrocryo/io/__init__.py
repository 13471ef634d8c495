"""Files in and out: what the field reads and writes, and the run folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pyrocryo.errors import InputError
from pyrocryo.io import cryosparc, relion
from pyrocryo.io.cryodrgn import write_cryodrgn_latents
from pyrocryo.io.mrc import read_map, write_map
from pyrocryo.io.save import save
from pyrocryo.io.structure import Structure, read_structure, write_structure
from pyrocryo.io.trajectory import read_trajectory
from pyrocryo.particles import Particles

_LATER = {
    "annotate": "annotated",
    "export": "run_folder",
    "load_fit": "reopened",
    "new_folder": "run_folder",
    "read_halves": "halved",
    "select": "annotated",
    "write_clusters": "clusters",
    "write_components": "components",
    "write_cryodrgn": "to_cryodrgn",
    "write_diagnosis": "diagnosis",
    "write_flatiron": "flatiron",
    "write_halves": "halved",
    "write_json": "run_folder",
    "write_landscape": "landscape",
    "write_metrics": "run_folder",
    "write_motion": "motion",
}

__all__ = [
    "Structure",
    "load",
    "read_map",
    "read_structure",
    "read_trajectory",
    "save",
    "write_cryodrgn_latents",
    "write_map",
    "write_structure",
    *_LATER,
]


def load(path: str | Path, *, passthrough: str | Path | None = None, **options: Any) -> Particles:
    """Loads particles from a star file, a .cs file, a bare stack (``.mrcs``, ``.mrc``) or a list.

    A list is a ``.txt`` file that names stacks, a line each.

    Options: see :func:`pyrocryo.io.relion.load`, :func:`pyrocryo.io.cryosparc.load` (which alone
    takes ``passthrough``) and :func:`pyrocryo.io.relion.load_stack`.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".cs":
        return cryosparc.load(path, passthrough=passthrough, **options)
    if passthrough is not None:
        raise InputError(f"passthrough: goes with a .cs file, not with {path}")
    if suffix == ".star":
        return relion.load(path, **options)
    if suffix in (".mrc", ".mrcs", ".txt"):
        if "folder" in options and suffix != ".txt":
            raise InputError(f"folder: {path} names no other files")
        return relion.load_stack(path, **options)
    raise InputError(f"{path}: expected a file that ends in .star, .cs, .mrcs, .mrc or .txt")


def __getattr__(name: str) -> Any:
    """The run folder needs torch and matplotlib; readers and writers do not."""
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
