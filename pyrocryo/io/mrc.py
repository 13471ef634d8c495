"""MRC files: stacks of images, read lazily, and maps. Arrays are `[z, y, x]`, lengths in Å."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property, lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.mrcinterpreter import MrcInterpreter
from mrcfile.utils import data_dtype_from_header

from pyrocryo.errors import InputError
from pyrocryo.files import regular, replacing, unreadable
from pyrocryo.io.sections import Run, Sections, identity
from pyrocryo.particles import ImageSource

__all__ = ["Header", "Stacks", "read_header", "read_map", "write_map", "write_stack"]

MODES = (0, 1, 2, 6, 12)  # int8, int16, float32, uint16, float16
OPEN_FILES = 64  # stacks open at once: a project may have thousands, a process about 1000
CHUNK = 1024  # images written at once


class Header(NamedTuple):
    """Where the pixels of an MRC file lie and what they are."""

    path: Path
    shape: tuple[int, int, int]
    """Sections, rows, columns."""
    dtype: np.dtype
    offset: int
    """Bytes before the first pixel."""
    voxel_size: float
    """Å along x; 0 where the header does not say."""
    axes: tuple[int, int, int]
    """Which axes columns, rows and sections are; (1, 2, 3) is x, y, z."""
    identity: tuple[int, int, int]
    """Size, time of change and inode of the file."""


def read_header(path: str | Path) -> Header:
    """Reads the header of an MRC file and checks it against the size of the file.

    A missing map ID, machine stamp or stack flag is forgiven, as in mrcfile's permissive mode:
    many stacks in the wild lack them.

    Raises:
        InputError: If the file is missing, of another format, of a mode without real pixels, or
            shorter than its header says.
    """
    path = Path(path)
    regular(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER_DTYPE.itemsize)
            status = os.fstat(file.fileno())
    except OSError as error:
        raise unreadable(path, error) from error
    if len(raw) < HEADER_DTYPE.itemsize:
        raise InputError(f"{path}: not an MRC file ({len(raw)} bytes are too few for a header)")
    h = np.frombuffer(raw, _header_dtype(raw)).reshape(()).view(np.recarray)
    shape = (int(h.nz), int(h.ny), int(h.nx))
    mode, extended = int(h.mode), int(h.nsymbt)
    named = bytes(h.map)[:3] == b"MAP"
    if min(shape) < 1 or extended < 0 or (mode not in MODES and not named):
        raise InputError(f"{path}: not an MRC file (its header makes no sense)")
    if mode not in MODES:
        raise InputError(f"{path}: pixels of MRC mode {mode}, expected one of {MODES}")
    dtype = data_dtype_from_header(h)
    offset = HEADER_DTYPE.itemsize + extended
    expected = offset + dtype.itemsize * shape[0] * shape[1] * shape[2]
    if status.st_size < expected:
        raise InputError(
            f"{path}: truncated, expected {expected} bytes for {shape[0]} sections of "
            f"{shape[1]} x {shape[2]} pixels, found {status.st_size}"
        )
    width = float(h.cella.x) / int(h.mx) if h.mx > 0 else 0.0
    width = float(f"{width:.6g}") if np.isfinite(width) and width > 0 else 0.0  # header is float32
    axes = (int(h.mapc), int(h.mapr), int(h.maps))
    return Header(path, shape, dtype, offset, width, axes, identity(status))


class Stacks:
    """Images of one or more MRC stacks, read when asked for.

    Everything is checked here, before a pixel is read. At most ``OPEN_FILES`` stacks are open at
    a time, and no pixel stays in memory.

    Args:
        rows: File and 0-based section of each image.
        source: What to call the list of rows in errors, such as the name of the star file.

    Raises:
        InputError: If a file cannot be used, images differ in size or are not square, or a
            section is past the end of its file.
    """

    def __init__(self, rows: Sequence[tuple[Path, int]], source: str = "the list") -> None:
        number = {path: i for i, path in enumerate(dict.fromkeys(path for path, _ in rows))}
        which = np.array([number[path] for path, _ in rows])
        self._list(list(number), which, np.array([section for _, section in rows]), source)

    @classmethod
    def of(
        cls, files: Sequence[Path], which: np.ndarray, section: np.ndarray, *, source: str
    ) -> Stacks:
        """The same from arrays `(N,)`: which of ``files`` each image is in, and its section."""
        new = cls.__new__(cls)
        new._list(files, which, section, source)
        return new

    def _list(
        self, files: Sequence[Path], which: np.ndarray, section: np.ndarray, source: str
    ) -> None:
        if not len(which):
            raise InputError(f"{source}: no images")
        self._headers = [read_header(path) for path in files]
        box = self._headers[0].shape[1]
        for h in self._headers:
            if h.shape[1] != h.shape[2]:
                raise InputError(
                    f"{h.path}: images of {h.shape[2]} x {h.shape[1]} pixels, expected squares"
                )
            if h.shape[1] != box:
                raise InputError(
                    f"{h.path}: images of {h.shape[1]} pixels, expected {box} as in "
                    f"{self._headers[0].path.name}"
                )
        held = np.array([h.shape[0] for h in self._headers])[which]
        bad = np.flatnonzero((section < 0) | (section >= held))
        if bad.size:
            i = bad[0]
            raise InputError(
                f"row {i + 1} of {source} asks for image {section[i] + 1} of "
                f"{files[which[i]].name}, which holds {held[i]}"
            )
        self._which, self._section = which, section
        self.shape = (len(which), box, box)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def headers(self) -> list[Header]:
        """Of each stack."""
        return list(self._headers)

    @property
    def voxel_size(self) -> float:
        """Å per pixel by the header of the first stack; 0 where it does not say."""
        return self._headers[0].voxel_size

    def arranged(self, order: np.ndarray) -> Stacks:
        """The images at positions ``order``, `(N,)`, or `(N, T)` for T frames of each molecule."""
        new = copy(self)
        new._which, new._section = self._which[order], self._section[order]
        new.shape = (*new._which.shape, *self.shape[-2:])
        return new

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads images; ``index`` is anything that indexes an array of the leading axes.

        Returns:
            `(*index.shape, D, D)` float32, or `(*index.shape, T, D, D)`.
        """
        which, section = self._which[index], self._section[index]
        box = self.shape[-1]
        out = np.empty((which.size, box, box), dtype=np.float32)
        files = list(_by_file(which.ravel(), section.ravel()))
        for start in range(0, len(files), OPEN_FILES):
            self._read(files[start : start + OPEN_FILES], out)
        return out.reshape(*which.shape, box, box)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open files."""
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    @cached_property
    def _open(self) -> Callable[[int], Sections]:
        headers = self._headers
        return lru_cache(OPEN_FILES)(lambda file: Sections(headers[file]))

    def _read(self, files: Sequence[tuple[int, list[Run]]], out: np.ndarray) -> None:
        opened = [(self._open(file), runs) for file, runs in files]
        for file, runs in opened:
            file.expect(runs)
        for file, runs in opened:
            file.read(runs, out)


def _by_file(which: np.ndarray, section: np.ndarray) -> Iterator[tuple[int, list[Run]]]:
    """Groups images by file: yields each file and its runs, sections in rising order."""
    order = np.lexsort((section, which))
    which, section = which[order], section[order]
    parted = (np.diff(which) != 0) | (np.diff(section) != 1) | (np.diff(order) != 1)
    starts = np.flatnonzero(np.append(True, parted))[: order.size]
    columns = which[starts], order[starts], section[starts], np.diff(starts, append=order.size)
    for file, runs in groupby(np.stack(columns, axis=1).tolist(), key=itemgetter(0)):
        yield file, [Run(*run) for _, *run in runs]


def read_map(path: str | Path) -> tuple[np.ndarray, float]:
    """Reads a density map, or a single image.

    Returns:
        The map `(D, D, D)` float32, indexed `[z, y, x]`, or the image `(D, D)`, and its voxel size
        in Å (0 where the header does not say).

    Raises:
        InputError: If the file is neither a cubic MRC map nor one square image, or its axes are
            not in the usual order.
    """
    h = read_header(path)
    shape = h.shape[1:] if h.shape[0] == 1 else h.shape
    if len(set(shape)) != 1:
        raise InputError(f"{path}: expected a cubic map, got {' x '.join(map(str, h.shape))}")
    if h.axes not in ((1, 2, 3), (0, 0, 0)):
        raise InputError(f"{path}: axes stored in the order {h.axes}, expected (1, 2, 3): x, y, z")
    out = np.empty(h.shape, dtype=np.float32)
    Sections(h).read([Run(0, 0, h.shape[0])], out)
    return out.reshape(shape), h.voxel_size


def write_map(path: str | Path, array: np.ndarray, pixel_size: float) -> None:
    """Writes a volume `(D, D, D)` or an image `(D, D)` as float32, whole or not at all.

    Args:
        path: File to write, usually ``.mrc``.
        array: Density, indexed `[z, y, x]` or `[y, x]`.
        pixel_size: Å per pixel.
    """
    array = np.asarray(array, dtype=np.float32)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(f"array: expected a map (D, D, D) or an image (D, D), got {array.shape}")
    with replacing(path) as temporary, mrcfile.new(temporary) as mrc:
        mrc.set_data(array)
        if array.ndim == 3:
            mrc.set_volume()
        mrc.voxel_size = pixel_size


def write_stack(path: str | Path, images: ImageSource, pixel_size: float) -> None:
    """Writes a stack `(N, D, D)` as float32, a chunk at a time, whole or not at all.

    Args:
        path: File to write, usually ``.mrcs``.
        images: An array, or any lazy source of images.
        pixel_size: Å per pixel.
    """
    if len(images.shape) != 3 or 0 in images.shape:
        raise InputError(f"images: expected a stack (N, D, D), got {tuple(images.shape)}")
    n = images.shape[0]
    low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
    with replacing(path) as temporary:
        with mrcfile.new(temporary) as mrc:  # writes the header of a stack of one image
            mrc.set_data(np.zeros((1, *images.shape[1:]), dtype=np.float32))
            mrc.set_image_stack()
            mrc.voxel_size = pixel_size
            h = mrc.header.copy()
        with open(temporary, "r+b") as file:
            file.seek(h.nbytes)
            for start in range(0, n, CHUNK):
                rows = np.arange(start, min(start + CHUNK, n))
                chunk = np.ascontiguousarray(images[rows], dtype=np.float32)
                file.write(chunk.data)
                low, high = min(low, chunk.min()), max(high, chunk.max())
                total += chunk.sum(dtype=np.float64)
                squares += np.square(chunk, dtype=np.float64).sum()
            size = n * images.shape[1] * images.shape[2]
            h.nz, h.dmin, h.dmax, h.dmean = n, low, high, total / size
            h.rms = np.sqrt(max(squares / size - (total / size) ** 2, 0.0))
            file.seek(0)
            file.write(h.tobytes())


def _header_dtype(raw: bytes) -> np.dtype:
    """The header's type, in the byte order that mrcfile makes out."""
    # Not the extended header: in a file of another format its length may come out as gigabytes.
    alone = raw[:92] + bytes(4) + raw[96:]
    with warnings.catch_warnings(), io.BytesIO(alone) as stream:
        # What permissive mode warns of in a header is checked by us.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="mrcfile")
        mrc = MrcInterpreter(stream, permissive=True, header_only=True)
    return mrc.header.dtype
