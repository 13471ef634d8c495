r"""Populations along a latent, and their free energy :math:`-k_B T \ln p`, with error bars."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyrocryo.diagnose.common import first, models
from pyrocryo.diagnose.conformations import atoms, has_atoms
from pyrocryo.diagnose.deconvolution import deconvolved, resampled
from pyrocryo.diagnose.weighted import log_weights, sampled
from pyrocryo.errors import InputError
from pyrocryo.metrics.mcc import matched
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.priors.profiles import Profile, profile
from pyrocryo.svi import Fit

__all__ = ["KILOJOULE", "Populations", "populations"]

KILOJOULE = 0.0083144626  # kJ/mol a K: the gas constant
ENDS = (0.002, 0.998)  # quantiles of draws that bins reach over
PRIOR_DRAWS = 400_000
FEWEST = 20
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
        wells: Wells, barriers and populations of ``free_energy``, in the same units; a barrier is
            one where it rises two standard deviations above the higher of its wells.
        well_error: `(W,)` standard deviation of the wells' populations.
        height_error: `(W - 1,)` of the barriers' heights.
        motion_heights: `(W - 1,)` ``along_motion`` at the barriers.
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
    motion_heights: np.ndarray
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
            "heights_along_motion": self.motion_heights,
        }
        return told


def populations(
    fit: Fit | Pair,
    particles: Particles,
    *,
    bins: int = 24,
    temperature: float | None = None,
    draws: int = 100,
    most: int = 4000,
    resamples: int = 100,
    seed: int = 0,
) -> list[Populations]:
    r"""How many particles are where along each latent.

    .. math:: \hat\pi = \arg\max \sum_i \ln \sum_b \pi_b \frac{p(b | x_i)}{P_b}, \quad
              p(b | x_i) = \frac{\sum_{s: z_s \in b} w_s}{\sum_s w_s}, \quad z_s \sim q(z | x_i)

    The posterior mass of each particle in each bin (draws from the guide, weighed by the model)
    over the prior's is its likelihood; the populations that maximise that of all particles, smooth
    relative to the prior, replace the prior's (:func:`~pyrocryo.diagnose.deconvolution.
    deconvolved`). Within a bin the other latents keep the prior's law. Neither a histogram of
    means, which posterior widths narrow, nor one of draws, which the prior attracts.

    Intervals come from resamples of the particles (with the smoothness resampled too) of all
    seeds, each brought to the first by order, sign, mean and standard deviation: what seeds do not
    agree on widens them. They hold given the decoder. A free energy along a latent is one of that
    coordinate: where the prior does not fix its scale a network may warp it, and
    :math:`F` changes by the logarithm of the stretch. Populations of wells do not, nor does
    ``along_motion``. So it went in a short fit (700 steps, two seeds) of two arms, one in a double
    well of 2 k_B T and one harmonic, each found in the latent with the other's prior: barriers of
    1.7 ± .3 k_B T for the first arm and .8 ± .3 for the second, which has none; per unit of motion
    1.8 and .3.

    Frames of one molecule count as rows of the same law, and are resampled together. Where
    particles carry temperatures, only those at one of them are looked at.

    Example::

        for axis in pc.diagnose.populations(fit, particles):
            print(axis.sentence)

    Args:
        fit: A fit, or one trained pair.
        particles: Whose populations; those trained on serve as well.
        bins: How many bins.
        temperature: In K, at which they were frozen: which of several the particles carry (by
            default the highest), or for kJ/mol.
        draws: Draws from the guide a particle.
        most: At most so many particles.
        resamples: Of each seed, for the intervals.
        seed: Of draws and resamples.

    Raises:
        InputError: If there are fewer than 20 particles or none at this temperature, or fewer
            than 6 bins.
    """
    for name, value, least in (
        ("bins", bins, 6),
        ("draws", draws, 2),
        ("resamples", resamples, 2),
    ):
        if value < least:
            raise InputError(f"{name}: expected at least {least}, got {value}")
    particles, temperature = _at(particles, temperature)
    particles = first(particles, most)
    pairs = list(models(fit, particles, FEWEST).values())
    groups, dim = particles.frames or 1, pairs[0].dim
    drawn = [sampled(pair, particles, draws, seed=seed) for pair in pairs]
    seen = [(one["z"], _normalised(log_weights(one))) for one in drawn]
    means = [np.einsum("sn,sn...->n...", w, z).reshape(-1, dim) for z, w in seen]
    maps = [_onto(means[0], other) for other in means]
    effective = min(float(np.median(1 / (weight**2).sum(axis=0))) for _, weight in seen)
    found = []
    for k in range(dim):
        z = seen[0][0][..., k]
        edges = np.linspace(*np.quantile(z, ENDS), bins + 1)
        laws, samples, widths, agreement = [], [], [], []
        for n, (pair, one, (taken, sign, scale)) in enumerate(zip(pairs, seen, maps, strict=True)):
            own, m = int(taken[k]), means[n]
            factor = sign[k] * scale[k]  # z_first - mean_first = factor (z_own - mean_own)
            mine = m[:, own].mean() + (edges - means[0][:, k].mean()) / factor
            likelihood, prior = _likelihood(pair, particles, one, own, mine)
            law = deconvolved(likelihood, prior)
            laws.append(law.population)
            samples.append(
                resampled(likelihood, law, count=resamples, groups=groups, seed=seed + 1000 * n)
            )
            widths.append(_widths(pair, m, own, mine))
            agreement.append(abs(np.corrcoef(means[0][:, k], m[:, own])[0, 1]))
        counts = np.histogram(np.clip(means[0][:, k], edges[0], edges[-1]), edges)[0]
        found.append(
            _told(
                k,
                edges,
                np.array(laws),
                np.concatenate(samples),
                np.mean(widths, axis=0),
                counts / counts.sum(),
                np.array(agreement),
                effective,
                temperature,
            )  # fmt: skip
        )
    return found


def _at(particles: Particles, temperature: float | None) -> tuple[Particles, float | None]:
    """The particles at one temperature, and which."""
    if temperature is not None and not temperature > 0:
        raise InputError(f"temperature: expected K above 0, got {temperature}")
    if "temperature" not in particles.fields:
        return particles, temperature
    held = np.unique(particles.temperature)
    chosen = float(held.max()) if temperature is None else float(temperature)
    rows = np.flatnonzero(np.isclose(particles.temperature, chosen))
    if not len(rows):
        told = ", ".join(f"{value:g}" for value in held[:10])
        raise InputError(f"temperature: no particle at {chosen:g} K, expected one of {told}")
    return particles.take(rows), chosen


def _normalised(log_weight: np.ndarray) -> np.ndarray:
    weight = np.exp(log_weight - log_weight.max(axis=0))
    return weight / weight.sum(axis=0)


def _onto(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the other's latents each is, with its sign and the ratio of spreads."""
    _, rows, columns = matched(one, other)
    taken = np.empty_like(columns)
    taken[rows] = columns
    there = other[:, taken]
    sign = np.sign(((one - one.mean(0)) * (there - there.mean(0))).sum(axis=0))
    return taken, np.where(sign < 0, -1, 1), one.std(axis=0) / np.maximum(there.std(axis=0), 1e-12)


def _likelihood(
    pair: Pair, particles: Particles, one: tuple[np.ndarray, np.ndarray], k: int, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Likelihoods `(N T, B)` of bins and the prior's masses `(B,)`."""
    z, weight = one[0][..., k], one[1]
    frames = z.shape[2] if z.ndim == 3 else 1
    z = z.reshape(len(z), -1)  # (S, N T)
    bins = len(edges) - 1
    where = _bin(z, edges)
    rows = np.arange(z.shape[1]) * bins
    mass = np.bincount(
        (where + rows).ravel(), weights=weight.repeat(frames, axis=1).ravel(),
        minlength=z.shape[1] * bins,
    ).reshape(-1, bins)  # fmt: skip
    prior = _prior(pair, particles, k, edges, frames)  # (T, B)
    return mass / np.tile(prior, (len(mass) // frames, 1)), prior.mean(axis=0)


def _bin(z: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of each value; edges may fall, and the bins at both ends are open."""
    inner = edges[1:-1]
    if edges[0] > edges[-1]:
        return len(inner) - np.searchsorted(inner[::-1], z)
    return np.searchsorted(inner, z)


def _prior(pair: Pair, particles: Particles, k: int, edges: np.ndarray, frames: int) -> np.ndarray:
    """Mass of each bin in each frame, `(T, B)`, over the contexts of some particles."""
    spread = np.linspace(0, len(particles) - 1, min(64, len(particles))).astype(int)
    pair = copy.deepcopy(pair).cpu()  # where every prior can be sampled
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        prior = pair.prior_of(pair.moved(particles.batch(spread)))
        z = prior.sample((1 + PRIOR_DRAWS // max(1, prior.batch_shape.numel()),))
    z = z[..., k].float().cpu().numpy().reshape(-1, frames)
    bins = len(edges) - 1
    counts = [np.bincount(_bin(column, edges), minlength=bins) for column in z.T]
    return (np.array(counts) + 0.5) / (len(z) + 0.5 * bins)


def _widths(pair: Pair, means: np.ndarray, k: int, edges: np.ndarray) -> np.ndarray:
    """How far the molecule moves within each bin, as a share of all bins `(B,)`."""
    points = np.tile(means.mean(axis=0), (len(edges), 1))
    points[:, k] = edges
    if has_atoms(pair):
        seen = atoms(pair, points).reshape(len(points), -1)
    else:
        maps = [pair.density(torch.as_tensor(z)).double().cpu().numpy().ravel() for z in points]
        seen = np.stack(maps)
    step = np.maximum(np.linalg.norm(np.diff(seen, axis=0), axis=1), 1e-12)
    return step / step.sum()


def _told(
    axis: int,
    edges: np.ndarray,
    laws: np.ndarray,
    samples: np.ndarray,
    width: np.ndarray,
    means: np.ndarray,
    agreement: np.ndarray,
    effective: float,
    temperature: float | None,
) -> Populations:
    law = laws.mean(axis=0)
    tail = 0.5 * (1 - LEVEL)
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    log_law, logs = _closed(np.log(np.maximum(law, 1e-300))), np.log(np.maximum(samples, 1e-300))
    free, along = log_law.max() - log_law, log_law - np.log(width)
    along = along[1:-1].max() - along
    free[[0, -1]] = along[[0, -1]] = np.nan
    centres = 0.5 * (edges[1:] + edges[:-1])
    wells, height_error = _wells(centres, log_law, _closed(logs), axis, temperature)
    cut = np.searchsorted(centres, wells.barriers)
    parts = [part.sum(axis=1) for part in np.split(samples, cut, axis=1)]
    well_error = np.array([part.std() for part in parts])
    told = ", ".join(
        f"{share:.0%} ± {se:.0%} about {at:.2f}"
        for at, share, se in zip(wells.wells, wells.populations, well_error, strict=True)
    )
    sentence = f"z{axis + 1}: {told}"
    motion_heights = along[[int(np.argmin(np.abs(centres - at))) for at in wells.barriers]]
    for at, height, se, moved in zip(
        wells.barriers, wells.heights, height_error, motion_heights, strict=True
    ):
        sentence += f"; barrier {height:.2f} ± {se:.2f} k_B T"
        if temperature is not None:
            sentence += f" ({KILOJOULE * temperature * height:.1f} kJ/mol at {temperature:g} K)"
        sentence += f" at {at:.2f}, {moved:.2f} per unit of motion"
    if agreement.min() < 0.9:
        sentence += f"; seeds agree on this latent only to r = {agreement.min():.2f}"
    if effective < FEW_DRAWS:
        sentence += f"; of the guide's draws only {effective:.1f} count, so errors are larger"
    return Populations(
        axis, edges, law, low, high, laws, means, free, logs.std(axis=0), width, along,
        wells, well_error, height_error, motion_heights,
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
