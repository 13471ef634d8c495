"""Trajectories: the models of a PDB or mmCIF file, one after another. Lengths in Å."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.io.structure import Structure, opened, taken

__all__ = ["read_trajectory"]


def read_trajectory(
    path: str | Path,
    *,
    chain: str | Sequence[str] | None = None,
    residues: Iterable[int] | None = None,
    atoms: Literal["CA", "backbone", "all"] = "CA",
    altloc: str = "highest",
    blur: float = 2.0,
) -> tuple[Structure, np.ndarray]:
    """Reads all models of a file, as what :func:`pyrocryo.io.write_structure` wrote.

    Args:
        path: The file.
        chain: As for :func:`pyrocryo.io.read_structure`, and so are those below.
        residues: Numbers of residues.
        atoms: Which atoms.
        altloc: Which alternative locations.
        blur: Å.

    Returns:
        The first model, and positions `(M, A, 3)` of its atoms in all models, in their order.

    Raises:
        InputError: If a model has other atoms than the first; and whatever a structure raises.
    """
    residues = None if residues is None else list(residues)
    asked = {"chain": chain, "residues": residues, "atoms": atoms, "altloc": altloc, "blur": blur}
    models = list(opened(path))
    first = taken(models[0], path, **asked)
    names = _names(first)
    positions = np.empty((len(models), *first.positions.shape))
    for m, model in enumerate(models):
        frame = taken(model, path, **asked)
        if _names(frame) != names:
            raise InputError(
                f"{path}: model {m + 1} of {len(models)} has {_differently(_names(frame), names)};"
                " all models of a trajectory need the same atoms"
            )
        positions[m] = frame.positions
    return first, positions


def _differently(these: list[tuple], those: list[tuple]) -> str:
    """What these atoms have that those, of the first model, do not have in the same place."""
    for one, other in zip(these, those, strict=False):
        if one != other:
            return f"{_told(one)} where the first has {_told(other)}"
    return f"{len(these)} atoms where the first has {len(those)}"


def _names(structure: Structure) -> list[tuple]:
    columns = ("chain", "number", "insertion", "residue", "atom")
    return list(zip(*(getattr(structure, name).tolist() for name in columns), strict=True))


def _told(name: tuple) -> str:
    chain, number, insertion, residue, atom = name
    return f"{atom} of {residue} {number}{insertion} in chain {chain}"
