"""The 90° check of a run folder of cryoDRGN's: its encoder, its images, turned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyrocryo.diagnose import Reencoded, reencoded
from pyrocryo.errors import InputError
from pyrocryo.io.cryodrgn_encoder import read_encoder, read_particles
from pyrocryo.io.others import Latents

__all__ = ["rotated"]

OFF = 0.05  # of the spread of z, that the encoder may be off what the run wrote down
COMPARED = 256


def rotated(
    run: Latents,
    *,
    images: str | Path | None = None,
    most: int = 5_000,
    permutations: int = 499,
    seed: int = 0,
) -> Reencoded:
    """Turns a run's images by 90° and encodes them again (:func:`pyrocryo.diagnose.reencoded`).

    First the images as they are: unless the encoder gives the `z` that the run wrote down, these
    are other images, or settings that are not understood.

    Args:
        run: Latents of a run folder.
        images: The particles, where they are not where the run's settings say.
        most: Particles turned, drawn at random where there are more.
        permutations: Behind the p-values.
        seed: Draws particles and permutations.

    Raises:
        InputError: If it is no run folder, files are missing, or the encoder gives another `z`.
    """
    if run.folder is None:
        raise InputError("it needs a run folder of cryoDRGN's, with settings and weights")
    encode = read_encoder(run.folder, run.epoch)
    particles = read_particles(run.folder, run.epoch, images=images)
    if len(particles) != len(run.z) or encode.dim != run.z.shape[1]:
        raise InputError(
            f"{len(particles)} images and an encoder of {encode.dim} latents, but z is "
            f"{run.z.shape}"
        )
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(particles))[:most])
    some = particles.take(rows)
    few = np.arange(min(COMPARED, len(rows)))
    again = encode(some.batch(few))[0].numpy()
    written = run.z[rows[few]]
    off = np.sqrt(np.square(again - written).mean() / written.var(axis=0).mean())
    if not off < OFF:
        raise InputError(
            f"of these images the encoder gives another z than the run wrote down (off by "
            f"{off:.2g} of its spread)"
        )
    return reencoded(encode, some, permutations=permutations, seed=seed)
