"""Particles of cryoSPARC: a .cs file, and the passthrough file that goes with it.

A .cs file is a numpy array of records (the .npy format under another name), one a particle.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.io.listed import alike, boxes
from pyrocryo.io.relion import chosen_pixel_size, poses_of_cryodrgn
from pyrocryo.io.stacks import found_stack, project_folders
from pyrocryo.particles import Particles
from pyrocryo.rotations import matrix_from_vector

__all__ = ["Fields", "load", "read", "rotations"]

log = logging.getLogger("pyrocryo")

UID, BOX, PIXEL_SIZE, SIGN = "uid", "blob/shape", "blob/psize_A", "blob/sign"
STACK, SECTION = "blob/path", "blob/idx"
POSE, SHIFT, SHIFT_PIXEL_SIZE = "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A"
DEFOCUS = ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad")
MICROSCOPE = ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
PHASE = "ctf/phase_shift_rad"
NOT_MODELLED = {  # shape of a row, and the value that says it is not there
    "ctf/scale": ((), 1),
    "ctf/bfactor": ((), 0),
    "ctf/shift_A": ((2,), 0),
    "ctf/tilt_A": ((2,), 0),
    "ctf/trefoil_A": ((2,), 0),
    "ctf/tetra_A": ((4,), 0),
}
ANISOTROPY = "ctf/anisomag"  # the magnification matrix less the identity, by rows
OTHER_POSES = ("alignments2D/", "alignments3D_multi/", "alignments_class")
TEMPERATURE, TIME = "pyrocryo/temperature", "pyrocryo/time"
LONGEST_HEADER = 2**16  # bytes; numpy's own limit is meant for small arrays


def read(path: str | Path) -> np.ndarray:
    """The records of a .cs file, mapped from disk: nothing is copied, and no pickle is run.

    Returns:
        `(N,)` of a structured dtype, one field a column.

    Raises:
        InputError: If the file cannot be read, is no array of records, holds Python objects, or
            is shorter than its header says.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        table = np.lib.format.open_memmap(path, mode="r", max_header_size=LONGEST_HEADER)
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror or error})") from error
    except Exception as error:  # a header that makes no sense fails in any way it likes
        said = " ".join(str(error).split())
        if "Python objects" in said:
            said = "it holds Python objects, which only running it could bring back"
        elif "mmap length" in said:
            said = f"truncated: its header promises more than its {size} bytes"
        raise InputError(f"{path}: not a .cs file ({said})") from error
    if table.dtype.names is None or table.ndim != 1 or not table.dtype.itemsize:
        raise InputError(
            f"{path}: not a .cs file (an array {table.shape} of {table.dtype}, expected records)"
        )
    if table.nbytes > size:
        raise InputError(f"{path}: truncated: its header promises more than its {size} bytes")
    if not len(table):
        raise InputError(f"{path}: holds no particles")
    return table


def load(
    path: str | Path,
    *,
    passthrough: str | Path | None = None,
    poses: str | Path | None = None,
    pixel_size: float | None = None,
    folder: str | Path | None = None,
    test_fraction: float = 0.1,
    split_seed: int = 0,
) -> Particles:
    r"""Loads the particles of a .cs file; images stay on disk until they are needed.

    cryoSPARC's ``alignments3D/pose`` is the rotation vector of :math:`A^\top`, and
    ``alignments3D/shift`` what must be added to centre an image, in pixels of
    ``alignments3D/psize_A``: ``shift`` is minus that. Images are multiplied by ``blob/sign``, so
    that molecules are bright. Images of several pixel sizes or boxes are brought to the coarsest
    as they are read (:mod:`pyrocryo.io.mixed`). In-plane poses of 2-D classification are not read.

    Args:
        path: The particles a job puts out.
        passthrough: The job's passthrough file, for the fields that ``path`` lacks; its rows are
            found by ``uid``, in any order, and those of other particles are left out.
        poses: Pickle of cryoDRGN's to take rotations and shifts from, in place of the file's.
        pixel_size: Å per pixel, where the file does not say.
        folder: The project's folder, where ``blob/path`` starts; by default it is looked for in
            the folder of the file, in the current one, and in those above the file.
        test_fraction: Share held out, as for :class:`~pyrocryo.particles.Particles`.
        split_seed: Seed that draws it.

    Returns:
        Particles with ``rotation``, ``shift`` (Å), ``ctf`` `(N, 7)` (as for
        :func:`pyrocryo.io.relion.load`), ``temperature`` (K, ``pyrocryo/temperature``) and
        ``time`` (s, ``pyrocryo/time``), each if the files have it.

    Raises:
        InputError: If anything is missing, inconsistent or would be silently ignored.
    """
    path = Path(path)
    table = Fields(path, None if passthrough is None else Path(passthrough))
    _check_magnification(table)
    images, found, sizes = _images(table, folder)
    angstrom = chosen_pixel_size(path, found, pixel_size, images)
    if poses is None:
        fields = _poses(table, angstrom if sizes is None else sizes)
    elif sizes is not None:
        raise InputError(f"{poses}: shifts are shares of one box, and {path} has several")
    else:
        fields = poses_of_cryodrgn(poses, table.size, images.shape[-1], angstrom)
    ctf = _ctf(table)
    if ctf is not None:
        fields["ctf"] = ctf
    without = [
        said for name, said in (("rotation", "poses"), ("ctf", "CTF")) if name not in fields
    ]
    if without and (near := table.beside()):
        log.warning(
            "%s: no %s in it; the passthrough file %s beside it may have them, name it with "
            "--passthrough",
            path, " and no ".join(without), near[0],
        )  # fmt: skip
    if TEMPERATURE in table:
        fields["temperature"] = kelvin = table.numbers(TEMPERATURE)
        table.check(TEMPERATURE, kelvin > 0, "kelvin, more than 0")
    if TIME in table:
        fields["time"] = table.numbers(TIME)
    if SIGN in table:
        sign = table.numbers(SIGN)
        table.check(SIGN, np.abs(sign) == 1, "1 or -1")
        if (sign < 0).any():
            dark = int((sign < 0).sum())
            log.info("%s: %d of %d images are dark (%s); inverted", path, dark, len(sign), SIGN)
            images = _Signed(images, sign)
    options = {"test_fraction": test_fraction, "split_seed": split_seed}
    return Particles(images, pixel_size=angstrom, **options, **fields)


