"""Particles as cryoDRGN takes them: a stack, and pickles of poses and CTFs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import replacing
from pyrocryo.io.mrc import write_stack
from pyrocryo.particles import Particles

__all__ = ["write_cryodrgn"]

STACK, POSES, CTF = "particles.mrcs", "poses.pkl", "ctf.pkl"
PROTOCOL = 4  # of 5, numpy 1.26 lacks a part


def write_cryodrgn(particles: Particles, folder: str | Path) -> list[Path]:
    """Writes ``particles.mrcs``, ``poses.pkl`` and, where there are CTFs, ``ctf.pkl``.

    ``cryodrgn train_vae FOLDER/particles.mrcs --poses FOLDER/poses.pkl --ctf FOLDER/ctf.pkl
    --zdim 8 -o RUN`` trains on them; ``pyrocryo audit RUN`` finds its way back to the poses.
    Images are written in units of the noise, bright molecules. With CTFs cryoDRGN's defaults fit
    (it inverts images, and its CTF has the opposite sign); ``--uninvert-data`` keeps the sign of
    images without.

    A pose is the pair `(N, 3, 3)`, `(N, 2)`: our rotation, and what centres the image, minus the
    shift as a share of the box. A CTF is a row of the box (px), pixel size (Å), defocus U and V
    (Å), angle (degrees), voltage (kV), spherical aberration (mm), amplitude contrast and phase
    shift (degrees).

    Args:
        particles: With ``rotation``; ``shift`` and ``ctf`` are optional. One frame each.
        folder: Made where it is missing.

    Returns:
        The files written.

    Raises:
        InputError: If there are frames or no rotations, CTFs with a B-factor, which cryoDRGN does
            not take, or one of the files is there already or cannot be written.
    """
    folder, fields = Path(folder), particles.fields
    n, box, pixel_size = len(particles), particles.box, particles.pixel_size
    if particles.frames is not None:
        raise InputError("particles: cryoDRGN takes one image a particle, these have frames")
    if "rotation" not in fields:
        raise InputError("rotation: cryoDRGN's train_vae needs poses, these particles have none")
    trans = -np.asarray(fields.get("shift", np.zeros((n, 2)))) / (box * pixel_size)
    rotation = np.asarray(fields["rotation"], dtype=np.float32)
    pickles: dict[str, object] = {POSES: (rotation, trans.astype(np.float32))}
    if "ctf" in fields:
        ctf = np.asarray(fields["ctf"], dtype=np.float64)
        if ctf.shape[1] > 7 and ctf[:, 7].any():
            raise InputError("ctf: cryoDRGN takes no B-factor, these CTFs have one")
        size = np.broadcast_to((float(box), float(pixel_size)), (n, 2))
        pickles[CTF] = np.concatenate([size, ctf[:, :7]], axis=1).astype(np.float32)
    files = [folder / name for name in (STACK, *pickles)]
    for file in files:
        if file.exists():
            raise InputError(f"{file}: is there already; name another folder, or remove it first")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_stack(files[0], _Images(particles), pixel_size)
        for file, content in zip(files[1:], pickles.values(), strict=True):
            with replacing(file) as temporary, temporary.open("wb") as stream:
                pickle.dump(content, stream, protocol=PROTOCOL)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror or error})") from error
    return files


class _Images:
    """Images in units of the noise, as a source that is read a chunk at a time."""

    def __init__(self, particles: Particles) -> None:
        self._particles = particles
        self.shape = (len(particles), particles.box, particles.box)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._particles.batch(rows).images.numpy()
