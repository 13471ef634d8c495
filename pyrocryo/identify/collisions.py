r"""Distinct conformations with the same volume: is the decoder invertible on the posterior?

No two points of the latent space should lead to the same volume if a trained model is to be taken
for a simulator (Klindt et al. 2024, section 4.1). Two particles collide where the posterior of
each rules the other's `z` out and yet their images, in any of several poses, could not be told
apart. In a pair whose guide inverts its model that cannot happen: an image that two conformations
explain has both in its posterior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from pyrocryo.identify.slopes import Latents, slopes, whitened
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles

__all__ = ["Collisions", "collisions"]

SAME = 1.0  # noise standard deviations between images: half a nat tells them apart
RULED_OUT = 0.999  # mass of a posterior difference that leaves the other particle outside
FAR = 0.5  # standard deviations of z
VIEWS = 3  # where a pose or a CTF may hide a difference
STARTS = 3  # of Gauss-Newton: the distinct particles whose images are closest
STEPS = 5
REFINED = 64
DAMPING = 1e-3


@dataclass(frozen=True)
class Collisions:
    """Near-collisions of one seed.

    Attributes:
        share: Share of the particles looked at for which another, distinct `z` gives the same
            image, whether that of a particle or found by going on from one.
        pair: ``particles.index`` of two particles that collide, or None.
        apart: Their distance in standard deviations of `z` (NaN without a pair).
        differ: Their images' distance in standard deviations of the noise.
    """

    share: float
    pair: tuple[int, int] | None
    apart: float
    differ: float


def collisions(
    pair: Pair, particles: Particles, latents: Latents, *, renders: int = 20_000
) -> Collisions:
    r"""Looks for doubles of every particle among the others, then near the closest of them.

    Distance of images: :math:`d^2 = E_{views} |\Sigma^{-1/2} (g(z_i) - g(z_j))|^2` < 1, in the
    poses (and CTFs) of up to three particles. Distinct: :math:`\sum_k (z_{ik} - z_{jk})^2 /
    (s_{ik}^2 + s_{jk}^2)` beyond the 99.9 % quantile of :math:`\chi^2_K`, and more than half a
    standard deviation of `z`. As few particles have a neighbour exactly where their double is, a
    few damped Gauss-Newton steps go on from the three nearest, within the range of `z` seen.

    Args:
        pair: A trained pair.
        particles: The particles that ``latents`` are of.
        latents: See :func:`pyrocryo.identify.slopes.latents_of`.
        renders: Images that may be made for the second part.
    """
    seen = _Views(pair, particles)
    z = latents.mean
    with torch.no_grad():
        images = seen(z)
        square = _squares(images)
        distinct = _distinct(latents, z[:, None], z, latents.variance)
        distinct.fill_diagonal_(False)
        meets = distinct & (square < SAME**2)
        double = meets.any(dim=1)
        best = torch.where(distinct, square, torch.inf)
        names = particles.index.repeat(particles.frames or 1)
        example = _example(latents, best, names) if double.any() else (None, np.nan, np.nan)
        tried = torch.ones_like(double)
        open_ = (~double & distinct.any(dim=1)).nonzero().squeeze(1)
        a_particle = STARTS * STEPS * (2 * z.shape[1] + 1) * seen.count
        most = min(REFINED, renders // a_particle)
        if len(open_) > most:  # judged from some of them
            kept = torch.linspace(0, len(open_) - 1, max(most, 1)).round().long().to(open_)
            tried[open_] = False
            open_ = open_[kept]
            tried[open_] = True
        if len(open_):
            closest = best[open_].topk(min(STARTS, len(z)), largest=False).indices
            for start in closest.T:
                found = _refined(seen, latents, images[open_], z[start])
                apart = _distinct(latents, found, z[open_], latents.variance[open_], paired=True)
                near = (seen(found) - images[open_]).square().sum(1) < SAME**2
                double[open_] |= near & apart
    # those not tried are as likely to have one as those that were
    caught = meets.any(dim=1)
    left = ~caught & tried
    rest = double[left].double().mean().item() if left.any() else 0.0
    share = caught.double().mean().item()
    return Collisions(share + (1 - share) * rest, *example)


class _Views:
    """Images of conformations in the poses and optics of a few particles, whitened."""

    def __init__(self, pair: Pair, particles: Particles) -> None:
        hidden = getattr(pair.volume, "dim", 2) == 3 or pair.optics is not None
        some = particles.spread(VIEWS if hidden and particles.frames is None else 1)
        self.pair, self.frames = pair, particles.frames
        self.views: list[tuple[Any, Tensor | None]] = []
        with torch.no_grad():
            for row in range(len(some)):
                batch = pair.moved(some.batch(np.array([row])))
                direction = pair.pose_of(batch).mean if pair.pose.latent else None
                self.views.append((batch, direction))
        self.count = len(self.views) * (self.frames or 1)
        self.at_once = max(1, 20_000_000 // (pair.volume.numbers_an_image * (self.frames or 1)))

    def __call__(self, z: Tensor) -> Tensor:
        """`(n, numbers)` of `z` `(n, K)`; squares of differences sum to mean squares of views."""
        return torch.cat([self._some(part) for part in z.split(self.at_once)])

    def _some(self, z: Tensor) -> Tensor:
        lead = (len(z), 1, 1) if self.frames else (len(z), 1)
        images = [
            whitened(self.pair, self.pair.seen(z.reshape(*lead, -1), batch, direction))
            for batch, direction in self.views
        ]
        return torch.cat([x.flatten(1) for x in images], dim=1).double() / self.count**0.5


def _squares(images: Tensor) -> Tensor:
    """Squared distances `(n, n)`."""
    images = images - images.mean(dim=0)
    square = images.square().sum(1)
    return (square[:, None] + square - 2 * images @ images.T).clamp_min(0)


def _distinct(
    latents: Latents, a: Tensor, b: Tensor, variance: Tensor, *, paired: bool = False
) -> Tensor:
    """Whether conformations lie outside of one another's posterior, and far apart."""
    both = variance + (variance if paired else latents.variance[:, None])
    gap = (a - b).square()
    outside = (gap / both.clamp_min(1e-12)).sum(-1) > chi2.ppf(RULED_OUT, a.shape[-1])
    return outside & ((gap / latents.scale.square()).sum(-1) > FAR**2)