class _Signed:
    """Images of stacks, each times 1 or -1."""

    def __init__(self, stacks: Any, sign: np.ndarray) -> None:
        self.stacks, self.sign = stacks, sign.astype(np.float32)
        self.shape, self.dtype = stacks.shape, stacks.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        images = self.stacks[index]
        images *= self.sign[index][..., None, None]
        return images


class Fields:
    """The columns of a .cs file, and those of its passthrough file in the same order."""

    def __init__(self, path: Path, passthrough: Path | None = None) -> None:
        self.path = path
        self._own = read(path)
        self._other = None if passthrough is None else read(passthrough)
        self.size = len(self._own)
        self._passthrough = passthrough
        if passthrough is not None and self._other is not None:
            mine, theirs = _uid(self._own, path), _uid(self._other, passthrough)
            self._place = _places(mine, theirs, path, passthrough)

    def __contains__(self, name: str) -> bool:
        other = () if self._other is None else self._other.dtype.names
        return name in self._own.dtype.names or name in other

    def names(self) -> list[str]:
        """Of all columns."""
        other = () if self._other is None else self._other.dtype.names
        return [*self._own.dtype.names, *other]

    def raw(self, name: str) -> np.ndarray:
        """A column as it is stored, `(N, ...)`."""
        if name in self._own.dtype.names:
            return self._own[name]
        if self._other is not None and name in self._other.dtype.names:
            return self._other[name][self._place]
        where = "" if self._passthrough is None else f" nor in {self._passthrough}"
        raise InputError(f"{self.path}: no field {name}{where}{self._hint()}")

    def _hint(self) -> str:
        if self._passthrough is not None:
            return ""
        near = self.beside()
        found = f" ({', '.join(near[:3])} is beside it)" if near else ""
        return (
            "; the passthrough file of the job may have it, name it with passthrough= "
            f"(--passthrough on the command line){found}"
        )

    def beside(self) -> list[str]:
        """Names of passthrough files in the same folder, where none was given."""
        if self._passthrough is not None:
            return []
        found = sorted(self.path.parent.glob("*passthrough*.cs"))
        return [file.name for file in found if file.is_file() and file != self.path]

    def numbers(self, name: str, *shape: int) -> np.ndarray:
        """A column of finite numbers, `(N, *shape)` float64."""
        raw = self.raw(name)
        if raw.dtype.kind not in "iuf" or raw.shape[1:] != shape:
            one = " x ".join(map(str, raw.shape[1:])) or "1"
            raise InputError(
                f"{self.path}: {name} holds {one} of {raw.dtype} a row, expected "
                f"{' x '.join(map(str, shape)) or '1'} number(s)"
            )
        with np.errstate(invalid="ignore"):  # of signalling NaN; told below
            values = np.array(raw, dtype=np.float64)
        good = np.isfinite(values).reshape(self.size, -1).all(axis=1)
        self.check(name, good, "finite numbers")
        return values

    def check(self, name: str, good: np.ndarray, expected: str) -> None:
        """Raises InputError for the first row of column ``name`` that is not good."""
        if not good.all():
            i = int(np.flatnonzero(~good)[0])
            value = self.raw(name)[i].tolist()
            raise InputError(
                f"row {i + 1} of {self.path}: {name} is {value!r}, expected {expected}"
            )


def _uid(table: np.ndarray, path: Path) -> np.ndarray:
    names = table.dtype.names or ()
    if UID not in names or table[UID].dtype.kind not in "iu" or table[UID].ndim != 1:
        raise InputError(f"{path}: no field {UID} of whole numbers, by which rows are joined")
    return np.array(table[UID])


