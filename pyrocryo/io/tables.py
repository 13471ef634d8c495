"""What a .star or .cs file says of each particle, without its images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.io import cryosparc, relion, star
from pyrocryo.io.cryodrgn import read_poses
from pyrocryo.rotations import matrix_from_euler

__all__ = ["Columns", "doubles", "numbered", "read_columns"]

# of ab-initio classes and 3-D classification, where there are no others
POSES = re.compile(r"alignments(3D|_class_?\d*)\w*/pose")
IMAGES = (("rlnImageName",), ("blob/path", "blob/idx"))
# what leaks into z at times, by the names that files have for it
NAMED = {
    "optics group": ("rlnOpticsGroup", "ctf/exp_group_id"),
    "micrograph": ("rlnMicrographName", "location/micrograph_uid", "location/micrograph_path"),
    "contrast": ("rlnNormCorrection", "alignments3D/alpha"),
}


@dataclass
class Columns:
    """What a file says of each particle.

    Attributes:
        size: Particles.
        rotation: `(N, 3, 3)`, molecule to image; None without.
        usual: Defocus, shift and the like, as far as there: `(N,)` or `(N, F)`.
        columns: All by their names in the file, `(N,)`: numbers or labels.
        image: A number for each image, `(N,)`: the same where rows are copies of one particle, as
            after symmetry expansion. None where the file does not say.
    """

    size: int
    rotation: np.ndarray | None = None
    usual: dict[str, np.ndarray] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    image: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Columns:
        """Some of the particles."""
        return Columns(
            len(rows),
            None if self.rotation is None else self.rotation[rows],
            {name: values[rows] for name, values in self.usual.items()},
            _Made(self.columns, lambda name: self.columns[name][rows]),
            None if self.image is None else self.image[rows],
        )


class _Made(Mapping[str, np.ndarray]):
    """Columns made when asked for: of the fifty that a file may have, few are looked at."""

    def __init__(self, names: Iterable[str], make: Callable[[str], np.ndarray]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_columns(path: str | Path) -> Columns:
    """Poses and columns of a .star, .cs or .pkl (cryoDRGN's poses) file; opens no images.

    Raises:
        InputError: If the file cannot be read, or is none of these.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".pkl":
        rotation, shift = read_poses(path)
        return Columns(len(rotation), rotation, {"shift": shift} if shift.any() else {})
    if suffix == ".star":
        return _star(path)
    if suffix == ".cs":
        return _cs(path)
    raise InputError(f"{path}: expected a file that ends in .star, .cs or .pkl")


def _star(path: Path) -> Columns:
    blocks = star.read(path)
    optics = blocks.pop("optics", {})
    table = blocks.get("particles") or max(
        blocks.values(), key=lambda block: max(map(len, block.values()), default=0), default={}
    )
    if not table:
        raise InputError(f"{path}: holds no particles")
    group = "rlnOpticsGroup"
    if group in optics and group in table:
        place = {label: i for i, label in enumerate(optics[group])}
        which = [place.get(label) for label in table[group]]
        if None not in which:
            table = {k: [v[i] for i in which] for k, v in optics.items() if len(place) > 1} | table
    size = len(next(iter(table.values())))
    columns = _Made(table, lambda name: _values(table[name]))
    rotation = None
    if all(name in columns for name in relion.ANGLES):
        angles = _together(columns, relion.ANGLES)
        bad = np.ones(size, dtype=bool) if angles is None else ~np.isfinite(angles).all(axis=1)
        if bad.any():
            raise InputError(f"row {bad.argmax() + 1} of {path}: angles are not finite numbers")
        rotation = matrix_from_euler(angles)
    shift = _together(columns, relion.ORIGINS)
    if shift is None:
        shift = _together(columns, relion.ORIGINS_IN_PIXELS)
    usual = {"defocus": _together(columns, relion.DEFOCUS[:2]), "shift": shift}
    return _gathered(size, rotation, usual, columns)


def _cs(path: Path) -> Columns:
    table = cryosparc.Fields(path)
    flat = [name for name in table.names() if table.raw(name).ndim == 1]
    columns = _Made(flat, table.raw)
    poses = [name for name in table.names() if POSES.fullmatch(name) and table.raw(name).ndim == 2]
    poses.sort(key=lambda name: (name != cryosparc.POSE, "3D" not in name))
    rotation = cryosparc.rotations(table, poses[0]) if poses else None
    usual = {"defocus": _together(columns, cryosparc.DEFOCUS[:2]), "shift": None}
    if cryosparc.SHIFT in table:
        usual["shift"] = doubles(table.raw(cryosparc.SHIFT))
    return _gathered(table.size, rotation, usual, columns)


def _gathered(
    size: int,
    rotation: np.ndarray | None,
    usual: dict[str, Any],
    columns: Mapping[str, np.ndarray],
) -> Columns:
    for name, places in NAMED.items():
        usual[name] = next((columns[place] for place in places if place in columns), None)
        if usual[name] is not None and name != "contrast" and usual[name].dtype.kind != "S":
            usual[name] = usual[name].astype(str)  # numbers are names here
    image = None
    for names in IMAGES:
        if all(name in columns for name in names):
            image = numbered([columns[name] for name in names])
            break
    usual = {name: values for name, values in usual.items() if values is not None}
    return Columns(size, rotation, usual, columns, image)


def numbered(labels: Sequence[np.ndarray]) -> np.ndarray:
    """A number `(N,)` for each combination of labels."""
    number = np.zeros(len(labels[0]), dtype=np.int64)
    for column in labels:
        _, which = np.unique(column, return_inverse=True)
        _, number = np.unique(number * (which.max() + 1) + which, return_inverse=True)
    return number


def _values(values: Sequence[str]) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)
    except ValueError:
        return np.array(values)


def _together(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray | None:
    if not all(name in columns for name in names):
        return None
    found = [columns[name] for name in names]
    if not all(column.dtype.kind == "f" for column in found):
        return None
    return doubles(np.stack(found, axis=1))


def doubles(values: np.ndarray) -> np.ndarray:
    """The same in double precision, NaN of any kind among them."""
    with np.errstate(invalid="ignore"):  # of signalling NaN, at which numpy would warn
        return np.asarray(values, np.float64)
