"""Windows of consecutive frames, cut from trajectories without copying a pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

__all__ = ["cut", "windowed"]


def windowed(images: Any, frames: int) -> Any:
    """Trajectories `(N, T, D, D)` as windows of all frames in a row, `(N T - frames + 1, ...)`.

    The window that starts with frame `t` of molecule `i` is number `i T + t`. Those that reach
    over the end of a molecule into the next are counted, and not to be asked for.

    Args:
        images: An array (the windows are a view of it, and memory maps stay on disk), or anything
            with `shape` that is indexed by a pair of integer arrays.
        frames: Frames of a window.

    Returns:
        What holds windows `(frames, D, D)`, and is indexed by an integer array.
    """
    if not isinstance(images, np.ndarray):
        return _Windows(images, frames)
    flat = images.reshape(-1, *images.shape[2:])
    return np.moveaxis(sliding_window_view(flat, frames, axis=0, subok=True), -1, 1)


def cut(value: np.ndarray, frames: int) -> np.ndarray:
    """What is known of each frame, `(N, T, ...)`, of all windows, `(N (T - frames + 1), ...)`."""
    first = np.arange(value.shape[1] - frames + 1)
    return value[:, first[:, None] + np.arange(frames)].reshape(-1, frames, *value.shape[2:])


class _Windows:
    """Windows of images that are read when asked for, each with its own frames only."""

    def __init__(self, images: Any, frames: int) -> None:
        self._images, self._frames = images, np.arange(frames)
        n, t, *size = images.shape
        self.shape = (n * t - frames + 1, frames, *size)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        molecule, first = np.divmod(np.asarray(index), self._images.shape[1])
        return self._images[molecule[..., None], first[..., None] + self._frames]