def _places(mine: np.ndarray, theirs: np.ndarray, path: Path, passthrough: Path) -> np.ndarray:
    """Where in ``theirs`` each of ``mine`` is, `(N,)`."""
    order = np.argsort(theirs, kind="stable")
    ranked = theirs[order]
    twice = np.flatnonzero(ranked[1:] == ranked[:-1])
    if twice.size:
        raise InputError(f"{passthrough}: two rows have the uid {ranked[twice[0]]}")
    place = order[np.searchsorted(ranked, mine).clip(max=len(theirs) - 1)]
    gone = np.flatnonzero(theirs[place] != mine)
    if gone.size:
        raise InputError(
            f"{passthrough}: no row for {gone.size} of the {len(mine)} particles of {path} "
            f"(first uid {mine[gone[0]]}); is it of the same job?"
        )
    return place


def _check_magnification(table: Fields) -> None:
    if ANISOTROPY in table:
        matrix = np.abs(table.numbers(ANISOTROPY, 4)).max(axis=1)
        table.check(ANISOTROPY, matrix < 1e-6, "0: anisotropic magnification is not supported")


def _images(
    table: Fields, folder: str | Path | None
) -> tuple[Any, float | None, np.ndarray | None]:
    """As :func:`pyrocryo.io.listed.images_of`."""
    sizes = None
    if PIXEL_SIZE in table:
        values = table.numbers(PIXEL_SIZE)
        table.check(PIXEL_SIZE, values > 0, "more than 0")
        short, which = np.unique(values, return_inverse=True)
        sizes = np.array([float(f"{v:.6g}") for v in short])[which.ravel()]  # of float32s
    files, which, section = _image_rows(table, folder)
    found = boxes(files)[which]
    if BOX in table:
        wrong = (table.numbers(BOX, 2) != found[:, None]).any(axis=1)
        expected = found[np.argmax(wrong)]
        table.check(BOX, ~wrong, f"{expected} x {expected}, as the stack's images are")
    return alike(table.path, files, which, section, sizes, found)


def _image_rows(
    table: Fields, folder: str | Path | None
) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """The files, which of them each image is in, and its section."""
    raw = table.raw(STACK)
    if raw.dtype.kind not in "SU" or raw.ndim != 1:
        raise InputError(f"{table.path}: {STACK} holds {raw.dtype}, expected text")
    section = table.numbers(SECTION).astype(np.int64)
    names, which = np.unique(raw, return_inverse=True)
    folders = project_folders(table.path, folder)
    return [_found(table, os.fsdecode(name), folders) for name in names.tolist()], which, section


def _found(table: Fields, name: str, folders: list[Path]) -> Path:
    """The stack ``name``; cryoSPARC marks imported ones by a leading '>'."""
    marked = name.startswith(">") and not any(os.path.isfile(folder / name) for folder in folders)
    return found_stack(name[1:] if marked else name, folders, str(table.path))


def rotations(table: Fields, name: str) -> np.ndarray:
    """Rotations `(N, 3, 3)` of a column of cryoSPARC's poses, whose matrices are transposed."""
    return matrix_from_vector(-table.numbers(name, 3))


def _poses(table: Fields, angstrom: float | np.ndarray) -> dict[str, np.ndarray]:
    """Rotations and shifts (Å) of 3-D alignments; pixels are of one size, or each `(N,)`."""
    fields = {}
    if POSE in table:
        fields["rotation"] = rotations(table, POSE)
    else:
        others = {n.split("/")[0] for n in table.names() if n.startswith(OTHER_POSES)}
        if others:
            log.warning(
                "%s: poses of %s are not read, only of alignments3D; particles come without "
                "(flat ones can have theirs inferred, pose in-plane)",
                table.path, ", ".join(sorted(others)),
            )  # fmt: skip
    if SHIFT in table:
        unit = np.broadcast_to(angstrom, (table.size,))
        if SHIFT_PIXEL_SIZE in table:
            unit = table.numbers(SHIFT_PIXEL_SIZE)
            table.check(SHIFT_PIXEL_SIZE, unit > 0, "more than 0")
        fields["shift"] = -unit[:, None] * table.numbers(SHIFT, 2)
    return fields


def _ctf(table: Fields) -> np.ndarray | None:
    """CTF parameters, `(N, 7)`."""
    if DEFOCUS[0] not in table:
        return None
    missing = [name for name in (*DEFOCUS, *MICROSCOPE) if name not in table]
    if missing:
        log.warning("%s: CTF not read, no field %s", table.path, ", ".join(missing))
        return None
    for name, (shape, value) in NOT_MODELLED.items():
        if name in table and (table.numbers(name, *shape) != value).any():
            log.warning("%s: %s other than %g is not modelled", table.path, name, value)
    u, v, angle = (table.numbers(name) for name in DEFOCUS)
    phase = table.numbers(PHASE) if PHASE in table else np.zeros(table.size)
    microscope = (table.numbers(name) for name in MICROSCOPE)
    return np.stack([u, v, np.rad2deg(angle), *microscope, np.rad2deg(phase)], axis=1)
