r"""The law of a latent as a free energy :math:`-k_B T \ln p`: wells, barriers, error bars."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyrocryo.priors.profiles import Profile, profile

__all__ = ["KILOJOULE", "Populations", "read_off"]

KILOJOULE = 0.0083144626  # kJ/mol a K: the gas constant
FEW_DRAWS = 5.0  # effective ones, of a particle
VOUCHED = 2.0  # standard deviations that a barrier must rise by
LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class Populations:
    r"""The law of one latent over all particles.

    The first and last of the B bins are open: they have populations, but no density and no free
    energy (NaN).

    Attributes:
        axis: The latent, from 0, of the first seed.
        edges: `(B + 1,)` of the bins, in the first seed's units.
        population: `(B,)` mean over seeds, sums to 1.
        low, high: `(B,)` 95 % interval, over resamples of the particles of all seeds.
        per_seed: `(seeds, B)`.
        means: `(B,)` histogram of the first seed's posterior means, for comparison.
        free_energy: `(B,)` in :math:`k_B T`, of the density per unit of the latent, 0 at its
            lowest bin.
        free_energy_error: `(B,)` standard deviation of the same in :math:`\ln p`.
        width: `(B,)` how far the molecule moves in each bin, a share of the whole path: the change
            of its density map, or of its atoms' positions; mean over seeds.
        along_motion: `(B,)` as ``free_energy``, of the density per unit of that path. It stays
            what it is when the latent is warped, as the law per unit of `z` does not.
        wells: Wells, barriers and populations of ``along_motion``, in the units of the latent; a
            barrier is one where it rises two standard deviations above the higher of its wells.
        well_error: `(W,)` standard deviation of the wells' populations.
        height_error: `(W - 1,)` of the barriers' heights.
        latent_heights: `(W - 1,)` ``free_energy`` at the barriers.
        agreement: `(seeds,)` correlation of each seed's latent with the first seed's.
        effective: Of the draws, how many count: the median over particles of
            :math:`(\sum w)^2 / \sum w^2`, in the worst seed. Few mean a guide that is far from the
            posterior, and populations that are noisier than their intervals say.
        temperature: In K, if it is known.
        sentence: In words.
    """

    axis: int
    edges: np.ndarray
    population: np.ndarray
    low: np.ndarray
    high: np.ndarray
    per_seed: np.ndarray
    means: np.ndarray
    free_energy: np.ndarray
    free_energy_error: np.ndarray
    width: np.ndarray
    along_motion: np.ndarray
    wells: Profile
    well_error: np.ndarray
    height_error: np.ndarray
    latent_heights: np.ndarray
    agreement: np.ndarray
    effective: float
    temperature: float | None
    sentence: str

    @property
    def centres(self) -> np.ndarray:
        """Of the bins, `(B,)`."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def kilojoules(self) -> np.ndarray | None:
        """The free energy in kJ/mol, where a temperature is known."""
        if self.temperature is None:
            return None
        return KILOJOULE * self.temperature * self.free_energy

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        names = (
            "axis", "edges", "population", "low", "high", "per_seed", "means", "free_energy",
            "free_energy_error", "width", "along_motion", "agreement", "effective",
            "temperature", "sentence",
        )  # fmt: skip
        told = {name: getattr(self, name) for name in names} | {"axis": self.axis + 1}
        told["kilojoules_a_mole"] = self.kilojoules
        told["kelvin"] = None if self.temperature is None else self.temperature * self.free_energy
        told["wells"] = {
            "z": self.wells.wells,
            "depth": self.wells.depths,
            "population": self.wells.populations,
            "population_error": self.well_error,
            "barriers": self.wells.barriers,
            "heights": self.wells.heights,
            "heights_error": self.height_error,
            "heights_along_latent": self.latent_heights,
        }
        return told


