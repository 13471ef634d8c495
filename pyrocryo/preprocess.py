r"""What is done to each image as it is read: a smaller box, the other sign, a background, a mask.

Images keep their origin, pixel ``D // 2``, for odd and even boxes alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
from scipy import fft

from pyrocryo.errors import InputError

__all__ = [
    "Mapped",
    "Preprocessing",
    "background",
    "check_box",
    "fourier_crop",
    "negative",
    "normalised",
    "soft_disc",
]


AT_ONCE = 2**23  # pixels read and changed at once


class Mapped:
    """Images changed one by one when they are asked for, and nothing kept of them.

    Args:
        images: An array, or a lazy source of images, `(..., D, D)`.
        change: Maps images `(n, D, D)` to `(n, box, box)` float32, each by itself.
        box: Pixels along an edge of the result, if it is another.
    """

    def __init__(
        self, images: Any, change: Callable[[np.ndarray], np.ndarray], box: int | None = None
    ) -> None:
        self._images, self._change = images, change
        side = images.shape[-1] if box is None else box
        self.shape = (*images.shape[:-2], side, side)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Images by an integer array, or by a pair of them: molecules and frames."""
        paired = isinstance(index, tuple)
        parts = np.broadcast_arrays(*index) if paired else [np.asarray(index)]
        flat = [part.ravel() for part in parts]
        each = self.shape[len(parts) :]  # what one entry of the index picks
        old = self._images.shape[-1]
        out = np.empty((flat[0].size, *each), dtype=np.float32)
        step = max(1, AT_ONCE // (math.prod(each[:-2]) * old**2))
        for start in range(0, len(out), step):
            rows = [part[start : start + step] for part in flat]
            found = np.asarray(self._images[tuple(rows) if paired else rows[0]])
            with np.errstate(
                invalid="ignore", over="ignore"
            ):  # whoever asks sees what is no number
                found = self._change(found.reshape(-1, old, old).astype(np.float32, copy=False))
            out[start : start + step] = found.reshape(-1, *each)
        return out.reshape(*parts[0].shape, *each)


def check_box(box: int, old: int) -> None:
    """Raises InputError unless images of ``old`` pixels can be cropped to ``box``."""
    if not isinstance(box, (int, np.integer)) or box % 2 or not 2 <= box <= old:
        raise InputError(f"box: expected an even number of pixels from 2 to {old}, got {box}")


def fourier_crop(images: np.ndarray, box: int, *, dims: int = 2) -> np.ndarray:
    r"""Images, or maps, with fewer and wider pixels: frequencies past the new Nyquist are cut off.

    .. math:: y(s) = \frac{1}{(m D)^{d/2}} \sum_{-m/2 \le k_i \le m/2} e^{2\pi i k \cdot s / m}
              \sum_r x(r) \, e^{-2\pi i k \cdot r / D}

    with `r` and `s` counted from the origins. Both transforms are orthonormal, so white noise of
    unit variance stays white and of unit variance; a constant, and all that is smooth, grows by
    :math:`(D/m)^{d/2}`: for images by the factor by which pixels get wider. At the new Nyquist
    frequency, where `k` and `-k` become one place, :math:`(F(k) + F(-k)) / \sqrt 2` is taken.

    Args:
        images: `(..., D, D)`, or `(..., D, D, D)` with ``dims`` = 3; `D` odd or even.
        box: `m`, even, at most `D`.
        dims: 2 for images, 3 for maps.

    Returns:
        `(..., m, m[, m])`, float32 if the images are.
    """
    old = images.shape[-1]
    check_box(box, old)
    if box == old:
        return np.array(images)
    axes, half = tuple(range(-dims, 0)), box // 2
    spectrum = fft.rfftn(images, axes=axes, norm="ortho")
    spectrum = spectrum[..., : half + 1]
    k = np.arange(half + 1)
    # the origin of an odd box is half a pixel off the half of it, and that of an even box is not
    turn = np.exp(-1j * np.pi * k / old) if old % 2 else np.ones(half + 1)
    last = turn.copy()
    last[half] *= math.sqrt(2)  # the inverse averages F(k) and F(-k) here
    spectrum = spectrum * last.astype(spectrum.dtype)
    both = np.concatenate([turn, turn[:0:-1].conj()]).astype(
        spectrum.dtype
    )  # 0 .. m/2, -m/2 .. -1
    for axis in axes[:-1]:
        s = np.moveaxis(spectrum, axis, -1)
        s = np.concatenate([s[..., : half + 1], s[..., -half:]], axis=-1) * both
        edge = (s[..., half] + s[..., half + 1]) / math.sqrt(2)
        s = np.concatenate([s[..., :half], edge[..., None], s[..., half + 2 :]], axis=-1)
        spectrum = np.moveaxis(s, -1, axis)
    return fft.irfftn(spectrum, s=(box,) * dims, axes=axes, norm="ortho")


def negative(images: np.ndarray) -> np.ndarray:
    """Images of the other sign."""
    return -images


def background(box: int) -> np.ndarray:
    """Which pixels `(box, box)` lie outside the circle that fits the box, as in RELION."""
    r = np.arange(box) - box // 2
    corner = np.hypot(r[:, None], r) > box / 2
    return corner if corner.any() else np.ones_like(corner)


def normalised(images: np.ndarray) -> np.ndarray:
    """Each image `(n, D, D)` with a background of mean 0 and standard deviation 1.

    Raises:
        InputError: If the background of one has a single value.
    """
    corner = images[:, background(images.shape[-1])].astype(np.float64)
    mean, sd = corner.mean(axis=1), corner.std(axis=1)
    if not (sd > 0).all():
        raise InputError(
            "images: the background of one has no spread to be normalised by (it is constant, or "
            "not a number); pyrocryo inspect finds such images"
        )
    return ((images - mean[:, None, None]) / sd[:, None, None]).astype(np.float32)


def soft_disc(box: int, radius: float, edge: float) -> np.ndarray:
    r"""1 up to ``radius`` (pixels), 0 past ``radius + edge``, half a cosine between: `(box, box)`.

    Args:
        box: Pixels along an edge.
        radius: Of the disc about pixel ``box // 2``.
        edge: Width of its edge; 0 makes it sharp.
    """
    r = np.arange(box) - box // 2
    beyond = np.hypot(r[:, None], r) - radius
    if edge <= 0:
        return (beyond <= 0).astype(np.float32)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(beyond / edge, 0, 1))).astype(np.float32)


