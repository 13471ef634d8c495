r"""Images of several boxes and pixel sizes brought to one, as they are read.

With :math:`p_g` and :math:`D_g` the pixel size and box of group `g`, the result has the coarsest
pixel size :math:`P = \max p_g` and the largest even box `B` that fits into each,
:math:`B P \le D_g p_g`. Each image is padded or cropped about its origin to :math:`D'`, Fourier
cropped to `m` (:func:`pyrocryo.preprocess.fourier_crop`) and cropped to `B`, with the smallest
even :math:`m \ge B` for which

.. math:: |p_g D' / m - P| < 10^{-4} P

Padding repeats the image in a mirror and is cut off again. White noise keeps its variance, as it
does where each group is normalised for itself: at an equal dose, images of equal noise are then
equally bright, too. Shifts and CTFs are in physical units and stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.io.mrc import Header, Stacks
from pyrocryo.preprocess import Mapped, fourier_crop

__all__ = ["Mixed", "Scaling", "common_scaling"]

CLOSE = 1e-4  # of the pixel size, that a group may be off
FARTHEST = 2  # times B, up to which m is looked for


class Scaling(NamedTuple):
    """What is done to the images of a group."""

    padded: int
    """D': pixels along an edge before the Fourier crop."""
    cropped: int
    """m: and after it."""
    box: int
    """B."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images `(n, B, B)` of images `(n, D, D)`."""
        images = _about_origin(images, self.padded)
        if self.cropped != self.padded:
            images = fourier_crop(images, self.cropped)
        return _about_origin(images, self.box)


def common_scaling(
    sizes: Sequence[float], boxes: Sequence[int], names: Sequence[str], path: Path
) -> tuple[float, list[Scaling]]:
    """The pixel size (Å) that groups are brought to, and how each is.

    Raises:
        InputError: If a group cannot be; names all of them.
    """
    coarsest = max(sizes)
    least = min(p * d for p, d in zip(sizes, boxes, strict=True))
    box = int(least / coarsest * (1 + CLOSE)) // 2 * 2
    found = [_scaling(coarsest / p, d, box) for p, d in zip(sizes, boxes, strict=True)]
    if box < 2 or None in found:
        told = ", ".join(
            f"{name} ({p:g} Å/px, box {d})" for name, p, d in zip(names, sizes, boxes, strict=True)
        )
        raise InputError(
            f"{path}: groups of images differ in pixel size or box, and no Fourier crop brings "
            f"them to {coarsest:g} Å/px: {told}; bring them to one"
        )
    return coarsest, [one for one in found if one is not None]


def _scaling(wider: float, old: int, box: int) -> Scaling | None:
    """How images of ``old`` pixels get pixels ``wider`` times as wide, or None."""
    if wider == 1:
        return Scaling(box, box, box)
    for cropped in range(max(box, 2), FARTHEST * box + 1, 2):
        padded = round(cropped * wider)
        if abs(padded / (cropped * wider) - 1) < CLOSE and padded < FARTHEST * old:
            return Scaling(padded, cropped, box)
    return None


def _about_origin(images: np.ndarray, box: int) -> np.ndarray:
    """Images `(n, D, D)` cropped, or mirrored at their edges, to ``box`` about pixel `D // 2`."""
    old = images.shape[-1]
    before = box // 2 - old // 2
    if box > old:
        after = box - old - before
        return np.pad(images, ((0, 0), (before, after), (before, after)), mode="symmetric")
    return images[:, -before : -before + box, -before : -before + box]


class Mixed:
    """Images of groups of stacks, each group scaled to the same box in its own way.

    Args:
        stacks: The images of each group.
        scalings: What is done to them.
        group: `(N,)` which group each image is in.
        place: `(N,)` where in it.
    """

    def __init__(
        self,
        stacks: Sequence[Stacks],
        scalings: Sequence[Scaling],
        group: np.ndarray,
        place: np.ndarray,
    ) -> None:
        box = scalings[0].box
        self._stacks = list(stacks)
        self._mapped = [
            Mapped(images, scale, box) for images, scale in zip(stacks, scalings, strict=True)
        ]
        self._group, self._place = group, place
        self.shape = (*group.shape, box, box)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def headers(self) -> list[Header]:
        """Of each stack."""
        return [header for images in self._stacks for header in images.headers]

    def arranged(self, order: np.ndarray) -> Mixed:
        """As :meth:`Stacks.arranged`."""
        new = object.__new__(Mixed)
        new.__dict__.update(self.__dict__)
        new._group, new._place = self._group[order], self._place[order]
        new.shape = (*order.shape, *self.shape[-2:])
        return new

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads images, as :class:`Stacks` does: `(*index.shape, [T,] B, B)` float32."""
        group, place = self._group[index], self._place[index]
        out = np.empty((group.size, *self.shape[-2:]), dtype=np.float32)
        flat, where = group.ravel(), place.ravel()
        for g in np.unique(flat):
            mine = np.flatnonzero(flat == g)
            out[mine] = self._mapped[g][where[mine]]
        return out.reshape(*group.shape, *self.shape[-2:])