def read_off(
    axis: int,
    edges: np.ndarray,
    laws: np.ndarray,
    samples: np.ndarray,
    widths: np.ndarray,
    means: np.ndarray,
    agreement: np.ndarray,
    effective: float,
    temperature: float | None,
) -> Populations:
    """Populations with what is read off them.

    Args:
        axis: The latent.
        edges: `(B + 1,)` of the bins.
        laws: `(seeds, B)` populations of each seed.
        samples: `(seeds R, B)` the same of resamples, seed after seed.
        widths: `(seeds, B)` how far the molecule moves in each bin, a share of the whole path.
        means: `(B,)` as of :class:`Populations`, like those that follow.
        agreement: `(seeds,)`.
        effective: Draws that count.
        temperature: In K, or None.
    """
    law, width = laws.mean(axis=0), widths.mean(axis=0)
    tail = 0.5 * (1 - LEVEL)
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    log_law, logs = np.log(np.maximum(law, 1e-300)), np.log(np.maximum(samples, 1e-300))
    each = np.log(widths).repeat(len(samples) // len(widths), axis=0)
    log_along, log_law = _closed(log_law - np.log(width)), _closed(log_law)
    free, along = log_law.max() - log_law, log_along.max() - log_along
    free[[0, -1]] = along[[0, -1]] = np.nan
    centres = 0.5 * (edges[1:] + edges[:-1])
    wells, height_error = _wells(centres, log_along, _closed(logs - each), axis, temperature)
    cut = np.searchsorted(centres, wells.barriers)
    parts = [part.sum(axis=1) for part in np.split(np.vstack([law, samples]), cut, axis=1)]
    wells = replace(wells, populations=np.array([part[0] for part in parts]))
    well_error = np.array([part[1:].std() for part in parts])
    shares = ", ".join(
        f"{100 * share:.0f} ± {100 * se:.0f} % about {at:.2f}"
        for at, share, se in zip(wells.wells, wells.populations, well_error, strict=True)
    )
    if len(wells.wells) == 1:
        shares = f"one well, at {wells.wells[0]:.2f}"
    name = f"z{axis + 1}"
    sentence = f"{name}: {shares}"
    latent_heights = free[[int(np.argmin(np.abs(centres - at))) for at in wells.barriers]]
    for at, height, se, other in zip(
        wells.barriers, wells.heights, height_error, latent_heights, strict=True
    ):
        sentence += f"; barrier {height:.2f} ± {se:.2f} k_B T"
        if temperature is not None:
            sentence += f" ({KILOJOULE * temperature * height:.1f} kJ/mol at {temperature:g} K)"
        sentence += f" at {at:.2f}, {other:.2f} per unit of {name}"
    if agreement.min() < 0.9:
        sentence += f"; seeds agree on this latent only to r = {agreement.min():.2f}"
    if effective < FEW_DRAWS:
        sentence += f"; of the guide's draws only {effective:.1f} count, so errors are larger"
    return Populations(
        axis, edges, law, low, high, laws, means, free, logs.std(axis=0), width, along,
        wells, well_error, height_error, latent_heights,
        agreement, effective, temperature, sentence,
    )  # fmt: skip


def _wells(
    z: np.ndarray,
    log_law: np.ndarray,
    logs: np.ndarray,
    axis: int,
    temperature: float | None,
) -> tuple[Profile, np.ndarray]:
    """Wells between barriers that resamples vouch for, and errors of the barriers' heights."""
    kelvin = float("nan") if temperature is None else temperature
    lowest, rise = int(np.argmax(log_law)), None
    while True:
        options = {} if rise is None else {"rise": rise}
        found = profile(z, log_law, axis, kelvin, **options)
        bottoms = [int(np.argmin(np.abs(z - at))) for at in found.wells]
        tops = [int(np.argmin(np.abs(z - at))) for at in found.barriers]
        doubtful = []
        for i, top in enumerate(tops):
            shallow = min(bottoms[i : i + 2], key=lambda b: log_law[b])
            size = log_law[shallow] - log_law[top]
            if size < VOUCHED * (logs[:, shallow] - logs[:, top]).std():
                doubtful.append(size)
        if not doubtful:
            return found, np.array([(logs[:, lowest] - logs[:, top]).std() for top in tops])
        rise = 1.02 * max(min(doubtful), rise or 0.0) + 1e-3


def _closed(log_law: np.ndarray) -> np.ndarray:
    """Logarithms `(..., B)` with open bins no fuller than those beside them: they are no wells."""
    closed = log_law.copy()
    for end, inside in ((0, 1), (-1, -2)):
        closed[..., end] = np.minimum(closed[..., end], closed[..., inside])
    return closed
