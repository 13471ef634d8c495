"""The data: particle images and whatever is known of each of them."""

from __future__ import annotations

import hashlib
from collections import namedtuple
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.fields import checked
from pyrocryo.preprocess import Preprocessing, background
from pyrocryo.windows import cut, windowed

__all__ = ["PER_IMAGE", "ImageSource", "Particles", "Statistics", "evenly"]

CHUNK = 1024  # particles read at once when the whole stack is scanned, at most,
PIXELS = 2**24  # and pixels
CACHED = 16  # images of them summed at once, in double precision
CLEAN = 0.1  # background sd over that of all pixels, below which a stack counts as noise-free
# fields with one entry a frame; all others have one a molecule
PER_IMAGE = ("rotation", "shift", "ctf", "time", "truth")
SIMULATED = ("true_rotation", "true_shift", "contrast")  # so do these, which no model reads


class ImageSource(Protocol):
    """What images must offer: an array, a memory map, or a lazy list of stacks.

    As with arrays, what an integer array picks is new: whoever asked may change it. To be cut into
    windows, frames must also be had by a pair of integer arrays, molecules and frames.
    """

    shape: tuple[int, ...]

    def __getitem__(self, index: np.ndarray) -> np.ndarray: ...


def evenly(n: int, most: int) -> np.ndarray:
    """At most ``most`` of the positions 0, ..., n - 1, ascending and from all over them.

    Those of the smallest fractional parts of i (√5 - 1) / 2: whichever way conditions alternate,
    none is preferred (Weyl 1916), and fewer are a part of more, so that answers go together.
    """
    return np.sort(np.argsort(np.arange(n) * (0.5 * np.sqrt(5) - 0.5) % 1)[: max(most, 0)])


class Statistics(NamedTuple):
    """Mean and standard deviation over all particles, of all pixels and of the background.

    The background is what lies outside the circle that fits the box, as in RELION.
    """

    mean: float
    sd: float
    background_mean: float
    background_sd: float


