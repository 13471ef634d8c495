"""Particles in RELION's star files (3.0, 3.1 and later) and bare stacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.io import star
from pyrocryo.io.columns import fields_in, of_molecules
from pyrocryo.io.cryodrgn import read_poses
from pyrocryo.io.listed import images_of
from pyrocryo.io.mrc import Stacks, read_header
from pyrocryo.io.oddities import check_columns, check_optics
from pyrocryo.io.stacks import listed_stacks
from pyrocryo.particles import Particles
from pyrocryo.rotations import matrix_from_euler

__all__ = [
    "chosen_pixel_size",
    "load",
    "load_stack",
    "molecules",
    "poses_of_cryodrgn",
]

log = logging.getLogger("pyrocryo")

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")  # Å, since RELION 3.1
ORIGINS_IN_PIXELS = ("rlnOriginX", "rlnOriginY")
DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
B_FACTOR = "rlnCtfBfactor"
MOLECULE, FRAME = "pyrocryoMolecule", "pyrocryoFrame"
TEMPERATURES = ("pyrocryoTemperature", "rlnTemperature")
TIME, TRUTH = "pyrocryoTime", "pyrocryoTruth"


def load(
    path: str | Path,
    *,
    poses: str | Path | None = None,
    pixel_size: float | None = None,
    folder: str | Path | None = None,
    test_fraction: float = 0.1,
    split_seed: int = 0,
) -> Particles:
    """Loads the particles of a star file; images stay on disk until they are needed.

    RELION's origins are what must be added to centre an image, so ``shift`` is minus the origins.
    Rows that carry ``pyrocryoMolecule`` and ``pyrocryoFrame`` are grouped into molecules of T
    frames. Optics groups of several pixel sizes or boxes are brought to the coarsest pixel size
    when they are read (:mod:`pyrocryo.io.mixed`), which is said in the log.

    Args:
        path: RELION 3.1 (``data_optics`` and ``data_particles``) or 3.0 (one block).
        poses: Pickle of cryoDRGN's to take rotations and shifts from, in place of the star's.
        pixel_size: Å per pixel, where the star does not say.
        folder: Where the image paths of the star start, RELION's project folder; by default it is
            looked for in the folder of the file, in the current one, and in those above the file.
        test_fraction: Share held out, as for :class:`~pyrocryo.particles.Particles`.
        split_seed: Seed that draws it.

    Returns:
        Particles with ``rotation``, ``shift`` (Å), ``ctf`` `(N, 7)` (defocus U and V in Å, angle
        in degrees, kV, Cs in mm, amplitude contrast, phase shift in degrees; B-factor in Å², where
        there is one), ``temperature`` (K), ``time`` (s) and ``truth``, each if the file has it,
        and any further field NAME: a number ``pyrocryoField_NAME``, or a vector
        ``pyrocryoField1_NAME``, ``pyrocryoField2_NAME``, ... What is the same in all frames of
        every molecule is the molecule's.

    Raises:
        InputError: If anything is missing, inconsistent or would be silently ignored.
    """
    path = Path(path)
    rows = _Rows(path)
    check_columns(rows)
    images, found, given = images_of(rows, folder)
    if poses is not None and given is not None:
        raise InputError(f"{poses}: shifts are shares of one box, and {path} has several")
    box = images.shape[-1]
    angstrom = chosen_pixel_size(path, found, pixel_size, images)
    fields = (
        _poses(rows, angstrom if given is None else given)
        if poses is None
        else poses_of_cryodrgn(poses, rows.size, box, angstrom)
    )
    fields |= {"ctf": _ctf(rows)}
    for name in TEMPERATURES:
        if name in rows.columns:
            kelvin = fields["temperature"] = rows.numbers(name)
            rows.check(name, kelvin > 0, "kelvin, more than 0")
            break
    if TIME in rows.columns:
        fields["time"] = rows.numbers(TIME)
    components = sum(name.startswith(TRUTH) for name in rows.columns)
    if components:
        fields["truth"] = rows.table(*(f"{TRUTH}{k + 1}" for k in range(components)))
    fields = {name: value for name, value in fields.items() if value is not None}
    others = fields_in(rows, fields)
    order = _frames(rows)
    if order is not None:
        images = images.arranged(order)
        fields = {name: value[order] for name, value in fields.items()}
        if "temperature" in fields:
            kelvin = fields["temperature"]
            if (kelvin != kelvin[:, :1]).any():
                raise InputError(f"{path}: frames of one molecule differ in temperature")
            fields["temperature"] = kelvin[:, 0]
        others = {name: of_molecules(value[order]) for name, value in others.items()}
    options = {"test_fraction": test_fraction, "split_seed": split_seed}
    return Particles(images, pixel_size=angstrom, **options, **fields, **others)


def load_stack(
    path: str | Path,
    *,
    poses: str | Path | None = None,
    pixel_size: float | None = None,
    folder: str | Path | None = None,
    test_fraction: float = 0.1,
    split_seed: int = 0,
) -> Particles:
    """Loads all images of one MRC stack, or of several, with poses of cryoDRGN's if given.

    Arguments as for :func:`load`; a ``.txt`` file names stacks, a line each, as those that
    cryoDRGN takes do.
    """
    path = Path(path)
    files = listed_stacks(path, folder) if path.suffix.lower() == ".txt" else [path]
    counts = [read_header(file).shape[0] for file in files]
    n = sum(counts)
    which = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    section = np.concatenate([np.arange(count) for count in counts])
    images = Stacks.of(files, which, section, source=path.name)
    angstrom = chosen_pixel_size(path, None, pixel_size, images)
    fields = {} if poses is None else poses_of_cryodrgn(poses, n, images.shape[-1], angstrom)
    return Particles(
        images, pixel_size=angstrom, test_fraction=test_fraction, split_seed=split_seed, **fields
    )


def molecules(path: str | Path) -> np.ndarray | None:
    """Rows of the frames of each molecule of a star file, `(N, T)`; None where it has none."""
    return _frames(_Rows(Path(path)))


def rows(path: str | Path) -> _Rows:
    """The table of particles of a star file."""
    return _Rows(Path(path))


class _Rows:
    """The particles' table, with the columns of their optics groups joined to it."""

    def __init__(self, path: Path) -> None:
        blocks = star.read(path)
        optics = blocks.pop("optics", {})
        named = {k: block for k, block in blocks.items() if "rlnImageName" in block}
        table = named.get("particles") or next(iter(named.values()), None)
        if table is None:
            found = ", ".join(f"data_{name}" for name in blocks) or "no block of particles"
            raise InputError(f"{path}: no column rlnImageName ({found})")
        if "particles" not in named and len(named) > 1:
            raise InputError(f"{path}: {len(named)} blocks have a column rlnImageName")
        self.path = path
        self.columns = table
        self.size = len(table["rlnImageName"])
        if not self.size:
            raise InputError(f"{path}: holds no particles")
        if optics:
            self._join(optics)

    def _join(self, optics: star.Table) -> None:
        group = "rlnOpticsGroup"
        for name, table in (("optics", optics), ("particles", self.columns)):
            if group not in table:
                raise InputError(f"{self.path}: no column {group} in data_{name}")
        for name in optics:  # would be copied to every row
            if name.startswith(("pyrocryoField", TRUTH)):
                raise InputError(f"{self.path}: column {name} belongs to data_particles")
        place = {label: i for i, label in enumerate(optics[group])}
        known = [label in place for label in self.columns[group]]
        self.check(group, np.array(known), f"one of data_optics: {', '.join(place)}")
        which = [place[label] for label in self.columns[group]]
        self.columns = _Joined(self.columns, optics, which)

    def numbers(self, name: str) -> np.ndarray:
        """A column as finite numbers, `(N,)` float64."""
        if name not in self.columns:
            raise InputError(f"{self.path}: no column {name}")
        try:
            values = np.array(self.columns[name], dtype=np.float64)
        except ValueError:
            values = np.array([_number(value) for value in self.columns[name]])
        self.check(name, np.isfinite(values), "a finite number")
        return values

    def table(self, *names: str) -> np.ndarray:
        """Columns side by side, `(N, K)` float64."""
        return np.stack([self.numbers(name) for name in names], axis=1)

    def check(self, name: str, good: np.ndarray, expected: str) -> None:
        """Raises InputError for the first row of column ``name`` that is not good."""
        if not good.all():
            i = int(np.flatnonzero(~good)[0])
            raise InputError(
                f"row {i + 1} of {self.path}: {name} is {self.columns[name][i]!r}, "
                f"expected {expected}"
            )