def _refined(seen: _Views, latents: Latents, target: Tensor, start: Tensor) -> Tensor:
    """Conformations near ``start`` whose images come closest to ``target``."""
    low, high = latents.draw.min(dim=0).values, latents.draw.max(dim=0).values
    z = start.clone()
    eye = torch.eye(z.shape[1], dtype=torch.float64, device=z.device)
    for _ in range(STEPS):
        slope = slopes(seen, z, latents.scale).transpose(0, 1)  # (n, K, numbers)
        left = target - seen(z)
        gram = slope @ slope.transpose(-1, -2)
        size = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-9)
        right = (slope @ left.unsqueeze(-1)).squeeze(-1)
        step = torch.linalg.solve(gram + DAMPING * size[:, None, None] * eye, right)
        z = (z + step.to(z) * latents.scale).clamp(low, high)
    return z


def _example(
    latents: Latents, best: Tensor, names: np.ndarray
) -> tuple[tuple[int, int], float, float]:
    """Of those that cannot be told apart, the two that are farthest apart."""
    far = ((latents.mean[:, None] - latents.mean) / latents.scale).norm(dim=-1)
    far = torch.where(best < SAME**2, far, -1.0)
    i, j = divmod(int(far.argmax()), len(far))
    pair = int(names[i]), int(names[j])
    return pair, float(far[i, j]), float(best[i, j].sqrt())
