"""Draws from a guide, weighed by the model: what integrals over a posterior are made of."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import logsumexp

from pyrocryo.diagnose.common import AT_ONCE, MOST_NUMBERS
from pyrocryo.draws import weighted
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles

__all__ = ["log_evidence", "log_weights", "sampled"]


def sampled(
    pair: Pair, particles: Particles, draws: int, *, seed: int = 0, rigid: bool = False
) -> dict[str, np.ndarray]:
    """Draws from the guide for all particles, with their log-densities.

    Args:
        pair: A trained pair that fits the particles.
        particles: Of any number.
        draws: S, draws a particle.
        seed: Of the draws.
        rigid: Every conformation is 0, and its densities are left out.

    Returns:
        ``z`` `(S, N, [T,] K)`, ``pose`` and ``shift`` where they are inferred, and
        ``log_likelihood``, ``log_prior`` and ``log_q`` `(S, N)`, none of them weighted by β or γ.
    """
    if draws < 1:
        raise InputError(f"draws: expected at least 1, got {draws}")
    each = pair.volume.numbers_an_image * (particles.frames or 1)
    parts: dict[str, list[np.ndarray]] = {}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for rows in particles.chunks(max(1, min(AT_ONCE, MOST_NUMBERS // (each * draws)))):
            batch = pair.moved(particles.batch(rows))
            for name, part in weighted(pair, batch, draws, 0, MOST_NUMBERS, rigid=rigid).items():
                if name not in ("clean", "replicate"):
                    parts.setdefault(name, []).append(part)
    return {name: np.concatenate(values, axis=1) for name, values in parts.items()}


def log_weights(found: dict[str, np.ndarray]) -> np.ndarray:
    r"""Logarithms of importance weights `(S, N)`, double, of what :func:`sampled` gives.

    .. math:: \ln w = \ln p(x | z, \phi) + \ln p(z) + \ln p(\phi) - \ln q(z, \phi | x)
    """
    names = ("log_likelihood", "log_prior", "log_q")
    likelihood, prior, q = (found[name].astype(float) for name in names)
    return likelihood + prior - q


def log_evidence(log_weight: np.ndarray, axis: int = 0) -> np.ndarray:
    r"""Importance-weighted log-likelihood `(N,)` of weights `(S, N)`, in nats.

    .. math:: \ln \frac1S \sum_s w_s \quad (\text{Burda et al. 2016: in expectation a lower bound})
    """
    return logsumexp(log_weight, axis=axis) - math.log(log_weight.shape[axis])