class Particles(Preprocessing):
    r"""Images and the per-particle fields that describe them.

    Conventions. The image of a molecule with density `v` is

    .. math:: x(r) = \int v(A^\top ((r - t), s)) \, ds + \epsilon

    with `A` = ``rotation`` (a point `p` of the molecule is seen at `A p`; RELION's
    :math:`R_z(\psi) R_y(\theta) R_z(\phi)`) and `t` = ``shift``, the displacement of the molecule
    from the box centre, which is pixel ``box // 2`` on both axes. Images are indexed `[y, x]`.

    Args:
        images: `(N, D, D)`, or `(N, T, D, D)` for T frames of each molecule; an array or
            anything with `shape` and integer-array indexing (memory maps stay on disk).
        pixel_size: Å per pixel.
        test_fraction: Share of the particles held out as ``test``; the frames of one molecule
            are never parted.
        split_seed: Seed that draws the held-out particles.
        offset: Subtracted from every pixel when a batch is made.
        scale: Divides every pixel after that.
        **fields: Arrays with one entry a particle. Known names are checked:
            ``rotation`` `(N, [T,] 3, 3)`, ``shift`` `(N, [T,] 2)` in Å, ``ctf`` `(N, [T,] 7)` or
            `(N, [T,] 8)` (:func:`pyrocryo.imaging.contrast_transfer`), ``temperature`` `(N,)` in
            K, ``time`` `(N, [T])` in s, ``truth`` `(N, [T,] K)` (true conformation of simulated
            particles). Any other name is kept and handed to priors that ask for it.

    Raises:
        InputError: If a shape, a range or a name is wrong.
    """

    def __init__(
        self,
        images: ImageSource,
        *,
        pixel_size: float = 1.0,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        offset: float = 0.0,
        scale: float = 1.0,
        **fields: Any,
    ) -> None:
        shape = tuple(images.shape)
        if len(shape) not in (3, 4) or shape[-1] != shape[-2] or 0 in shape:
            raise InputError(
                f"images: expected shape (N, D, D) or (N, T, D, D) with square images, got {shape}"
            )
        if not (np.isfinite(pixel_size) and pixel_size > 0):
            raise InputError(f"pixel_size: expected a positive number of Å, got {pixel_size}")
        if not 0 <= test_fraction < 1:
            raise InputError(f"test_fraction: expected a number in [0, 1), got {test_fraction}")
        if not (np.isfinite(scale) and scale > 0):
            raise InputError(f"scale: expected a positive number, got {scale}")
        self.images = images
        self.pixel_size = float(pixel_size)
        self.offset = float(offset)
        self.scale = float(scale)
        index = fields.pop("index", None)
        self.index = np.arange(shape[0]) if index is None else np.asarray(index)
        if self.index.shape != shape[:1]:
            raise InputError(f"index: expected shape {shape[:1]}, got {self.index.shape}")
        self.fields = {
            name: checked(name, np.asarray(value), shape, Particles)
            for name, value in fields.items()
            if value is not None
        }
        self._batch = namedtuple("Batch", ("images", "index", "pixel_size", *self.fields))
        self._rows = np.arange(shape[0])
        self._windows = 1  # of each molecule
        n_test = max(1, round(test_fraction * shape[0])) if test_fraction and shape[0] > 1 else 0
        held_out = np.random.default_rng(split_seed).permutation(shape[0])[:n_test]
        self._test = np.isin(self._rows, held_out) if n_test else None
        self._statistics: Statistics | None = None
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> np.ndarray:
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"these particles have no field {name!r}, only {sorted(fields)}")

    def __repr__(self) -> str:
        frames = f" x {self.frames} frames" if self.frames else ""
        return (
            f"Particles({len(self)}{frames}, box {self.box}, {self.pixel_size:g} Å/px, "
            f"fields {', '.join(self.fields) or 'none'})"
        )

    @property
    def box(self) -> int:
        """Pixels along one edge of an image."""
        return int(self.images.shape[-1])

    @property
    def frames(self) -> int | None:
        """Frames of each molecule, or None when each particle is one image."""
        return int(self.images.shape[1]) if len(self.images.shape) == 4 else None

    @property
    def image_rows(self) -> np.ndarray:
        """Rows `(N, [T])` of the images in the stack they came from, molecule after molecule."""
        if self.frames is None:
            return self.index
        molecule, first = np.divmod(self.index, self._windows)
        start = molecule * (self._windows + self.frames - 1) + first
        return start[:, None] + np.arange(self.frames)

    @property
    def molecule_rows(self) -> np.ndarray:
        """Row `(N,)` of the molecule that each particle, or window of one, is of."""
        return self.index // self._windows

    @property
    def in_memory(self) -> bool:
        """Whether the images are a float32 array, so that a batch costs no reading."""
        array = isinstance(self.images, np.ndarray) and not isinstance(self.images, np.memmap)
        return array and self.images.dtype == np.float32

    @property
    def has_test(self) -> bool:
        """Whether any particles are held out."""
        return self._test is not None

    @property
    def train(self) -> Particles:
        """The particles to learn from (all of them, when none is held out)."""
        return self if self._test is None else self._subset(~self._test)

    @property
    def test(self) -> Particles:
        """The held-out particles."""
        if self._test is None:
            raise InputError(f"test: no particle is held out of these {len(self)}")
        return self._subset(self._test)

    def take(self, index: np.ndarray) -> Particles:
        """The particles at positions ``index``, none of them held out."""
        return self._subset(np.asarray(index, dtype=int))

    def spread(self, most: int) -> Particles:
        """At most ``most`` of the particles, from all over the stack: micrographs differ."""
        return self.take(evenly(len(self), most))

    def without(self, *names: str) -> Particles:
        """The same particles, less some of their fields."""
        new = self._copy()
        new.fields = {name: value for name, value in self.fields.items() if name not in names}
        new._batch = namedtuple("Batch", ("images", "index", "pixel_size", *new.fields))
        new._digest = None
        return new

    def having(self, **fields: np.ndarray) -> Particles:
        """The same particles, with some fields more, or others in place of those they have."""
        new = self._copy()
        shape = (len(self), *self.images.shape[1:])
        new.fields = self.fields | {
            name: checked(name, np.asarray(value), shape, Particles)
            for name, value in fields.items()
        }
        new._batch = namedtuple("Batch", ("images", "index", "pixel_size", *new.fields))
        new._digest = None
        return new

    def windows(self, frames: int) -> Particles:
        """Trajectories of T frames as all their T - ``frames`` + 1 windows of consecutive frames.

        A model of pairs so trains on long trajectories. Images stay where they are, each in up to
        ``frames`` windows, and are read when asked for. What is known of each frame is cut, what
        is known of a molecule repeated, and the windows of one molecule are held out together or
        not at all. ``index`` counts windows: the molecule's, times T - ``frames`` + 1, plus the
        first frame.
        """
        if self.frames is None or self._windows > 1:
            raise InputError("frames: only trajectories are cut into windows, and only once")
        if not isinstance(frames, (int, np.integer)) or not 1 < frames <= self.frames:
            raise InputError(f"frames: expected 2 to {self.frames} frames a window, got {frames}")
        new = self._copy()
        new._windows = several = self.frames - frames + 1
        first = np.arange(several)
        new.images = windowed(self.images, frames)
        new._rows = (self._rows[:, None] * self.frames + first).ravel()
        new.index = (self.index[:, None] * several + first).ravel()
        new.fields = {
            name: cut(value, frames)
            if _each_frame(name, value, self)
            else value.repeat(several, 0)
            for name, value in self.fields.items()
        }
        new._test = None if self._test is None else self._test.repeat(several)
        new._statistics = new._digest = None
        return new

    def raw(self, index: np.ndarray) -> np.ndarray:
        """Images at positions ``index`` as stored, before offset and scale, in a new array."""
        return np.asarray(self.images[np.asarray(self._rows[index])])

    def batch(self, index: np.ndarray) -> Any:
        """Reads the particles at positions ``index`` into a named tuple of tensors.

        Returns:
            A named tuple with ``images`` `(B, [T,] D, D)` float32, ``index`` `(B,)` (row in the
            stack the particles came from), ``pixel_size`` (scalar, Å) and one tensor for each
            field.
        """
        import torch

        index = np.asarray(index)
        images = self.raw(index).astype(np.float32, copy=False)
        if self.offset != 0.0 or self.scale != 1.0:
            images -= np.float32(self.offset)
            images /= np.float32(self.scale)
        fields = {
            name: torch.as_tensor(
                value[index].astype(np.float32) if value.dtype.kind == "f" else value[index]
            )
            for name, value in self.fields.items()
        }
        return self._batch(
            images=torch.as_tensor(images),
            index=torch.as_tensor(self.index[index]),
            pixel_size=torch.tensor(self.pixel_size),
            **fields,
        )

    def chunks(self, size: int | None = None) -> Iterator[np.ndarray]:
        """Positions of all particles, ``size`` at a time, in order.

        By default a thousand, or as many as have 2**24 pixels (64 MB) if that is less.
        """
        if size is None:
            size = max(1, min(CHUNK, PIXELS // ((self.frames or 1) * self.box**2)))
        for start in range(0, len(self), size):
            yield np.arange(start, min(start + size, len(self)))

    def statistics(self) -> Statistics:
        """Reads every pixel as stored once, in chunks, and remembers the answer.

        Raises:
            InputError: If a pixel is not a finite number (the particle is named).
        """
        if self._statistics is not None:
            return self._statistics
        pixels = self.box**2
        sums, images = np.zeros((2, pixels)), 0  # of each pixel over images, and of its square
        for rows in self.chunks():
            raw = self.raw(rows).reshape(-1, pixels)
            for part in np.split(raw, range(CACHED, len(raw), CACHED)):
                part = part.astype(np.float64)
                with np.errstate(invalid="ignore"):  # infinities are refused below
                    sums[0] += part.sum(axis=0)
                    sums[1] += np.square(part, out=part).sum(axis=0)
            if not np.isfinite(sums[1]).all():
                self._refuse_broken(rows, raw)
            images += len(raw)
        parts = sums, sums[:, background(self.box).ravel()]
        mean, square = (np.array([part[n].mean() for part in parts]) / images for n in (0, 1))
        sd = np.sqrt(np.maximum(square - mean**2, 0.0))
        self._statistics = Statistics(*map(float, (mean[0], sd[0], mean[1], sd[1])))
        return self._statistics

    def _refuse_broken(self, rows: np.ndarray, raw: np.ndarray) -> None:
        finite = np.isfinite(raw).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            raise InputError(
                f"images: particle {self.index[rows[~finite][0]]} has pixels that are not "
                "finite numbers (NaN or infinity)"
            )

    def standardised(self) -> Particles:
        """The same particles, scaled to a background of mean 0 and standard deviation 1.

        That is RELION's normalisation, and how particles are simulated. Stacks (nearly) without
        noise, whose background varies less than a tenth as much as all pixels do, are scaled to
        unit standard deviation over all pixels instead.
        """
        found = self.statistics()
        if found.sd == 0:
            raise InputError(f"images: every pixel has the same value {found.mean:g}")
        noisy = found.background_sd > CLEAN * found.sd
        new = self._copy()
        new.offset = found.background_mean
        new.scale = found.background_sd if noisy else found.sd
        new._digest = None
        return new

    def digest(self) -> str:
        """SHA-256 over pixels, scaling, fields and split: whether two fits saw the same."""
        if self._digest is not None:
            return self._digest
        sha = hashlib.sha256(f"{self.offset} {self.scale}".encode())
        for rows in self.chunks():
            sha.update(np.ascontiguousarray(self.raw(rows), dtype="<f4").tobytes())
        for name in sorted(self.fields):
            sha.update(name.encode() + np.ascontiguousarray(self.fields[name]).tobytes())
        if self._test is not None:
            sha.update(self._test.tobytes())
        self._digest = sha.hexdigest()
        return self._digest

    def _copy(self) -> Particles:
        new = object.__new__(Particles)
        new.__dict__.update(self.__dict__)
        return new

    def _seen(self, images: Any) -> Particles:
        new = self._copy()
        new.images, new._statistics, new._digest = images, None, None
        return new

    def _subset(self, chosen: np.ndarray) -> Particles:
        new = self._copy()
        new._rows = self._rows[chosen]
        new.index = self.index[chosen]
        new.fields = {name: value[chosen] for name, value in self.fields.items()}
        new._test = new._statistics = new._digest = None
        return new


def _each_frame(name: str, value: np.ndarray, particles: Particles) -> bool:
    simulated = name in SIMULATED and value.shape[1:2] == (particles.frames,)
    return name in PER_IMAGE or simulated
