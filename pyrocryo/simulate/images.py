"""Images of conformations: poses, CTFs and noise, drawn the same way for every data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pyrocryo.errors import InputError
from pyrocryo.imaging import modulated
from pyrocryo.particles import Particles
from pyrocryo.rotations import random_in_plane, random_in_space

__all__ = ["MARGIN", "counted", "imaged", "reflected"]

EDGE = 3.0  # z is reflected here, so that no arm swings past 3 standard deviations
CHUNK = 2048  # images rendered at once
DEFOCUS = (8_000.0, 25_000.0)  # Å
ASTIGMATISM = 200.0  # Å
MARGIN = 2  # of the box in which images meet their CTF, which spreads them beyond their own


def counted(n: int) -> int:
    """`n`, if there is anything to draw."""
    if n < 1:
        raise InputError(f"n: expected at least one particle, got {n}")
    return n


def reflected(z: np.ndarray) -> np.ndarray:
    """Folds `z` back into [-3, 3]."""
    folded = np.mod(z + EDGE, 4 * EDGE)
    return np.where(folded > 2 * EDGE, 4 * EDGE - folded, folded) - EDGE


def imaged(
    molecule: Any,
    z: np.ndarray,
    rng: np.random.Generator,
    *,
    snr: float = 1.0,
    box: int = 32,
    pixel_size: float = 3.0,
    max_shift: float = 3.0,
    max_angle: float = 180.0,
    ctf: bool | np.ndarray = False,
    contrast: float = 0.0,
    spectrum: Callable[[np.ndarray], np.ndarray] | None = None,
    turns: np.ndarray | None = None,
    **fields: np.ndarray,
) -> Particles:
    """Draws poses and noise, and renders `z` `(N, [T,] K)`.

    ``turns`` `(N, T, 3, 3)` are those of the frames from the pose drawn for the first of them;
    without, each frame has a pose of its own. ``fields`` are kept with the particles; all else is
    as for :func:`pyrocryo.simulate.poses`.
    """
    if not snr > 0:
        raise InputError(f"snr: expected a positive ratio of variances, got {snr}")
    if box < 2:
        raise InputError(f"box: expected at least 2 pixels, got {box}")
    if not 0 <= contrast < 1:
        raise InputError(f"contrast: expected a deviation in [0, 1), got {contrast}")
    if max_shift < 0:
        raise InputError(f"max_shift: expected a length in Å, got {max_shift}")
    views = z.shape[:-1]
    in_space = getattr(molecule, "spatial", 2) == 3
    if not 0 < max_angle <= 180 or (in_space and max_angle != 180):
        raise InputError(
            f"max_angle: expected degrees in (0, 180], and 180 in space, got {max_angle}"
        )
    if in_space:
        rotation = random_in_space(views, rng)
    else:
        rotation = random_in_plane(views, rng, max_angle)
    if turns is not None:
        rotation = turns @ rotation[:, :1]
    shift = rng.uniform(-max_shift, max_shift, size=(*views, 2))
    flat = [torch.as_tensor(a.reshape(-1, *a.shape[len(views) :])) for a in (z, rotation, shift)]
    clean = np.empty((len(flat[0]), box, box), dtype=np.float32)
    for start in range(0, len(clean), CHUNK):
        part = slice(start, start + CHUNK)
        images = molecule.render(*(a[part] for a in flat), box=box, pixel_size=pixel_size)
        clean[part] = images.numpy()
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    if ctf is not False:
        fields["ctf"] = _ctf(views, rng) if ctf is True else np.asarray(ctf)
        clean = _through(clean, fields["ctf"], views, pixel_size)
    clean *= np.sqrt(snr / clean.var(axis=(-1, -2)).mean())
    if contrast:
        scale = 1 + contrast * rng.standard_normal(views)
        fields["contrast"] = scale
        clean *= scale.reshape(-1, 1, 1).astype(np.float32)
    if spectrum is not None:
        noise = _coloured(noise, spectrum, pixel_size)
    images = clean + noise
    return Particles(
        images.reshape(*views, box, box),
        pixel_size=pixel_size,
        rotation=rotation,
        shift=shift,
        truth=z,
        **fields,
    )


def _ctf(views: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Parameters of a good microscope and a careful session, `(*views, 7)`."""
    middle = rng.uniform(*DEFOCUS, size=views)
    apart = 0.5 * np.abs(rng.normal(scale=ASTIGMATISM, size=views))
    angle = rng.uniform(0, 180, size=views)
    fixed = [np.full(views, value) for value in (300.0, 2.7, 0.1, 0.0)]
    return np.stack([middle + apart, middle - apart, angle, *fixed], axis=-1)


def _through(
    clean: np.ndarray, ctf: np.ndarray, views: tuple[int, ...], pixel_size: float
) -> np.ndarray:
    """Images as seen through their CTF, which spreads them beyond the box."""
    if ctf.shape[:-1] != views or ctf.shape[-1] not in (7, 8):
        raise InputError(f"ctf: expected shape {(*views, 7)} or {(*views, 8)}, got {ctf.shape}")
    flat, seen = torch.as_tensor(ctf.reshape(len(clean), -1)), np.empty_like(clean)
    for start in range(0, len(clean), CHUNK):
        part = slice(start, start + CHUNK)
        images = torch.as_tensor(clean[part])
        seen[part] = modulated(images, flat[part], pixel_size=pixel_size, margin=MARGIN).numpy()
    return seen


def _coloured(
    noise: np.ndarray, spectrum: Callable[[np.ndarray], np.ndarray], pixel_size: float
) -> np.ndarray:
    """White noise `(N, D, D)` filtered to a power spectrum, its variance kept."""
    box = noise.shape[-1]
    k = np.fft.fftfreq(box) / pixel_size
    power = np.asarray(spectrum(np.hypot(k[:, None], k)), dtype=np.float64)
    if power.shape != (box, box) or not (power > 0).all():
        raise InputError("spectrum: expected a positive power for every frequency it is given")
    root = np.sqrt(power / power.mean())[:, : box // 2 + 1]
    return np.fft.irfft2(np.fft.rfft2(noise) * root, s=(box, box)).astype(np.float32)
