"""Results of other programs: latents, and what lies beside them in a run's folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import regular
from pyrocryo.io.cryodrgn import read_pickles
from pyrocryo.io.cryodrgn_settings import found_beside, read_settings
from pyrocryo.io.tables import Columns, doubles, read_columns

__all__ = ["Latents", "read_array", "read_ctf", "read_indices", "read_latents"]


@dataclass
class Latents:
    """Latents of one run.

    Attributes:
        name: What to call the run.
        z: `(N, K)` posterior means.
        sd: `(N, K)` posterior standard deviations; None without.
        beside: Poses and columns that lie in the run's folder; None without.
        notes: What was looked for and not found or not understood.
        folder: The run's folder; None of a single file.
        epoch: Of a run folder, which; None for the last.
    """

    name: str
    z: np.ndarray
    sd: np.ndarray | None = None
    beside: Columns | None = None
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None
    epoch: int | None = None


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file; no pickle is run, and no header makes room for what is not there.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        regular(path)  # mapped: a header may claim more than the file holds
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except InputError:
        raise
    except Exception as error:  # numpy parses the header as Python, which fails in many ways
        raise InputError(f"{path}: cannot be read as an array ({error})") from None


def read_latents(path: str | Path, *, epoch: int | None = None) -> Latents:
    """Latents of a .npy array, of a .pkl of cryoDRGN's, or of its run folder.

    A pickle may hold posterior means alone, or means and then logarithms of variances. Of a run
    folder the last ``z.N.pkl`` is read; with it the poses of the same epoch where they were
    trained (``pose.N.pkl``), else the poses, CTFs and indices that ``config.yaml`` names, where
    these files can be found.

    Args:
        path: File or folder.
        epoch: Of a run folder, which epoch.

    Raises:
        InputError: If there are no latents, or they cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, epoch)
    sd = None
    if path.suffix == ".npy":
        z = read_array(path)
    elif path.suffix == ".pkl":
        z, *rest = read_pickles(path, most=2)
        if rest and isinstance(z, np.ndarray):
            if getattr(rest[0], "shape", None) != z.shape or rest[0].dtype.kind != "f":
                raise InputError(f"{path}: expected log-variances of the shape of z behind it")
            with np.errstate(over="ignore"):
                sd = np.exp(0.5 * doubles(rest[0]))
    else:
        raise InputError(f"{path}: expected a run folder of cryoDRGN's, a .npy array or a .pkl")
    if not isinstance(z, np.ndarray) or z.ndim not in (1, 2) or z.dtype.kind not in "iuf":
        shape = getattr(z, "shape", type(z).__name__)
        raise InputError(f"{path}: expected latents (N, K), got {shape}")
    n = len(z)
    return Latents(str(path), doubles(z.reshape(n, -1)), None if sd is None else sd.reshape(n, -1))


def read_ctf(path: str | Path) -> np.ndarray:
    """Defocus (Å) `(N, 2)` of cryoDRGN's pickled CTFs, `(N, 9)`."""
    ctf = read_pickles(path)[0]
    if not isinstance(ctf, np.ndarray) or ctf.ndim != 2 or ctf.shape[1] not in (8, 9):
        raise InputError(f"{path}: expected CTFs (N, 9), got {getattr(ctf, 'shape', type(ctf))}")
    if ctf.dtype.kind not in "iuf":
        raise InputError(f"{path}: expected numbers, got {ctf.dtype}")
    return doubles(ctf[:, -7:-5])


def read_indices(path: str | Path, size: int | None = None) -> np.ndarray:
    """Numbers of particles, from 0, `(n,)`, of a pickle of cryoDRGN's."""
    found = read_pickles(path)[0]
    try:
        rows = np.asarray(found)
    except ValueError:  # lists of several lengths
        raise InputError(f"{path}: expected numbers of particles from 0, got lists") from None
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or (rows < 0).any():
        raise InputError(
            f"{path}: expected numbers of particles from 0, got {rows.dtype} {rows.shape}"
        )
    if size is not None and len(rows) and rows.max() >= size:
        raise InputError(f"{path}: names particle {rows.max()} of {size}")
    return rows.astype(np.intp)


def _folder(folder: Path, epoch: int | None) -> Latents:
    if (folder / "posterior.nc").is_file():
        raise InputError(
            f"{folder}: a run of pyrocryo: pyrocryo report and identify are for these"
        )
    found = {
        int(match[1]): path
        for path in folder.glob("z.*.pkl")
        if (match := re.fullmatch(r"z\.(\d+)\.pkl", path.name))
    }
    if epoch is None and not found and (folder / "z.pkl").is_file():
        path = folder / "z.pkl"
    elif not found:
        raise InputError(f"{folder}: no latents, expected files z.N.pkl as cryoDRGN writes them")
    elif epoch is not None and epoch not in found:
        raise InputError(f"epoch: {folder} has {', '.join(map(str, sorted(found)))}, got {epoch}")
    else:
        epoch = max(found) if epoch is None else epoch
        path = found[epoch]
    run = read_latents(path)
    run.folder, run.epoch = folder, epoch
    run.name = f"{folder} (epoch {epoch})" if epoch is not None else str(folder)
    own = folder / (f"pose.{epoch}.pkl" if epoch is not None else "pose.pkl")
    told, notes = _config(folder)
    run.notes += notes
    try:
        run.beside = _beside(folder, own, told, len(run.z), run.notes)
    except InputError as error:
        run.notes.append(str(error))
    return run


def _beside(
    folder: Path, own: Path, told: dict[str, str], n: int, notes: list[str]
) -> Columns | None:
    """What a run folder and its settings lead to."""
    paths = {}
    for name in ("poses", "ctf", "ind"):
        if name not in told:
            continue
        paths[name] = found_beside(folder, told[name])
        if paths[name] is None:
            notes.append(f"{folder}: its settings name {told[name]} ({name}), which is not there")
    if own.is_file():
        paths["poses"] = own
    columns = Columns(n)
    rows = None
    if paths.get("ind") is not None:
        rows = read_indices(paths["ind"])
    if paths.get("poses") is not None:
        columns = _fitting(read_columns(paths["poses"]), rows, n, paths["poses"])
    if paths.get("ctf") is not None:
        defocus = read_ctf(paths["ctf"])
        ctf = _fitting(Columns(len(defocus), usual={"defocus": defocus}), rows, n, paths["ctf"])
        columns.usual |= ctf.usual
    if (listed := found_beside(folder, told.get("particles", ""))) is not None:
        columns.image = _images(listed, rows, n, notes)
    return columns if columns.rotation is not None or columns.usual else None


def _images(path: Path, rows: np.ndarray | None, n: int, notes: list[str]) -> np.ndarray | None:
    """Which rows show the same image, if the particles that were trained on are in a list."""
    if path.suffix.lower() not in (".star", ".cs"):
        return None
    try:
        return _fitting(read_columns(path), rows, n, path).image
    except InputError as error:
        notes.append(f"whether images are listed more than once: {error}")
        return None


def _fitting(columns: Columns, rows: np.ndarray | None, n: int, path: Path) -> Columns:
    """Those of the particles that a run has latents of."""
    if columns.size != n and rows is not None and len(rows) == n and rows.max() < columns.size:
        return columns.take(rows)
    if columns.size != n:
        raise InputError(f"{path}: {columns.size} particles, but z has {n}")
    return columns


def _config(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Where cryoDRGN's settings say that poses, CTFs and indices are."""
    try:
        told = read_settings(folder).get("dataset_args", {})
    except InputError as error:
        return {}, [f"settings not read: {error}"]
    return {k: v for k, v in told.items() if isinstance(v, str)}, []
