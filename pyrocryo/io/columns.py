"""Fields of any name as columns of a star file: a number a row, or the components of a vector.

``pyrocryoField_ligand`` is a number; ``pyrocryoField1_force``, ``pyrocryoField2_force``, ... are
the components of a vector. Whole numbers stay whole, so that classes stay classes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.particles import SIMULATED

__all__ = ["columns_of", "fields_in", "of_molecules"]

KNOWN = ("rotation", "shift", "ctf", "temperature", "time", "truth")  # have columns of their own
OPTIONS = ("images", "index", "offset", "scale", "pixel_size", "split_seed", "test_fraction")
COLUMN = re.compile(r"pyrocryoField(\d*)_(\w+)")


def columns_of(
    fields: Mapping[str, np.ndarray], views: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns for the fields that have no others, and the names of those that cannot be written.

    Args:
        fields: Of N particles, or of N molecules with T frames; then what is known of a molecule
            is repeated for each frame.
        views: `(N,)` or `(N, T)`.
    """
    columns, left = {}, []
    for name, value in fields.items():
        if name in KNOWN:
            continue
        if len(views) == 2:
            each_frame = name in SIMULATED and value.shape[:2] == views
            value = (
                value.reshape(-1, *value.shape[2:]) if each_frame else value.repeat(views[1], 0)
            )
        if value.ndim > 2 or not value.size or not re.fullmatch(r"\w+", name, re.ASCII):
            left.append(name)
            continue
        value = value.astype(float if value.dtype.kind == "f" else int)
        if value.ndim == 1:
            columns[f"pyrocryoField_{name}"] = value
            continue
        columns |= {f"pyrocryoField{k}_{name}": part for k, part in enumerate(value.T, start=1)}
    return columns, sorted(left)


def fields_in(rows: Any, taken: Collection[str]) -> dict[str, np.ndarray]:
    """Fields `(N,)` or `(N, D)` of the rows of a star file.

    Args:
        rows: What has `columns` (strings by name), `path` and `numbers` (of a column).
        taken: Names of fields that the file has given already.

    Raises:
        InputError: If a name is taken, or a component of a vector is missing.
    """
    columns: dict[str, dict[str, str]] = {}
    for column in rows.columns:
        if found := COLUMN.fullmatch(column):
            columns.setdefault(found[2], {})[found[1]] = column
    fields = {}
    for name, numbered in columns.items():
        if name in (*taken, *KNOWN, *OPTIONS):
            raise InputError(f"{rows.path}: {name} cannot be the name of a further field")
        numbers = [str(k + 1) for k in range(len(numbered))]
        if list(numbered) == [""]:
            fields[name] = _numbers(rows, numbered[""])
        elif sorted(numbered) == sorted(numbers):
            fields[name] = np.stack([_numbers(rows, numbered[k]) for k in numbers], axis=-1)
        else:
            raise InputError(
                f"{rows.path}: expected columns pyrocryoField1_{name}, pyrocryoField2_{name}, "
                f"..., got {', '.join(numbered.values())}"
            )
    return fields


def of_molecules(value: np.ndarray) -> np.ndarray:
    """What is the same in all frames `(N, T, ...)` of every molecule, once for each."""
    return value[:, 0] if (value == value[:, :1]).all() else value


def _numbers(rows: Any, column: str) -> np.ndarray:
    values = rows.numbers(column)
    whole = all(text.removeprefix("-").isdecimal() for text in rows.columns[column])
    return values.astype(np.int64) if whole and (abs(values) < 2**53).all() else values
