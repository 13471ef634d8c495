"""Sections of an open MRC file, read by position: the process keeps no page of it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import unreadable

if TYPE_CHECKING:
    from pyrocryo.io.mrc import Header

__all__ = ["Run", "Sections", "identity"]


class Run(NamedTuple):
    """Neighbouring sections of a file that stay neighbours where they are read to."""

    place: int
    section: int
    length: int


class Sections:
    """An open MRC file. Threads may read from it at the same time; it closes when dropped.

    The pages of a memory map count as memory of the process until the kernel wants them back;
    reading into an array leaves none behind. From a cold disk, scattered images come faster, as
    the kernel is told of all of them at once.

    Args:
        header: What :func:`~pyrocryo.io.mrc.read_header` found.

    Raises:
        InputError: If the file cannot be opened, or is no longer the one whose header was read.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        self._size = header.dtype.itemsize * header.shape[1] * header.shape[2]
        try:
            self._file = os.open(header.path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(header.path, error) from error
        weakref.finalize(self, os.close, self._file)
        self._check()

    def expect(self, runs: Sequence[Run]) -> None:
        """Lets the kernel fetch ``runs`` from the disk side by side, ahead of :meth:`read`."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            for run in runs:
                start, size = self._place(run.section), self._size * run.length
                os.posix_fadvise(self._file, start, size, os.POSIX_FADV_WILLNEED)

    def read(self, runs: Sequence[Run], out: np.ndarray) -> None:
        """Reads ``runs`` to their places in ``out`` `(N, rows, columns)`, float32.

        Raises:
            InputError: If the file has changed since its header was read.
        """
        self._check()
        for run in runs:
            target = out[run.place : run.place + run.length]
            if self._header.dtype == target.dtype:
                self._fill(target, self._place(run.section))
            else:
                raw = np.empty(target.shape, self._header.dtype)
                self._fill(raw, self._place(run.section))
                target[:] = raw

    def _place(self, section: int) -> int:
        return self._header.offset + section * self._size

    def _fill(self, array: np.ndarray, place: int) -> None:
        """Fills a contiguous ``array`` from the byte ``place`` on."""
        left = memoryview(array.view(np.uint8)).cast("B")
        while left:
            try:
                n = os.preadv(self._file, [left], place)  # 2 GiB at most
            except OSError as error:
                raise unreadable(self._header.path, error) from error
            if not n:
                raise InputError(f"{self._header.path}: ends before its last image")
            left, place = left[n:], place + n

    def _check(self) -> None:
        if identity(os.fstat(self._file)) != self._header.identity:
            path = self._header.path
            raise InputError(f"{path}: changed since it was opened; load it again")


def identity(status: os.stat_result) -> tuple[int, int, int]:
    """Size, time of change and inode: another file under the same name differs in one of them."""
    return status.st_size, status.st_mtime_ns, status.st_ino
