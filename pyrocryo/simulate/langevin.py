"""Molecules that diffuse in an energy: what steps look like when physics makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.particles import Particles
from pyrocryo.simulate.images import counted, imaged
from pyrocryo.simulate.steps import stamps

__all__ = ["langevin"]

NODES = 8001  # of the grid on which energies are tabulated
NEGLIGIBLE = 1e-5  # density at the ends of the grid, of its maximum
VISITED = 12.0  # kT over the lowest energy; higher up is 1 in 10^5 of the time
DEEPEST = 40.0  # kT over the lowest energy up to which forces are tabulated
FINE = 0.05  # of the fastest relaxation time that is visited: a sub-step
LEAST = 16  # sub-steps from a frame to the next


def langevin(
    molecule: Any,
    n: int,
    seed: int = 0,
    *,
    energies: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
    lag: float | tuple[float, float],
    temperature: float = 1.0,
    diffusion: float = 1.0,
    frames: int = 2,
    step: float | None = None,
    extent: float = 6.0,
    **imaging: Any,
) -> Particles:
    r"""Frames of molecules in overdamped Langevin dynamics, each frame in a pose of its own.

    .. math:: dy = -\frac{D}{T} \epsilon'(y) dt + \sqrt{2 D} dW, \quad
              p(y) \propto e^{-\epsilon(y) / T}, \quad z = (y - E y) / sd(y)

    for each component by itself, started in equilibrium (inverse distribution function on a
    grid), by Euler-Maruyama in sub-steps of a twentieth of the fastest relaxation time
    :math:`T / D \epsilon''` within 12 kT of the bottom. `z` is stationary, of mean 0 and variance
    1, and not reflected.

    The control for priors on sparse steps. Diffusion makes Gaussian steps at short lags, whatever
    the energy; only about the time of a hop over a barrier are most steps small and a few large;
    beyond it, a step is the difference of two independent draws. Excess kurtosis of a step in
    ``DoubleWell(2.0)`` at T = D = 1, whose slowest relaxation takes 2.2 (by the spectrum of the
    Fokker-Planck operator):

    =================  ====  ====  =====  ====  =====
    lag                .02   .1    .5     2     5
    excess kurtosis    .03   .51   2.10   .22   -.63
    =================  ====  ====  =====  ====  =====

    Args:
        molecule: As for :func:`pyrocryo.simulate.poses`.
        n: Number of molecules.
        seed: Seed of everything drawn.
        energies: Functions of a tensor, elementwise, one for each component, or one for all
            (:class:`pyrocryo.priors.DoubleWell`, ``lambda y: y**4``), in units of `T`.
        lag: Time between frames in s, or the shortest and the longest: gaps are uniform between
            them.
        temperature: `T`, in units of the energies.
        diffusion: `D`, in units of `y` squared per s.
        frames: Frames T of each molecule.
        step: Longest sub-step in s, in place of what the curvature of the energies says.
        extent: Energies are tabulated within ± this, in units of `y`.
        **imaging: As for :func:`pyrocryo.simulate.poses`.

    Returns:
        Particles with images `(n, T, D, D)`, ``time`` `(n, T)` in s, ``truth`` `(n, T, K)`.

    Raises:
        InputError: If an energy is not a finite elementwise function or does not confine.
    """
    for name, value in (
        ("temperature", temperature),
        ("diffusion", diffusion),
        ("step", 1.0 if step is None else step),
        ("extent", extent),
    ):
        if not 0 < value < np.inf:
            raise InputError(f"{name}: expected a positive number, got {value}")
    several = isinstance(energies, (Sequence, torch.nn.ModuleList))
    energies = list(energies) if several else [energies] * molecule.dim
    if len(energies) != molecule.dim or not all(map(callable, energies)):
        raise InputError(
            f"energies: expected {molecule.dim} functions of a tensor, or one, got {energies}"
        )
    grid = np.linspace(-extent, extent, NODES)
    wells = [_Well(grid, energy, temperature, k) for k, energy in enumerate(energies)]
    rng = np.random.default_rng(seed)
    time, _ = stamps(lag, rng, counted(n), frames, "lag")
    fastest = diffusion * max(well.stiffness for well in wells)
    longest = FINE / fastest if step is None else step
    y = np.empty((n, frames, molecule.dim))
    y[:, 0] = np.stack([well.drawn(rng, n) for well in wells], axis=-1)
    for t, gap in enumerate(np.diff(time, axis=1).T):
        y[:, t + 1] = _moved(y[:, t], wells, gap, longest, diffusion, rng)
    mean, sd = np.transpose([well.moments for well in wells])
    return imaged(molecule, (y - mean) / sd, rng, time=time, **imaging)


class _Well:
    """An energy on a grid: its force, its Boltzmann law, and how fast it relaxes.

    Args:
        grid: Evenly spaced `(NODES,)`.
        energy: Function of a tensor.
        temperature: In units of the energy.
        k: Its number, for errors.

    Attributes:
        moments: Mean and standard deviation in equilibrium.
        stiffness: Highest curvature that is visited, over the temperature.
    """

    def __init__(
        self, grid: np.ndarray, energy: Callable[[Tensor], Tensor], temperature: float, k: int
    ) -> None:
        try:
            with torch.no_grad():
                found = energy(torch.as_tensor(grid))
        except TypeError as error:
            raise InputError(f"energies[{k}]: {error}") from error
        if getattr(found, "shape", None) != grid.shape or not torch.isfinite(found).all():
            raise InputError(
                f"energies[{k}]: expected a finite energy for each number it is given"
            )
        level = found.double().cpu().numpy() / temperature
        level -= level.min()
        density = np.exp(-level)
        if max(density[0], density[-1]) > NEGLIGIBLE:
            raise InputError(
                f"energies[{k}]: does not confine within ± {grid[-1]:g} at temperature "
                f"{temperature:g}; the density at the end is "
                f"{max(density[0], density[-1]):.2g} of its maximum"
            )
        force = -np.gradient(level, grid)
        curvature = -np.gradient(force, grid)
        self.stiffness = np.abs(curvature[level < VISITED]).max()
        near = np.flatnonzero(level < DEEPEST)
        self._ends, self._spacing = grid[near[[0, -1]]], grid[1] - grid[0]
        y, force = (a[near[0] : near[-1] + 1] for a in (grid, force))
        self._slope = np.diff(force) / self._spacing
        self._height = force[:-1] - self._slope * y[:-1]
        below = (density.cumsum() - density / 2) / density.sum()
        self._below, self._all = below, grid
        mean = density @ grid / density.sum()
        self.moments = mean, np.sqrt(density @ (grid - mean) ** 2 / density.sum())

    def drawn(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draws `(n,)` in equilibrium."""
        return np.interp(rng.uniform(size=n), self._below, self._all)

    def force(self, y: np.ndarray) -> np.ndarray:
        """Forces over the temperature at ``y``; beyond what is tabulated, that of the end."""
        y = np.clip(y, *self._ends)
        cell = ((y - self._ends[0]) / self._spacing).astype(np.intp)
        cell = np.minimum(cell, len(self._slope) - 1)  # np.interp would search, ten times slower
        return self._height[cell] + self._slope[cell] * y


def _moved(
    y: np.ndarray,
    wells: Sequence[_Well],
    gap: np.ndarray,
    longest: float,
    diffusion: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Where molecules at ``y`` `(n, K)` are after ``gap`` `(n,)`."""
    pieces = max(LEAST, int(np.ceil(gap.max() / longest)))
    dt = diffusion * gap[:, None] / pieces
    kick = np.sqrt(2 * dt)
    for _ in range(pieces):
        force = np.stack([well.force(y[:, k]) for k, well in enumerate(wells)], axis=-1)
        y = y + dt * force + kick * rng.standard_normal(y.shape)
    return y
