"""Latents as commands are given them: of run folders, arrays and cryoDRGN's pickles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import understood

__all__ = ["array", "posterior"]


def posterior(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Particles `(N,)` and posterior means `(seeds, N, [T,] K)` of a run folder."""
    from pyrocryo.io.foreign import no_run
    from pyrocryo.io.netcdf import read_posterior

    path = folder / "posterior.nc"
    if not path.is_file():
        raise no_run(folder, path.name)
    with understood(path):
        z = read_posterior(path)["posterior"]["z"]
        particles, means = np.asarray(z["particle"]), np.asarray(z).mean(axis=1)
    if particles.dtype.kind not in "iu" or means.ndim not in (3, 4) or particles.ndim != 1:
        raise InputError(f"{path}: expected latents of numbered particles, got {means.shape}")
    return particles, means


def array(path: Path) -> np.ndarray:
    """Latents `(N, K)` of a .npy file, or of a .pkl of cryoDRGN's."""
    if path.suffix == ".npy":
        from pyrocryo.io.others import read_array

        z = read_array(path)
    elif path.suffix == ".pkl":
        from pyrocryo.io.cryodrgn import read_pickle

        z = read_pickle(path)
    else:
        raise InputError(f"{path}: expected a run folder, a .npy array or a .pkl of cryoDRGN's")
    if not isinstance(z, np.ndarray) or z.ndim != 2 or z.dtype.kind not in "iuf":
        shape = getattr(z, "shape", type(z).__name__)
        raise InputError(f"{path}: expected latents (N, K), got {shape}")
    return z