class _Joined(Mapping[str, list[str]]):
    """Columns of the particles, and of their optics groups, written out when asked for.

    All of them at once would take (rows x columns of data_optics), far more than the file.
    """

    def __init__(self, own: star.Table, optics: star.Table, which: list[int]) -> None:
        self._own, self._optics, self._which = own, optics, which

    def __getitem__(self, name: str) -> list[str]:
        if name in self._own:
            return self._own[name]
        values = self._optics[name]
        return [values[i] for i in self._which]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._optics, *self._own]))  # of names alone

    def __len__(self) -> int:
        return len(self._optics.keys() | self._own.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._optics


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return np.nan


def chosen_pixel_size(path: Path, found: float | None, given: float | None, images: Any) -> float:
    """Å per pixel: what the star file says, else the argument, else the stack's header, else 1."""
    if found is not None:
        if given is not None and not np.isclose(given, found, rtol=1e-3):
            log.warning("%s: says %g Å/px; pixel_size=%g is not used", path, found, given)
        return found
    if given is not None:
        return given
    if images.voxel_size > 0:
        log.warning("%s: no pixel size; %g Å/px by the stack's header", path, images.voxel_size)
        return images.voxel_size
    log.warning("%s: no pixel size, nor in the stack's header; taken to be 1 Å/px", path)
    return 1.0


def _poses(rows: _Rows, angstrom: float | np.ndarray) -> dict[str, np.ndarray]:
    """Rotations and shifts (Å) by the star file's own columns.

    ``angstrom`` is the size of the pixels that origins may be in, one or `(N,)`.
    """
    fields = {}
    if ANGLES[2] in rows.columns and not rows.columns.keys() & ANGLES[:2]:
        log.warning(
            "%s: %s alone (of picking) is no pose; particles come without", rows.path, ANGLES[2]
        )
    elif _complete(rows, ANGLES):
        fields["rotation"] = matrix_from_euler(rows.table(*ANGLES))
    for names, unit in ((ORIGINS, 1.0), (ORIGINS_IN_PIXELS, angstrom)):
        if _complete(rows, names):
            with np.errstate(over="ignore"):  # particles refuse what is infinite
                fields["shift"] = -np.reshape(unit, (-1, 1)) * rows.table(*names)
            break
    return fields


def _complete(rows: _Rows, names: tuple[str, ...]) -> bool:
    """Whether columns that only make sense together are there."""
    missing = [name for name in names if name not in rows.columns]
    if missing and len(missing) < len(names):
        there = ", ".join(name for name in names if name not in missing)
        raise InputError(f"{rows.path}: has {there} but no column {', '.join(missing)}")
    return not missing


def poses_of_cryodrgn(
    poses: str | Path, n: int, box: int, angstrom: float
) -> dict[str, np.ndarray]:
    """Rotations and shifts (Å) by cryoDRGN's poses."""
    rotation, trans = read_poses(poses)
    if len(rotation) != n:
        raise InputError(f"{poses}: holds {len(rotation)} poses for {n} images")
    return {"rotation": rotation, "shift": -trans * box * angstrom}


def _ctf(rows: _Rows) -> np.ndarray | None:
    """CTF parameters, `(N, 7)`, or `(N, 8)` where the file has B-factors."""
    if not rows.columns.keys() & DEFOCUS:
        return None
    missing = [name for name in (*DEFOCUS, *MICROSCOPE) if name not in rows.columns]
    if missing:
        log.warning("%s: CTF not read, no column %s", rows.path, ", ".join(missing))
        return None
    check_optics(rows)
    phase = rows.table("rlnPhaseShift") if "rlnPhaseShift" in rows.columns else 0.0
    envelope = [rows.table(B_FACTOR)] if B_FACTOR in rows.columns else []
    phase = np.zeros((rows.size, 1)) + phase
    return np.hstack([rows.table(*DEFOCUS, *MICROSCOPE), phase, *envelope])


def _frames(rows: _Rows) -> np.ndarray | None:
    """Rows of the frames of each molecule, `(N, T)`, molecules in order of appearance."""
    if not _complete(rows, (MOLECULE, FRAME)):
        return None
    molecule, frame = rows.numbers(MOLECULE), rows.numbers(FRAME)
    ids, first, inverse, counts = np.unique(
        molecule, return_index=True, return_inverse=True, return_counts=True
    )
    n_frames = int(counts[0])
    other = np.flatnonzero(counts != n_frames)
    if other.size:
        raise InputError(
            f"{rows.path}: molecule {ids[0]:g} has {n_frames} frames, but molecule "
            f"{ids[other[0]]:g} has {counts[other[0]]}; expected as many of each"
        )
    if n_frames == 1:
        raise InputError(
            f"{rows.path}: one frame of each molecule, expected at least two; without the columns "
            f"{MOLECULE} and {FRAME} each image is a particle of its own"
        )
    appearance = np.argsort(np.argsort(first))[inverse]
    order = np.lexsort((frame, appearance)).reshape(-1, n_frames)
    wrong = (frame[order] != np.arange(n_frames)).any(axis=1)
    if wrong.any():
        row = order[wrong][0]
        raise InputError(
            f"{rows.path}: molecule {molecule[row[0]]:g} has frames "
            f"{', '.join(f'{f:g}' for f in frame[row])}, expected 0 to {n_frames - 1}"
        )
    return order
