"""Particles as a RELION 3.1 star file with its stack."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.io import star
from pyrocryo.io.columns import columns_of
from pyrocryo.io.mrc import write_stack
from pyrocryo.io.relion import (
    ANGLES,
    B_FACTOR,
    DEFOCUS,
    FRAME,
    MICROSCOPE,
    MOLECULE,
    ORIGINS,
    TEMPERATURES,
    TIME,
    TRUTH,
)
from pyrocryo.particles import Particles
from pyrocryo.rotations import euler_from_matrix

__all__ = ["save", "save_poses"]

log = logging.getLogger("pyrocryo")


def save(particles: Particles, path: str | Path) -> None:
    """Writes particles as ``NAME.star`` (RELION 3.1) and ``NAME.mrcs`` beside it.

    Images are written as stored, before offset and scale, and all fields that are a number or a
    vector for each particle (or frame). Which particles are held out is not written.

    Raises:
        InputError: If the name does not end in ``.star``, one of the files is there already, or
            the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix != ".star":
        raise InputError(f"{path}: expected a name that ends in .star")
    stack = path.with_suffix(".mrcs")
    for file in (path, stack):
        if file.exists():
            raise InputError(f"{file}: is there already; name another, or remove it first")
    fields = particles.fields
    views = (len(particles),) + ((particles.frames,) if particles.frames else ())
    n = int(np.prod(views))
    flat = {name: value.reshape(n, *value.shape[len(views) :]) for name, value in fields.items()
            if name in ("rotation", "shift", "ctf", "time", "truth")}  # fmt: skip
    further, dropped = columns_of(fields, views)
    if dropped:
        log.warning("%s: no column for the fields %s; not written", path, ", ".join(dropped))
    optics: dict[str, Any] = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnImagePixelSize": [particles.pixel_size],
        "rlnImageSize": [particles.box],
        "rlnImageDimensionality": [2],
    }
    table: dict[str, Any] = {
        "rlnImageName": [f"{i:06d}@{stack.name}" for i in range(1, n + 1)],
        "rlnOpticsGroup": np.ones(n, dtype=int),
    }
    if "rotation" in flat:
        table |= zip(ANGLES, euler_from_matrix(flat["rotation"]).T, strict=True)
    if "shift" in flat:
        table |= zip(ORIGINS, -flat["shift"].T, strict=True)
    if "ctf" in flat:
        table |= zip(
            (*DEFOCUS, *MICROSCOPE, "rlnPhaseShift", B_FACTOR), flat["ctf"].T, strict=False
        )
        if (flat["ctf"][:, 3:6] == flat["ctf"][0, 3:6]).all():
            optics |= {name: table.pop(name)[:1] for name in MICROSCOPE}
    if "temperature" in fields:
        table[TEMPERATURES[0]] = np.repeat(fields["temperature"], n // len(particles))
    if "time" in flat:
        table[TIME] = flat["time"]
    if "truth" in flat:
        table |= {f"{TRUTH}{k}": z for k, z in enumerate(flat["truth"].T, start=1)}
    table |= further
    if particles.frames:
        table[MOLECULE], table[FRAME] = (grid.ravel() for grid in np.indices(views))
    try:
        write_stack(stack, _Flat(particles, views), particles.pixel_size)
        star.write(path, {"optics": optics, "particles": table})
    except OSError as error:
        raise InputError(f"{path.parent}: cannot write there ({error.strerror})") from error


def save_poses(particles: Particles, path: str | Path) -> None:
    """Writes rotations and shifts alone as a star file (RELION 3.1), and no images.

    ``rlnImageId`` is the row of the image, counted from 1, in the stack they came from. In windows
    (:meth:`Particles.windows <pyrocryo.particles.Particles.windows>`) an image has several rows.
    """
    n = len(particles) * (particles.frames or 1)
    rotation, shift = particles.rotation.reshape(n, 3, 3), particles.shift.reshape(n, 2)
    optics = {"rlnOpticsGroup": [1], "rlnImagePixelSize": [particles.pixel_size]}
    table = {"rlnImageId": particles.image_rows.ravel() + 1}
    table["rlnOpticsGroup"] = np.ones(n, dtype=int)
    table |= zip(ANGLES, euler_from_matrix(rotation).T, strict=True)
    table |= zip(ORIGINS, -shift.T, strict=True)
    star.write(Path(path), {"optics": optics, "particles": table})


class _Flat:
    """Images of particles as stored, one after the other, frames of a molecule together."""

    def __init__(self, particles: Particles, views: tuple[int, ...]) -> None:
        self._particles, self._views = particles, views
        self.shape = (int(np.prod(views)), particles.box, particles.box)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        molecule, *frame = np.unravel_index(index, self._views)
        molecule, place = np.unique(molecule, return_inverse=True)
        return self._particles.raw(molecule)[(place, *frame)]
