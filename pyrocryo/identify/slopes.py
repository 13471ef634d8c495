"""How images and maps change with the conformation, in units of the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrocryo.diagnose.common import batches
from pyrocryo.jacobians import STEP, slopes, whitened
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles

__all__ = ["STEP", "Latents", "latents_of", "slopes", "whitened"]


@dataclass(frozen=True)
class Latents:
    """What a guide says of some images, frames of a molecule one after the other.

    Attributes:
        mean: `(n, K)` posterior means.
        variance: `(n, K)` their marginal variances.
        draw: `(n, K)` one draw each.
        scale: `(K,)` standard deviation of the draws over all images, at least 1e-6: one unit of
            a latent, whatever units it was learned in.
        parts: Batches, with a draw `(B, [T,] K)` and the pose (or None) of each.
    """

    mean: Tensor
    variance: Tensor
    draw: Tensor
    scale: Tensor
    parts: list[tuple[Any, Tensor, Tensor | None]]


def latents_of(pair: Pair, particles: Particles, seed: int) -> Latents:
    """Posterior means, variances and a draw of `z`, poses at their posterior means."""
    parts, found = [], []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for batch in batches(pair, particles):
            direction = pair.pose_of(batch).mean if pair.pose.latent else None
            law = pair.posterior_of(batch, direction)
            z = law.sample()
            parts.append((batch, z, direction))
            found.append([x.reshape(-1, pair.dim) for x in (law.mean, law.variance, z)])
    mean, variance, draw = (torch.cat(values) for values in zip(*found, strict=True))
    return Latents(mean, variance, draw, draw.std(dim=0).clamp_min(1e-6), parts)