class Masked:
    """Multiplies what images have above ``level`` by a mask: a function that can be pickled."""

    def __init__(self, mask: np.ndarray, level: float) -> None:
        self._mask, self._level = mask, np.float32(level)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._level + self._mask * (images - self._level)


class Preprocessing:
    """The part of :class:`~pyrocryo.particles.Particles` that changes their images."""

    images: Any
    pixel_size: float
    offset: float
    scale: float
    box: int

    def _seen(self, images: Any) -> Self:
        raise NotImplementedError  # each kind knows how it is copied

    def prepared(self, box: int | None = None, *, invert: bool = False) -> Self:
        """As files of real particles often need: :meth:`downsampled` to ``box``, :meth:`inverted`.

        Either is left out unless asked for.
        """
        made = self if box is None else self.downsampled(box)
        return made.inverted() if invert else made

    def downsampled(self, box: int) -> Self:
        """The same particles in a smaller, even ``box``, by Fourier crop when they are read.

        Pixels get wider; shifts (Å) and CTFs, which are in physical units, stay what they are.
        White noise keeps its variance (:func:`pyrocryo.preprocess.fourier_crop`).
        """
        check_box(box, self.box)
        wider = self.box / box
        crop = partial(fourier_crop, box=int(box))
        new = self._seen(Mapped(self.images, crop, int(box)))
        new.pixel_size, new.offset = self.pixel_size * wider, self.offset * wider
        return new

    def inverted(self) -> Self:
        """The same particles, dark ones made bright: images of the other sign."""
        new = self._seen(Mapped(self.images, negative))
        new.offset = 0.0 - self.offset
        return new

    def normalised(self) -> Self:
        """The same particles, the background of each image by itself of mean 0 and deviation 1.

        As RELION's extraction does it; ``standardised`` keeps how images differ, in ice or dose.
        """
        new = self._seen(Mapped(self.images, normalised))
        new.offset, new.scale = 0.0, 1.0
        return new

    def masked(self, radius: float, edge: float) -> Self:
        """The same particles, faded to ``offset`` outside ``radius`` (Å) over ``edge`` (Å).

        To be called on standardised or normalised particles. The noise out there fades as well:
        a model of white noise then counts pixels that tell nothing.
        """
        if not (radius > 0 and edge >= 0):
            raise InputError(f"radius, edge: expected positive Å, got {radius}, {edge}")
        disc = soft_disc(self.box, radius / self.pixel_size, edge / self.pixel_size)
        return self._seen(Mapped(self.images, Masked(disc, self.offset)))
