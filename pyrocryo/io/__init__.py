"""Files in and out: what the field reads and writes, and the run folder."""

from __future__ import annotations

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

__all__ = [
    "Structure",
    "annotate",
    "export",
    "load",
    "load_fit",
    "new_folder",
    "read_halves",
    "read_map",
    "read_structure",
    "read_trajectory",
    "save",
    "select",
    "write_clusters",
    "write_components",
    "write_halves",
    "write_cryodrgn_latents",
    "write_diagnosis",
    "write_flatiron",
    "write_landscape",
    "write_map",
    "write_motion",
    "write_structure",
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
    if name in ("read_halves", "write_halves"):
        from pyrocryo.io import halved

        return getattr(halved, name)
    if name in ("export", "new_folder", "write_json", "write_metrics"):
        from pyrocryo.io import run_folder

        return getattr(run_folder, name)
    if name == "load_fit":
        from pyrocryo.io.reopened import load_fit

        return load_fit
    if name in ("annotate", "select"):
        from pyrocryo.io import annotated

        return getattr(annotated, name)
    if name == "write_clusters":
        from pyrocryo.io.clusters import write_clusters

        return write_clusters
    if name == "write_flatiron":
        from pyrocryo.io.flatiron import write_flatiron

        return write_flatiron
    if name == "write_landscape":
        from pyrocryo.io.landscape import write_landscape

        return write_landscape
    if name == "write_components":
        from pyrocryo.io.components import write_components

        return write_components
    if name == "write_diagnosis":
        from pyrocryo.io.diagnosis import write_diagnosis

        return write_diagnosis
    if name == "write_motion":
        from pyrocryo.io.motion import write_motion

        return write_motion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
