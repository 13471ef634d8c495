"""The images that a table lists, brought to one pixel size and box where they differ."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.io.mixed import Mixed, common_scaling
from pyrocryo.io.mrc import Stacks, read_header
from pyrocryo.io.stacks import found_stack, project_folders

__all__ = ["alike", "boxes", "images_of"]

log = logging.getLogger("pyrocryo")


def _pixel_sizes(rows: Any) -> np.ndarray | None:
    """Å per pixel of each image `(N,)` by the star file."""
    if "rlnImagePixelSize" in rows.columns:
        values = rows.numbers("rlnImagePixelSize")
    elif {"rlnDetectorPixelSize", "rlnMagnification"} <= rows.columns.keys():
        magnification = rows.numbers("rlnMagnification")
        magnification = np.where(magnification == 0, np.nan, magnification)
        values = 1e4 * rows.numbers("rlnDetectorPixelSize") / magnification  # from µm
    else:
        return None
    good = values > 0
    if not good.all():
        value = values[~good][0]
        raise InputError(f"{rows.path}: pixel size of {value:g} Å, expected more than 0")
    return values


def images_of(rows: Any, folder: str | Path | None) -> tuple[Any, float | None, np.ndarray | None]:
    """The images, their pixel size by the star file, and that of each as it is stored `(N,)`.

    The last only where they differ: these are brought to one when they are read.

    Args:
        rows: What has `columns` (strings by name), `path`, `size` and `numbers` (of a column).
        folder: Where paths start (:func:`pyrocryo.io.stacks.project_folders`).

    Raises:
        InputError: If a stack is missing, or images cannot be brought to one size.
    """
    path, sizes = rows.path, _pixel_sizes(rows)
    files, which, section = _image_rows(rows, folder)
    told = rows.numbers("rlnImageSize") if "rlnImageSize" in rows.columns else None
    found = boxes(files)[which]
    if told is not None and (told != found).any():
        i = int(np.flatnonzero(told != found)[0])
        raise InputError(
            f"{path}: rlnImageSize is {told[i]:g}, but the images are {found[i]} pixels wide"
        )
    label = next((x for x in ("rlnOpticsGroupName", "rlnOpticsGroup") if x in rows.columns), None)
    named = None if label is None else rows.columns[label]
    return alike(path, files, which, section, sizes, found, named)


def boxes(files: Sequence[Path]) -> np.ndarray:
    """Pixels along an edge of the images of each stack, by its header."""
    return np.array([read_header(file).shape[1] for file in files])


def alike(
    path: Path,
    files: Sequence[Path],
    which: np.ndarray,
    section: np.ndarray,
    sizes: np.ndarray | None,
    found: np.ndarray,
    named: Sequence[str] | None = None,
) -> tuple[Any, float | None, np.ndarray | None]:
    """Images of one pixel size and box, whether they are stored so or not.

    Args:
        path: What lists them.
        files: The stacks.
        which: `(N,)` which of them each image is in.
        section: `(N,)` and where in it, from 0.
        sizes: `(N,)` Å per pixel of each; None where nothing is known of them.
        found: `(N,)` pixels along its edge.
        named: `(N,)` what the group of each is called.

    Returns:
        The images, their pixel size (None where it is not known), and ``sizes`` where they differ.

    Raises:
        InputError: If images cannot be brought to one size.
    """
    size = None if sizes is None else float(sizes[0])
    same = sizes is None or np.allclose(sizes, sizes[0], rtol=1e-4, atol=0)
    if same and (sizes is None or (found == found[0]).all()):
        return Stacks.of(files, which, section, source=path.name), size, None
    kinds, group = np.unique(np.stack([sizes, found]), axis=1, return_inverse=True)
    group = group.ravel()
    first = [int(np.argmax(group == g)) for g in range(kinds.shape[1])]
    names = [str(g + 1) if named is None else named[i] for g, i in enumerate(first)]
    edges = kinds[1].astype(int).tolist()
    angstrom, scalings = common_scaling(kinds[0].tolist(), edges, names, path)
    place, stacks = np.empty(len(which), dtype=np.int64), []
    for g in range(len(names)):
        mine = np.flatnonzero(group == g)
        place[mine] = np.arange(len(mine))
        mine_in, local = np.unique(which[mine], return_inverse=True)
        some = [files[k] for k in mine_in]
        stacks.append(Stacks.of(some, local.ravel(), section[mine], source=path.name))
    log.warning(
        "%s: groups of images differ: %s; brought to %g Å/px, box %d, by Fourier crop",
        path,
        ", ".join(
            f"{n} ({p:g} Å/px, box {d})" for n, p, d in zip(names, kinds[0], edges, strict=True)
        ),
        angstrom,
        scalings[0].box,
    )
    return Mixed(stacks, scalings, group, place), angstrom, sizes


def _image_rows(rows: Any, folder: str | Path | None) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """The files, and for each image which of them it is in, and its 0-based section."""
    folders = project_folders(rows.path, folder)
    places: dict[str, int] = {}
    files: list[Path] = []
    which, section = np.empty(rows.size, dtype=np.int32), np.empty(rows.size, dtype=np.int64)
    for i, name in enumerate(rows.columns["rlnImageName"]):
        number, at, file = name.partition("@")
        if not (at and file and number.isdecimal() and int(number) > 0):
            rows.check("rlnImageName", np.arange(rows.size) != i, "NUMBER@FILE, numbered from 1")
        if file not in places:
            places[file] = len(files)
            files.append(found_stack(file, folders, f"row {i + 1} of {rows.path}"))
        which[i], section[i] = places[file], int(number) - 1
    return files, which, section
