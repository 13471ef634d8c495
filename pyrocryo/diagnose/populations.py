"""How many particles are where along each latent, from posteriors of each of them."""

from __future__ import annotations

import copy

import numpy as np
import torch

from pyrocryo.diagnose.common import models
from pyrocryo.diagnose.conformations import atoms, has_atoms
from pyrocryo.diagnose.deconvolution import deconvolved, resampled
from pyrocryo.diagnose.free_energy import Populations, read_off
from pyrocryo.diagnose.weighted import log_weights, sampled
from pyrocryo.errors import InputError
from pyrocryo.metrics.mcc import matched
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles, evenly
from pyrocryo.svi import Fit

__all__ = ["asked", "populations"]

ENDS = (0.002, 0.998)  # quantiles of draws that bins reach over
PRIOR_DRAWS = 400_000
FEWEST, FEWEST_BINS = 20, 6


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
    coordinate: a network warps it until the particles' law is the prior's, wells and all, and
    :math:`F` changes by the logarithm of the stretch. Per unit of the molecule's motion it does
    not, and there wells and barriers are looked for.

    One of two arms in a double well (1.6 k_B T, 67 % on the left; 3000 images of 16 pixels, SNR 1,
    one latent, isotropic prior, two seeds, 5 data sets): after 800 steps the barrier is 1.8 ± .1
    k_B T per unit of the latent and 2.4 ± .1 per unit of motion, after 3000 it is 1.1 ± .1 and
    2.1 ± .2 (own error .35), and the left well holds .67 ± .01 and .66 ± .02: populations are
    right, and barriers per unit of motion rather too high. At SNR .1 posteriors are wider than the
    barrier, and one well is found.

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
    for name, value in (("draws", draws), ("resamples", resamples)):
        if value < 2:
            raise InputError(f"{name}: expected at least 2, got {value}")
    particles, temperature = asked(particles, bins=bins, temperature=temperature, most=most)
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
            read_off(
                k,
                edges,
                np.array(laws),
                np.concatenate(samples),
                np.array(widths),
                counts / counts.sum(),
                np.array(agreement),
                effective,
                temperature,
            )  # fmt: skip
        )
    return found


def asked(
    particles: Particles, *, bins: int, temperature: float | None, most: int
) -> tuple[Particles, float | None]:
    """The particles at one temperature, and which: what can be said before anything is trained.

    Args:
        particles: As for :func:`populations`, of which these are options.
        bins: How many.
        temperature: In K.
        most: Particles.

    Raises:
        InputError: If :func:`populations` cannot be found so, whatever the fit.
    """
    for name, value, least in (("bins", bins, FEWEST_BINS), ("most", most, FEWEST)):
        if value < least:
            raise InputError(f"{name}: expected at least {least}, got {value}")
    if temperature is not None and not temperature > 0:
        raise InputError(f"temperature: expected K above 0, got {temperature}")
    if "temperature" not in particles.fields:
        return particles.spread(most), temperature
    held = np.unique(particles.temperature)
    chosen = float(held.max()) if temperature is None else float(temperature)
    rows = np.flatnonzero(np.isclose(particles.temperature, chosen))
    if not len(rows):
        told = ", ".join(f"{value:g}" for value in held[:10])
        raise InputError(f"temperature: no particle at {chosen:g} K, expected one of {told}")
    return particles.take(rows).spread(most), chosen


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
    pair = copy.deepcopy(pair).cpu()  # where every prior can be sampled
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        prior = pair.prior_of(pair.moved(particles.batch(evenly(len(particles), 64))))
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
