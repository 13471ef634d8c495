"""What would be inferred under a prior, or a likelihood, a little stronger or weaker."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyrocryo.diagnose.importance import Importance, importance
from pyrocryo.diagnose.psis import psis
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Sensitivity", "power_scaled", "sensitivity"]

DELTA = 0.01
SENSITIVE = 0.05  # Kallioinen et al.'s


@dataclass(frozen=True)
class Sensitivity:
    """How far the posterior of each latent moves as prior and likelihood are raised to a power.

    Attributes:
        seeds: Seeds.
        names: The latents.
        prior: `(seeds, n, K)`; above .05 the posterior is sensitive to the prior.
        likelihood: `(seeds, n, K)`; below .05 the image says little of that latent.
        share_prior: `(seeds, K)` share of particles sensitive to the prior.
        share_likelihood: `(seeds, K)` share sensitive to the likelihood.
        sentence: In words.
    """

    seeds: tuple[int, ...]
    names: tuple[str, ...]
    prior: np.ndarray
    likelihood: np.ndarray
    share_prior: np.ndarray
    share_likelihood: np.ndarray
    sentence: str


def sensitivity(
    fit: Fit | Pair, particles: Particles, *, draws: int = 400, most: int = 256, seed: int = 0
) -> Sensitivity:
    r"""Power-scales prior and likelihood, by weights of the draws that there are.

    .. math:: p_\alpha(z | x) \propto p(z)^\alpha p(x | z) \quad \text{and} \quad
              p(z) p(x | z)^\alpha

    Sensitive to the prior alone: the image says little, and what is inferred is what was assumed.
    Sensitive to both: the prior pulls against the image, or weighs as much. To the likelihood
    alone: the prior hardly matters (Kallioinen et al. 2023).

    Args:
        fit: A fit, or one trained pair.
        particles: Its particles.
        draws: Draws of the guide a particle.
        most: At most so many particles.
        seed: Seed of the draws.
    """
    return scaled(importance(fit, particles, draws=draws, most=most, seed=seed))


def scaled(weights: Importance) -> Sensitivity:
    """The same of draws that there are already."""
    z = weights.z.reshape(*weights.z.shape[:3], -1)
    parts = {"prior": weights.log_prior, "likelihood": weights.log_likelihood}
    found = {
        name: np.stack(
            [power_scaled(*one) for one in zip(z, part, weights.log_weight, strict=True)]
        )
        for name, part in parts.items()
    }
    dim = weights.z.shape[-1]
    frames = z.shape[-1] // dim
    names = tuple(
        f"z{k + 1}" if weights.z.ndim == 4 else f"z{k + 1} of frame {t + 1}"
        for t in range(frames)
        for k in range(dim)
    )
    share = {name: (value > SENSITIVE).mean(axis=1) for name, value in found.items()}
    return Sensitivity(
        weights.seeds,
        names,
        found["prior"],
        found["likelihood"],
        share["prior"],
        share["likelihood"],
        _sentence(share["prior"], share["likelihood"]),
    )


def power_scaled(
    draws: np.ndarray, log_part: np.ndarray, log_weight: np.ndarray | None = None
) -> np.ndarray:
    r"""Sensitivity `(n, K)` of draws `(S, n, K)` to a part `(S, n)` of their log-density.

    The cumulative Jensen-Shannon distance between the draws as they are and as they are weighted
    where the part is raised to :math:`2^{\pm \delta}`-th powers, per unit of δ (log2 of the
    power; Kallioinen et al. 2023, section 2.3). The same as ``az.psens`` where ``log_weight`` is
    None.

    Args:
        draws: Draws of a guide.
        log_part: Log prior, or log-likelihood, of each.
        log_weight: `(S, n)` importance weights that make them draws of the posterior.
    """
    draws, log_part = (np.asarray(x, dtype=np.float64) for x in (draws, log_part))
    if draws.ndim != 3 or log_part.shape != draws.shape[:2]:
        raise InputError(
            f"draws: expected (S, n, K) beside a part (S, n), got {draws.shape} and "
            f"{log_part.shape}"
        )
    order = np.argsort(draws, axis=0)
    gap = np.diff(np.take_along_axis(draws, order, axis=0), axis=0)
    base = np.zeros(log_part.shape) if log_weight is None else np.asarray(log_weight)
    was = _cumulative(base, order, smooth=log_weight is not None)
    total = 0.0
    for power in (1 / (1 + DELTA), 1 + DELTA):
        now = _cumulative(base + (power - 1) * log_part, order)
        # whichever way the axis points
        total = total + np.maximum(_distance(was, now, gap), _distance(1 - was, 1 - now, gap))
    return total / (2 * math.log2(1 + DELTA))


def _cumulative(log_weight: np.ndarray, order: np.ndarray, *, smooth: bool = True) -> np.ndarray:
    """Distribution functions `(S - 1, n, K)` of weighted draws, between one draw and the next."""
    if smooth:
        log_weight = psis(log_weight.T)[0].T
    else:
        log_weight = np.full(log_weight.shape, -math.log(len(log_weight)))
    weight = np.take_along_axis(np.exp(log_weight)[..., None], order, axis=0)
    return weight.cumsum(axis=0)[:-1]


def _distance(p: np.ndarray, q: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Cumulative Jensen-Shannon distance `(n, K)` of distribution functions (Nguyen 2015)."""

    def one(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        safe = np.maximum(a, 1e-300)
        terms = a * (np.log2(safe) - np.log2(np.maximum(0.5 * (a + b), 1e-300)))
        return (gap * terms).sum(axis=0) + 0.5 / math.log(2) * (gap * (b - a)).sum(axis=0)

    bound = (gap * (p + q)).sum(axis=0)
    return np.sqrt(np.maximum(one(p, q) + one(q, p), 0.0) / np.maximum(bound, 1e-300))


def _sentence(prior: np.ndarray, likelihood: np.ndarray) -> str:
    p, q = prior.max(axis=0), likelihood.min(axis=0)  # of the worst seed
    said = (
        f"{100 * p.min():.0f} to {100 * p.max():.0f} % of the particles' latents would move with "
        f"the prior, {100 * q.min():.0f} to {100 * q.max():.0f} % with the likelihood"
    )
    if (q < 0.5).any():
        return f"{said}: images say little of some latents, and these are what the prior assumed."
    if (p > 0.5).any():
        return f"{said}: the prior weighs about as much as an image does."
    return f"{said}: the prior hardly matters."
