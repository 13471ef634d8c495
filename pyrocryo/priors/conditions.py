"""Whether a Boltzmann prior can be computed under the conditions that the particles are in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyrocryo.errors import InputError
from pyrocryo.particles import PER_IMAGE
from pyrocryo.priors.blurred import REACH
from pyrocryo.priors.wells import BoltzmannWells

__all__ = ["checked", "resolved", "together"]

NEGLIGIBLE = 1e-5  # density at the ends of the grid, of its maximum
STEEPEST = 1 / 3  # change of the density between two nodes, of its maximum: .55 σ of a Gaussian
FINER = 4  # the grid that tells whether the nodes are close enough
FEW = 9  # values of a tilting field that are looked at
SURE = 5  # temperatures are at least this many standard deviations from 0


def checked(names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raises InputError unless exactly these fields are given, each of finite numbers."""
    for name in names:
        if name not in given:
            held = ", ".join(given) or "none"
            raise InputError(f"{name}: the Boltzmann prior needs it of each particle; got {held}")
        value = np.asarray(given[name])
        if value.dtype.kind not in "iuf" or not np.isfinite(value).all() or not value.size:
            raise InputError(f"{name}: expected finite numbers, got {value.dtype} {value.shape}")
        if value.ndim > 1 + (name in PER_IMAGE):
            raise InputError(f"{name}: expected a number for each particle, got {value.shape}")
    if unknown := sorted(set(given) - set(names)):
        raise InputError(f"{unknown[0]}: the Boltzmann prior does not ask for it")


def together(kelvin: np.ndarray, error: np.ndarray | float | None) -> tuple[float, float]:
    """The coldest and the hottest temperature (K) that labels with these errors stand for.

    Raises:
        InputError: For an error that is negative, or not small against the temperature.
    """
    spread = np.zeros(1) if error is None else np.asarray(error, dtype=float)
    if (spread < 0).any() or (SURE * spread > kelvin).any():
        raise InputError(
            f"temperature_error: expected 0 K to a fifth of the temperature, got {spread.min():g} "
            f"to {spread.max():g} K at {np.min(kelvin):g} to {np.max(kelvin):g} K"
        )
    return float((kelvin - REACH * spread).min()), float((kelvin + REACH * spread).max())


def resolved(prior: Any, warmth: tuple[float, float], tilts: Mapping[str, np.ndarray]) -> None:
    """Checks the integrals of ``prior`` over the range of conditions: its ends, and between.

    Args:
        prior: A :class:`pyrocryo.priors.Boltzmann` prior of energies.
        warmth: The coldest and the hottest temperature in K.
        tilts: Values of the fields that tilt.
    """
    low, high = warmth
    kelvins = {low, high}
    if prior.terms is not None:  # heat capacities confine least where they change sign
        kelvins.add(min(max(prior.terms.standard, low), high))
    ranges = [sorted(kelvins), *(_spread(u) for u in tilts.values())]
    corners = list(dict.fromkeys(itertools.product(*ranges)))
    extent, nodes = prior.unit["extent"], prior.unit["nodes"]
    with torch.no_grad():
        tau, *values = torch.tensor(corners).to(prior.temperatures).T
        more: dict[str, Any] = {}
        if prior.terms is not None:
            factors = prior.terms(tau, **dict(zip(tilts, values, strict=True)))
            more = {"terms": prior.terms.each, "factors": factors}
        unit = {**prior.unit, "nodes": FINER * nodes}
        weights = BoltzmannWells(tau, prior.energies, **more, **unit).weights()
    left, mildest = torch.maximum(weights[..., 0], weights[..., -1]).max(0)
    jump, sharpest = (weights[..., FINER:] - weights[..., :-FINER]).abs().amax(-1).max(0)
    for k, energy in enumerate(prior.energies):
        if not left[k] < NEGLIGIBLE:
            raise InputError(
                f"energies[{k}]: {energy!r} does not confine z within ± {extent:g} at "
                f"{_told(corners[mildest[k]], tilts)}, where the density is still "
                f"{left[k].item():.2g} of its maximum (at most {NEGLIGIBLE:g}): widen extent, "
                f"{'tilt less, ' * bool(tilts)}or is reference not in K?"
            )
        if not jump[k] < STEEPEST:
            raise InputError(
                f"energies[{k}]: {energy!r} has wells at {_told(corners[sharpest[k]], tilts)} too "
                f"narrow for {nodes} nodes within ± {extent:g}: more nodes, or a smaller extent"
            )


def _spread(values: np.ndarray) -> list[float]:
    """The values of a field where they are few, else some between the least and the largest."""
    own = np.unique(np.asarray(values, dtype=float))
    return (own if len(own) <= FEW else np.linspace(own[0], own[-1], FEW)).tolist()


def _told(corner: tuple[float, ...], tilts: Mapping[str, np.ndarray]) -> str:
    kelvin, *values = corner
    told = [f"{name} = {value:g}" for name, value in zip(tilts, values, strict=True)]
    return ", ".join([f"{kelvin:g} K", *told])
