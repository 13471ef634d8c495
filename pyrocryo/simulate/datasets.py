r"""Particles simulated as :math:`x = g^*(z^*, \phi^*) + \epsilon`, :math:`\epsilon \sim N(0, 1)`.

Images are in units of the noise, as normalised stacks are: the clean images are scaled so that
their variance over the pixels of the box is the signal-to-noise ratio, SNR = var(clean image) /
σ², σ = 1. Every number is drawn from ``seed``, so the same call gives the same particles.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

from pyrocryo.context import wanted
from pyrocryo.errors import InputError
from pyrocryo.particles import Particles
from pyrocryo.simulate.images import counted, imaged, reflected

__all__ = ["conditions", "default_scales", "poses", "temperature"]

TEMPERATURES: Mapping[float, Sequence[float]] = {
    300.0: (1.0, 1.0, 1.0, 1.0),
    240.0: (0.9, 0.7, 0.5, 0.35),
    180.0: (0.8, 0.5, 0.25, 0.12),
}
DRAWN = ("rotation", "shift", "truth")


def poses(molecule: Any, n: int, seed: int = 0, *, prior: Any = None, **imaging: Any) -> Particles:
    """Independent particles: `z` standard normal (reflected at ± 3), poses uniform.

    Args:
        molecule: A molecule with `dim` and `render`, such as :class:`pyrocryo.molecules.Arms`. It
            turns in the plane, or in space if it has ``spatial`` = 3.
        n: Number of particles.
        seed: Seed of everything drawn.
        prior: Another law of `z`, a distribution of event shape `(K,)`. Its draws are not
            reflected.
        **imaging: ``snr`` (1), ``box`` (32 px), ``pixel_size`` (3 Å), ``max_shift`` (3 Å; shifts
            are uniform within ± that on both axes), ``max_angle`` (180°; turns in the plane are
            uniform within ± that), ``ctf`` (False; True for one of a 300 kV microscope for each
            image, defocus uniform from 0.8 to 2.5 µm, astigmatism of some 200 Å; or the array, as
            :func:`pyrocryo.imaging.contrast_transfer` takes it). The SNR is that of images as they
            are seen, through the CTF; ``contrast`` (0: standard deviation of a scale of each
            image, 1 on average, kept as the field ``contrast``); ``spectrum`` (None: white noise;
            or a function from frequencies in 1/Å to powers, scaled so that a pixel's noise has
            unit variance).

    Returns:
        Particles with ``rotation``, ``shift`` and ``truth`` `(n, K)`.
    """
    rng = np.random.default_rng(seed)
    if prior is not None:
        z = _drawn(lambda: prior, molecule, counted(n), seed)
    else:
        z = reflected(rng.standard_normal((counted(n), molecule.dim)))
    return imaged(molecule, z, rng, **imaging)


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
    if prior is not None:
        kelvin = np.array(tuple(TEMPERATURES if temperatures is None else temperatures), float)
        if kelvin.ndim != 1 or not len(kelvin) or not (kelvin > 0).all():
            raise InputError(f"temperatures: expected positive K, got {temperatures}")
        values = {"temperature": kelvin}
        check = getattr(prior, "check", None)
        return _under(
            values, lambda temperature: prior(temperature), check, molecule, n, seed, imaging
        )
    rng = np.random.default_rng(seed)
    scales = default_scales(molecule.dim) if scales is None else scales
    for tau, row in scales.items():
        if len(row) != molecule.dim or not min(row) > 0 or not tau > 0:
            raise InputError(
                f"scales: expected {molecule.dim} positive numbers at a positive temperature, got "
                f"{tuple(row)} at {tau} K"
            )
    kelvin = np.array(list(scales))
    which = rng.permutation(np.arange(counted(n)) % len(kelvin))
    sd = np.array([scales[tau] for tau in scales])[which]
    z = sd * reflected(rng.standard_normal((n, molecule.dim)))
    return imaged(molecule, z, rng, temperature=kelvin[which], **imaging)


def conditions(
    molecule: Any,
    n: int,
    seed: int = 0,
    *,
    prior: Callable[..., Any],
    conditions: Mapping[str, Sequence[float]],
    **imaging: Any,
) -> Particles:
    """Particles under several conditions: temperatures, concentrations, forces, mutants, ...

    Args:
        molecule: As for :func:`poses`.
        n: Number of particles, shared evenly by the conditions.
        seed: Seed of everything drawn.
        prior: What :class:`pyrocryo.Pair` takes: a function or module that is given fields by
            their names, `(n,)` each, and returns a distribution of `z` `(n, K)`. Its draws are not
            reflected.
        conditions: Values by the name of the field, L of each (or L rows `(L, D)`): the first
            condition is the first value of every field, and so on. Such as
            ``{"temperature": [300, 300, 200], "ligand": [0, 1, 0]}``. Fields that the prior does
            not ask for are kept with the particles all the same.
        **imaging: As for :func:`poses`.

    Returns:
        Particles with the fields named and ``truth`` `(n, K)`.
    """
    values = {name: _numbers(name, given) for name, given in dict(conditions).items()}
    if not values or len({len(given) for given in values.values()}) != 1:
        lengths = {name: len(given) for name, given in values.items()}
        raise InputError(f"conditions: expected as many values of each field, got {lengths}")
    for name in values:
        if name in DRAWN or name in inspect.signature(imaged).parameters:
            raise InputError(f"conditions: {name} cannot be one")
    names = wanted(prior)
    if missing := [name for name in names if name not in values]:
        raise InputError(f"conditions: the prior needs the {missing[0]} of each condition")
    call = (lambda: prior) if isinstance(prior, dist.Distribution) else prior

    def law(**fields: torch.Tensor) -> Any:
        return call(**{name: fields[name] for name in names})

    def check(**fields: np.ndarray) -> None:
        if hasattr(prior, "check"):
            prior.check(**{name: fields[name] for name in names})

    return _under(values, law, check, molecule, n, seed, imaging)


def default_scales(dim: int) -> dict[float, tuple[float, ...]]:
    """Three non-proportional rows of standard deviations for ``dim`` components."""
    if dim == 2:
        return {300.0: (1.0, 1.0), 240.0: (0.8, 0.5), 180.0: (0.6, 0.25)}
    if dim > 4:
        raise InputError(f"scales: give the standard deviations of all {dim} components")
    return {tau: tuple(row[:dim]) for tau, row in TEMPERATURES.items()}


def _numbers(name: str, given: Any) -> np.ndarray:
    """Values `(L,)` or `(L, D)` of a field; whole numbers stay so, but for temperatures."""
    try:
        values = np.array(given, dtype=float if name == "temperature" else None)
    except ValueError:
        values = np.zeros(0)
    if values.ndim not in (1, 2) or not len(values) or values.dtype.kind not in "iuf":
        raise InputError(f"{name}: expected a list of numbers, got {given!r}")
    if not np.isfinite(values).all() or (name == "temperature" and not (values > 0).all()):
        word = "positive K" if name == "temperature" else "finite numbers"
        raise InputError(f"{name}: expected {word}, got {given}")
    return values


def _under(
    values: Mapping[str, np.ndarray],
    law: Callable[..., Any],
    check: Callable[..., None] | None,
    molecule: Any,
    n: int,
    seed: int,
    imaging: Mapping[str, Any],
) -> Particles:
    """Particles under the L conditions ``values`` `(L, ...)`, of `z` drawn from their ``law``."""
    rng = np.random.default_rng(seed)
    length = len(next(iter(values.values())))
    which = rng.permutation(np.arange(counted(n)) % length)
    fields = {name: given[which] for name, given in values.items()}
    if check is not None:
        check(**fields)
    number = {"f": torch.get_default_dtype()}
    given = {k: torch.as_tensor(v, dtype=number.get(v.dtype.kind)) for k, v in fields.items()}
    z = _drawn(lambda: law(**given), molecule, n, seed)
    return imaged(molecule, z, rng, **fields, **imaging)


def _drawn(law: Callable[[], Any], molecule: Any, n: int, seed: int) -> np.ndarray:
    """Draws `(n, K)` of a law, or of n of them, without touching the global generator."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        found = law()
        if not isinstance(found, torch.distributions.Distribution):
            raise InputError(f"prior: expected a distribution, got {type(found).__name__}")
        z = (found if found.batch_shape else found.expand((n,))).sample().cpu()
    if z.shape != (n, molecule.dim):
        raise InputError(
            f"prior: expected draws {(n, molecule.dim)} for a molecule with {molecule.dim} "
            f"components, got {tuple(z.shape)}"
        )
    return z.double().numpy()
