"""Do seeds find the same latents, and up to which map?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.mcc import matched
from pyrocryo.metrics.r2 import halves, held_out

__all__ = ["Consistency", "consistency"]

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
        reading: The three-way reading, in words.
    """

    permutation: float
    affine: float
    nonlinear: float
    axiswise: float
    worst_turn_deg: float
    agree: bool
    reading: str


def consistency(latents: Sequence[np.ndarray], *, frames: int = 1, seed: int = 0) -> Consistency:
    """Compares the latents that several runs give to the same particles.

    All scores near 1: the axes are the same up to order and sign. Permutation below affine: a
    rotation is left. Affine below nonlinear: a curved map is left, one axis at a time where
    axiswise keeps up with nonlinear. All low: the runs found different things, or none. The worst
    pair of runs decides. Agreement is necessary for identifiability, not sufficient: seeds may
    share a bias.

    Args:
        latents: `(N, K)` arrays, at least two, over the same particles.
        frames: Consecutive rows that belong to one molecule.
        seed: Draws the halves.
    """
    latents = [np.asarray(z, dtype=np.float64) for z in latents]
    if len(latents) < 2:
        raise InputError(f"latents: agreement needs at least two runs, got {len(latents)}")
    shapes = {z.shape for z in latents}
    if len(shapes) != 1 or latents[0].ndim != 2 or len(latents[0]) < FEWEST:
        raise InputError(
            f"latents: expected arrays (N, K) of one shape, N >= {FEWEST}, got {sorted(shapes)}"
        )
    fitted, scored = halves(len(latents[0]), frames, seed)
    rows = []
    for a, b in itertools.permutations(latents, 2):
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
    means = (float(score.mean()) for score in (same, linear, curved, axiswise))
    return Consistency(*means, turn, agree, reading)
