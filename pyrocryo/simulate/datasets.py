r"""Particles simulated as :math:`x = g^*(z^*, \phi^*) + \epsilon`, :math:`\epsilon \sim N(0, 1)`.

Images are in units of the noise, as normalised stacks are: the clean images are scaled so that
their variance over the pixels of the box is the signal-to-noise ratio, SNR = var(clean image) /
σ², σ = 1. Every number is drawn from ``seed``, so the same call gives the same particles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyrocryo.errors import InputError
from pyrocryo.imaging import modulated
from pyrocryo.particles import Particles
from pyrocryo.rotations import random_in_plane, random_in_space

__all__ = ["default_scales", "poses", "temperature", "time_resolved"]

EDGE = 3.0  # z is reflected here, so that no arm swings past 3 standard deviations
CHUNK = 2048  # images rendered at once
DEFOCUS = (8_000.0, 25_000.0)  # Å
ASTIGMATISM = 200.0  # Å

TEMPERATURES: Mapping[float, Sequence[float]] = {
    300.0: (1.0, 1.0, 1.0, 1.0),
    240.0: (0.9, 0.7, 0.5, 0.35),
    180.0: (0.8, 0.5, 0.25, 0.12),
}


def poses(molecule: Any, n: int, seed: int = 0, **imaging: Any) -> Particles:
    """Independent particles: `z` standard normal (reflected at ± 3), poses uniform.

    Args:
        molecule: A molecule with `dim` and `render`, such as :class:`pyrocryo.molecules.Arms`. It
            turns in the plane, or in space if it has ``spatial`` = 3.
        n: Number of particles.
        seed: Seed of everything drawn.
        **imaging: ``snr`` (1), ``box`` (32 px), ``pixel_size`` (3 Å), ``max_shift`` (3 Å; shifts
            are uniform within ± that on both axes), ``max_angle`` (180°; turns in the plane are
            uniform within ± that), ``ctf`` (False; True for one of a 300 kV microscope for each
            image, defocus uniform from 0.8 to 2.5 µm, astigmatism of some 200 Å; or the array, as
            :func:`pyrocryo.imaging.contrast_transfer` takes it). The SNR is that of images as they
            are seen, through the CTF.

    Returns:
        Particles with ``rotation``, ``shift`` and ``truth`` `(n, K)`.
    """
    rng = np.random.default_rng(seed)
    z = _reflected(rng.standard_normal((_count(n), molecule.dim)))
    return _particles(molecule, z, rng, **imaging)


def time_resolved(
    molecule: Any,
    n: int,
    seed: int = 0,
    *,
    scale: float = 0.5,
    frames: int = 2,
    interval: float = 1.0,
    **imaging: Any,
) -> Particles:
    r"""Frames of molecules that move by Laplace steps, each frame in a pose of its own.

    :math:`z_1 \sim N(0, I)`, :math:`z_{t+1} = z_t + \Delta`,
    :math:`\Delta_k \sim Laplace(0, b)` independently, all reflected at ± 3.

    Args:
        molecule: As for :func:`poses`.
        n: Number of molecules.
        seed: Seed of everything drawn.
        scale: Laplace scale `b` of a step, in units of the standard deviation of `z`.
        frames: Frames T of each molecule.
        interval: Seconds between frames.
        **imaging: As for :func:`poses`.

    Returns:
        Particles with images `(n, T, D, D)`, ``time`` `(n, T)` in s, ``truth`` `(n, T, K)`.
    """
    if not scale > 0:
        raise InputError(f"scale: expected a positive Laplace scale, got {scale}")
    if frames < 2:
        raise InputError(f"frames: time-resolved particles need at least 2 frames, got {frames}")
    if not interval > 0:
        raise InputError(f"interval: expected a positive number of seconds, got {interval}")
    rng = np.random.default_rng(seed)
    z = np.empty((_count(n), frames, molecule.dim))
    z[:, 0] = _reflected(rng.standard_normal((n, molecule.dim)))
    for t in range(1, frames):
        z[:, t] = _reflected(z[:, t - 1] + rng.laplace(scale=scale, size=(n, molecule.dim)))
    time = np.broadcast_to(interval * np.arange(frames), (n, frames))
    return _particles(molecule, z, rng, time=time.copy(), **imaging)


def temperature(
    molecule: Any,
    n: int,
    seed: int = 0,
    *,
    scales: Mapping[float, Sequence[float]] | None = None,
    prior: Callable[[torch.Tensor], Any] | None = None,
    temperatures: Sequence[float] | None = None,
    **imaging: Any,
) -> Particles:
    r"""Particles kept at several temperatures, :math:`z_k \sim N(0, \sigma_k^2(\tau))`.

    Or from any law :math:`p(z | \tau)`, such as that of :class:`pyrocryo.priors.Boltzmann`.

    Args:
        molecule: As for :func:`poses`.
        n: Number of particles, shared evenly by the temperatures.
        seed: Seed of everything drawn.
        scales: :math:`\sigma_k` `(K,)` by temperature in K. By default three temperatures whose
            rows are not proportional, (1, 1, 1, 1), (.9, .7, .5, .35), (.8, .5, .25, .12) for up
            to four arms (for two: (1, 1), (.8, .5), (.6, .25)).
        prior: In place of ``scales``: maps temperatures `(n,)` in K to a distribution of `z`
            `(n, K)`. Its draws are not reflected.
        temperatures: With ``prior``: in K; by default 300, 240, 180.
        **imaging: As for :func:`poses`.

    Returns:
        Particles with ``temperature`` `(n,)` in K and ``truth`` `(n, K)`.
    """
    if scales is not None and prior is not None:
        raise InputError("scales: they are the prior; give either scales or prior")
    if temperatures is not None and prior is None:
        raise InputError("temperatures: only with a prior; scales name their own")
    rng = np.random.default_rng(seed)
    if prior is not None:
        kelvin = np.array(tuple(TEMPERATURES if temperatures is None else temperatures), float)
        if kelvin.ndim != 1 or not len(kelvin) or not (kelvin > 0).all():
            raise InputError(f"temperatures: expected positive K, got {temperatures}")
        kelvin = rng.permutation(kelvin[np.arange(_count(n)) % len(kelvin)])
        z = _drawn(prior, kelvin, molecule.dim, seed)
        return _particles(molecule, z, rng, temperature=kelvin, **imaging)
    scales = default_scales(molecule.dim) if scales is None else scales
    for tau, row in scales.items():
        if len(row) != molecule.dim or not min(row) > 0 or not tau > 0:
            raise InputError(
                f"scales: expected {molecule.dim} positive numbers at a positive temperature, got "
                f"{tuple(row)} at {tau} K"
            )
    kelvin = np.array(list(scales))
    which = rng.permutation(np.arange(_count(n)) % len(kelvin))
    sd = np.array([scales[tau] for tau in scales])[which]
    z = sd * _reflected(rng.standard_normal((n, molecule.dim)))
    return _particles(molecule, z, rng, temperature=kelvin[which], **imaging)


def default_scales(dim: int) -> dict[float, tuple[float, ...]]:
    """Three non-proportional rows of standard deviations for ``dim`` components."""
    if dim == 2:
        return {300.0: (1.0, 1.0), 240.0: (0.8, 0.5), 180.0: (0.6, 0.25)}
    if dim > 4:
        raise InputError(f"scales: give the standard deviations of all {dim} components")
    return {tau: tuple(row[:dim]) for tau, row in TEMPERATURES.items()}


def _drawn(prior: Callable[[torch.Tensor], Any], kelvin: np.ndarray, dim: int, seed: int) -> Any:
    """Draws `z` `(n, K)` of a prior at temperatures `(n,)`."""
    if hasattr(prior, "check"):
        prior.check(temperature=kelvin)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        z = prior(torch.as_tensor(kelvin, dtype=torch.get_default_dtype())).sample().cpu()
    if z.shape != (len(kelvin), dim):
        raise InputError(
            f"prior: expected draws {(len(kelvin), dim)} for a molecule with {dim} components, "
            f"got {tuple(z.shape)}"
        )
    return z.double().numpy()


def _count(n: int) -> int:
    if n < 1:
        raise InputError(f"n: expected at least one particle, got {n}")
    return n


def _reflected(z: np.ndarray) -> np.ndarray:
    """Folds `z` back into [-3, 3]."""
    folded = np.mod(z + EDGE, 4 * EDGE)
    return np.where(folded > 2 * EDGE, 4 * EDGE - folded, folded) - EDGE


def _particles(
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
    **fields: np.ndarray,
) -> Particles:
    """Draws poses and noise, and renders `z` `(..., K)`."""
    if not snr > 0:
        raise InputError(f"snr: expected a positive ratio of variances, got {snr}")
    if box < 2:
        raise InputError(f"box: expected at least 2 pixels, got {box}")
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
    images = clean * np.sqrt(snr / clean.var(axis=(-1, -2)).mean()) + noise
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
        seen[part] = modulated(images, flat[part], pixel_size=pixel_size, margin=2).numpy()
    return seen
