"""Do seeds find the same latents, and up to which map?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.mcc import matched
from pyrocryo.metrics.r2 import halves, held_out

__all__ = ["Consistency", "aligned_rhat", "consistency"]

CONVERGED = 1.05  # R-hat above which chains are said to differ
FEWEST_DRAWS = 10
MOST_PAIRS = 24 * 23  # ordered pairs of seeds compared: all of up to 24 seeds
LARGEST_TURN_DEG = 12.0  # axes closer than this are called the same
FOUND = 0.5  # R² between seeds below which they share nothing worth naming
FEWEST = 8  # particles that agreement can be judged from
CURVED = 0.1  # R² that a wider class of maps must add to count as needed


@dataclass(frozen=True)
class Consistency:
    """Agreement between the latents of several seeds, averaged over pairs of seeds.

    Attributes:
        permutation: Mean |correlation| of latents matched one to one.
        affine: R² of one seed's latents from another's by least squares, on a held-out half.
        nonlinear: The same by nearest neighbours.
        axiswise: The same, of each latent from its match alone: as high as ``nonlinear`` where
            nothing but order, sign and a warp along each axis tells the seeds apart.
        worst_turn_deg: Largest angle between matched axes of two seeds that the shortfall of
            ``permutation`` against ``affine`` speaks for (meaningless where seeds share nothing).
        agree: Whether all seeds have the same axes, up to order and sign.
        sentence: The three ways, in words.
        rhat: Median R-hat over particles and latents, a chain each seed's posterior draws aligned
            to the first seed's by order, sign, mean and standard deviation (held-out half). None
            without draws.
        rhat_share: Share of particles and latents with an R-hat above 1.05.
        rhat_affine: As ``rhat``, aligned by the affine map that fits one half best.
        rhat_affine_share: Share above 1.05 of that.
        compared: Ordered pairs of seeds that the scores are averaged over.
        possible: Ordered pairs that there are.
    """

    permutation: float
    affine: float
    nonlinear: float
    axiswise: float
    worst_turn_deg: float
    agree: bool
    sentence: str
    rhat: float | None = None
    rhat_share: float | None = None
    rhat_affine: float | None = None
    rhat_affine_share: float | None = None
    compared: int = 0
    possible: int = 0


def consistency(latents: Sequence[np.ndarray], *, frames: int = 1, seed: int = 0) -> Consistency:
    """Compares the latents that several runs give to the same particles.

    All scores near 1: the axes are the same up to order and sign. Permutation below affine: a
    rotation is left. Affine below nonlinear: a curved map is left, one axis at a time where
    axiswise keeps up with nonlinear. All low: the runs found different things, or none. The worst
    pair of runs decides. Agreement is necessary for identifiability, not sufficient: seeds may
    share a bias.

    Given posterior draws, R-hat says whether seeds that agree on the axes also agree on each
    particle, within its posterior's width: :func:`aligned_rhat`. The other scores go by means.

    From 25 seeds on not all pairs of seeds are compared (the reading says how many), each seed in
    equally many.

    Runs of other programs are compared just so:
    ``consistency([pc.io.cryodrgn.read_pickle(f"run{n}/z.49.pkl") for n in range(4)])``.

    Args:
        latents: Arrays, at least two, over the same particles: `(N, K)` posterior means, or
            `(draws, N, K)`, as a list of a posterior's chains is.
        frames: Consecutive rows that belong to one molecule.
        seed: Draws the halves.
    """
    latents = [np.asarray(z, dtype=np.float64) for z in latents]
    if len(latents) < 2:
        raise InputError(f"latents: agreement needs at least two runs, got {len(latents)}")
    shapes = {z.shape for z in latents}
    sound = len(shapes) == 1 and latents[0].ndim in (2, 3) and latents[0].shape[-2] >= FEWEST
    if not sound:
        raise InputError(
            f"latents: expected arrays (N, K) of one shape, N >= {FEWEST}, or (draws, N, K), got "
            f"{sorted(shapes)}"
        )
    if not all(np.isfinite(z).all() for z in latents):
        raise InputError("latents: expected finite numbers, got NaN or infinity")
    draws = latents if latents[0].ndim == 3 else None
    latents = [z.mean(axis=0) for z in latents] if draws else latents
    fitted, scored = halves(len(latents[0]), frames, seed)
    compared = _pairs(len(latents), seed)
    rows = []
    for a, b in ((latents[m], latents[n]) for m, n in compared):
        same, axes, matches = matched(a[scored], b[scored])
        linear, curved = (held_out(a, b, (fitted, scored), kind) for kind in ("linear", "knn"))
        alone = [
            held_out(a[:, [i]], b[:, [k]], (fitted, scored), "knn")
            for i, k in zip(axes, matches, strict=True)
        ]
        rows.append((same, linear, curved, np.mean(alone)))
    same, linear, curved, axiswise = np.array(rows).T
    # a turn by θ leaves cos θ of the correlation that the best linear map reaches
    reached = np.sqrt(np.clip(linear, 1e-12, 1))
    turn = float(np.rad2deg(np.arccos(np.clip(same / reached, 0, 1))).max())
    shared = np.maximum(linear, curved)  # the worst pair of seeds decides
    agree = False
    if shared.max() < FOUND:
        reading = "the seeds found different things: training failed, or there is nothing to find"
    elif shared.min() < FOUND:
        reading = "some seeds found something else than the others, or nothing"
    elif turn <= LARGEST_TURN_DEG and (shared - axiswise).max() <= CURVED:
        agree = True
        warped = (curved - linear).max() > CURVED
        reading = "the seeds agree on every axis, up to order and sign"
        reading += " and a warp along it" if warped else ""
    elif (curved - linear).max() > CURVED:
        reading = "the seeds agree up to a curved map of the latents"
    else:
        reading = "the seeds agree up to a rotation of the axes"
    possible = len(latents) * (len(latents) - 1)
    if len(compared) < possible:
        reading += f" ({len(compared)} of {possible} ordered pairs of seeds compared)"
    rhat: list[float | None] = [None] * 4
    if draws is not None and len(draws[0]) >= FEWEST_DRAWS:
        found = aligned_rhat(draws, frames=frames, seed=seed)
        rhat = [f(x) for x in found for f in (_median, lambda x: float((x > CONVERGED).mean()))]
    means = (float(score.mean()) for score in (same, linear, curved, axiswise))
    return Consistency(*means, turn, agree, reading, *rhat, len(compared), possible)


def aligned_rhat(
    draws: Sequence[np.ndarray], *, frames: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    r"""R-hat of every latent of every held-out particle, a chain each seed's posterior draws.

    .. math:: \hat R^2 = \frac{n - 1}n + \frac{\mathrm{var}_s \, E_d \, z_{sd}}
              {E_s \, \mathrm{var}_d \, z_{sd}}

    (Gelman & Rubin 1992; neither split nor ranked, as draws from a guide are independent.) Seeds
    are brought to the coordinates of the first before that, with maps fitted to posterior means
    of one half of the particles and applied to the draws of the other.

    Args:
        draws: `(n, N, K)` for each seed.
        frames: Consecutive rows that belong to one molecule.
        seed: Draws the halves.

    Returns:
        `(N / 2, K)` after matching latents one to one, with sign, mean and standard deviation, and
        the same after the affine map of least squares.
    """
    first, *others = (np.asarray(z, dtype=np.float64) for z in draws)
    fitted, scored = halves(first.shape[1], frames, seed)
    mean = first.mean(axis=0)[fitted]
    same, affine = [first[:, scored]], [first[:, scored]]
    for other in others:
        there = other.mean(axis=0)[fitted]
        _, rows, columns = matched(mean, there)
        taken = np.empty_like(columns)
        taken[rows] = columns
        sign = np.sign(np.sum((mean - mean.mean(0)) * (there - there.mean(0))[:, taken], axis=0))
        # spreads of draws, which a latent that is dead in one seed has too
        spread = np.maximum(other[:, fitted].std(axis=(0, 1))[taken], 1e-12)
        scale = first[:, fitted].std(axis=(0, 1)) / spread
        centred = other[:, scored][..., taken] - there.mean(0)[taken]
        same.append(mean.mean(0) + np.where(sign < 0, -1, 1) * scale * centred)
        one = np.column_stack([there, np.ones(len(there))])
        solution = np.linalg.lstsq(one, mean, rcond=None)[0]
        affine.append(other[:, scored] @ solution[:-1] + solution[-1])
    return _rhat(np.stack(same)), _rhat(np.stack(affine))


def _rhat(chains: np.ndarray) -> np.ndarray:
    """`(N, K)` of chains `(seeds, draws, N, K)`."""
    n = chains.shape[1]
    within = chains.var(axis=1, ddof=1).mean(axis=0)
    between = chains.mean(axis=1).var(axis=0, ddof=1)
    return np.sqrt((n - 1) / n + between / np.maximum(within, 1e-300))


def _median(x: np.ndarray) -> float:
    return float(np.median(x))


def _pairs(count: int, seed: int) -> list[tuple[int, int]]:
    """Ordered pairs of seeds: all, or each with as many of those around it on a circle."""
    if count * (count - 1) <= MOST_PAIRS:
        return list(itertools.permutations(range(count), 2))
    order = np.random.default_rng(seed).permutation(count)
    steps = range(1, MOST_PAIRS // (2 * count) + 1)
    around = [(int(order[n]), int(order[(n + k) % count])) for n in range(count) for k in steps]
    return [pair for m, n in around for pair in ((m, n), (n, m))]
