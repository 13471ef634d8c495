"""Free energy profiles in k_B T: their wells, barriers and populations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Profile", "profile"]

VISITED = 12.0  # k_B T; a well that lies higher holds 1 in 10^5, and is not counted
RISE = 0.05  # k_B T of a barrier over the higher of its wells, below which the two are one


@dataclass(frozen=True)
class Profile:
    r"""Free energy of one component of `z`, :math:`F(z) / k_B \tau = -\ln p(z) + \min \ln p`.

    Attributes:
        component: Its number, from 0 (words count from 1).
        temperature: τ in K.
        z: `(n,)` points.
        free_energy: `(n,)` in k_B τ, 0 at the lowest point.
        density: `(n,)`, whose integral over the points is 1.
        mean: Of `z`.
        sd: Standard deviation of `z`.
        wells: `(W,)` where the wells are, from left to right.
        depths: `(W,)` their free energies in k_B τ over the lowest point.
        populations: `(W,)` shares of the density between barriers.
        barriers: `(W - 1,)` where the barriers between them are.
        heights: `(W - 1,)` their free energies in k_B τ over the lowest point.
        conditions: Values of the fields that tilt.
    """

    component: int
    temperature: float
    z: np.ndarray
    free_energy: np.ndarray
    density: np.ndarray
    mean: float
    sd: float
    wells: np.ndarray
    depths: np.ndarray
    populations: np.ndarray
    barriers: np.ndarray
    heights: np.ndarray
    conditions: Mapping[str, float] = field(default_factory=dict)

    @property
    def kelvin(self) -> np.ndarray:
        """Free energies `(n,)` over k_B, in K."""
        return self.free_energy * self.temperature

    @property
    def standard(self) -> np.ndarray:
        """The points `(n,)` in standard deviations from the mean."""
        return (self.z - self.mean) / self.sd

    def __str__(self) -> str:
        where = [f"{self.temperature:g} K", *(f"{n} = {u:g}" for n, u in self.conditions.items())]
        wells = ", ".join(
            f"{round(z, 2) + 0.0:.2f} ({100 * share:.0f} %)"
            for z, share in zip(self.wells, self.populations, strict=True)
        )
        told = f"component {self.component + 1} at {', '.join(where)}: wells at {wells}"
        for height in self.heights:
            told += f"; barrier {height:.2f} k_B T ({height * self.temperature:.0f} K)"
        return told


def profile(
    z: np.ndarray,
    log_density: np.ndarray,
    component: int,
    temperature: float,
    conditions: Mapping[str, float] | None = None,
    rise: float = RISE,
) -> Profile:
    """Wells and barriers of a log-density on points in order.

    Args:
        z: `(n,)`.
        log_density: `(n,)`, up to a constant.
        component: Which component of `z` it is.
        temperature: In K.
        conditions: What else it depends on.
        rise: k_B T of a barrier over the higher of its wells, below which the two are one.
    """
    energy = log_density.max() - log_density
    density = np.exp(-energy)
    width = np.gradient(z)
    width[[0, -1]] *= 0.5  # the trapezoid rule
    mass = density * width
    density, mass = density / mass.sum(), mass / mass.sum()
    mean = float(mass @ z)
    sd = float(np.sqrt(mass @ (z - mean) ** 2))
    wells, barriers = _stationary(energy, rise)
    low = [_refined(z, energy, i) for i in wells]
    high = [_refined(z, energy, i) for i in barriers]
    zero = min(value for _, value in low)
    edges = [0, *barriers, len(z)]
    shares = [mass[a:b].sum() for a, b in zip(edges, edges[1:], strict=False)]
    return Profile(
        component=component,
        temperature=temperature,
        z=z,
        free_energy=energy,
        density=density,
        mean=mean,
        sd=sd,
        wells=np.array([at for at, _ in low]),
        depths=np.array([value - zero for _, value in low]),
        populations=np.array(shares),
        barriers=np.array([at for at, _ in high]),
        heights=np.array([value - zero for _, value in high]),
        conditions=dict(conditions or {}),
    )


def _stationary(energy: np.ndarray, least: float) -> tuple[list[int], list[int]]:
    """Points that are wells, and the highest points between them."""
    walled = np.concatenate([[np.inf], energy, [np.inf]])
    lower = (walled[1:-1] < walled[:-2]) & (walled[1:-1] <= walled[2:])
    wells = np.flatnonzero(lower & (energy < VISITED)).tolist()
    while True:
        barriers = [
            a + int(np.argmax(energy[a:b])) for a, b in zip(wells, wells[1:], strict=False)
        ]
        rises = [
            energy[top] - max(energy[wells[i]], energy[wells[i + 1]])
            for i, top in enumerate(barriers)
        ]
        if not rises or min(rises) >= least:
            return wells, barriers
        i = int(np.argmin(rises))
        wells.pop(i if energy[wells[i]] > energy[wells[i + 1]] else i + 1)


def _refined(z: np.ndarray, energy: np.ndarray, i: int) -> tuple[float, float]:
    """The stationary point and value of the parabola through a point and its neighbours."""
    if not 0 < i < len(z) - 1:
        return float(z[i]), float(energy[i])
    near = z[i - 1 : i + 2] - z[i]
    a, b, c = np.polyfit(near, energy[i - 1 : i + 2], 2)
    if a == 0 or abs(b / (2 * a)) > np.abs(near).max():
        return float(z[i]), float(energy[i])
    return float(z[i] - b / (2 * a)), float(c - b * b / (4 * a))
