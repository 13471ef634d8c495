"""Draws from a guide, weighed by the model: what integrals over a posterior are made of."""

from __future__ import annotations

import numpy as np
import pyro
import torch
from pyro import poutine

from pyrocryo.diagnose.common import AT_ONCE, MOST_NUMBERS
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi.weights import Weights

__all__ = ["log_evidence", "weighted"]

LATENT = ("pose", "shift", "z")


def weighted(
    pair: Pair, particles: Particles, draws: int, *, seed: int = 0, rigid: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    r"""Draws from the guide and their importance weights.

    .. math:: \ln w = \ln p(x | z, \phi) + \ln p(z) + \ln p(\phi) - \ln q(z, \phi | x)

    none of them weighted by β or γ.

    Args:
        pair: A trained pair that fits the particles.
        particles: Of any number.
        draws: S, draws a particle.
        seed: Of the draws.
        rigid: Every conformation is 0, and its densities are left out.

    Returns:
        `z` `(S, N, [T,] K)` float32 and :math:`\ln w` `(S, N)`.
    """
    if draws < 1:
        raise InputError(f"draws: expected at least 1, got {draws}")
    each = pair.volume.numbers_an_image * (particles.frames or 1)
    at_once = max(1, min(draws, MOST_NUMBERS // each))
    size = max(1, min(AT_ONCE, MOST_NUMBERS // (each * at_once)))
    found = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for rows in particles.chunks(size):
            batch = pair.moved(particles.batch(rows))
            parts = []
            for done in range(0, draws, at_once):
                outer = pyro.plate("draw", min(at_once, draws - done), dim=-2)
                with Weights(rigid=rigid):
                    guide = poutine.trace(outer(pair.guide)).get_trace(batch)
                    model = poutine.trace(poutine.replay(outer(pair.model), guide)).get_trace(
                        batch
                    )
                guide.compute_log_prob()
                model.compute_log_prob()
                total = model.nodes["x"]["unscaled_log_prob"]
                for name in LATENT[: 2 if rigid else 3]:
                    if name in guide.nodes:
                        total = total + model.nodes[name]["unscaled_log_prob"]
                        total = total - guide.nodes[name]["unscaled_log_prob"]
                z = model.nodes["z"]["value"]
                count = outer.size
                total = total.expand(count, len(rows))  # nothing is drawn of a rigid molecule
                parts.append((z.float().cpu().numpy(), total.double().cpu().numpy()))
            found.append([np.concatenate(part) for part in zip(*parts, strict=True)])
    z, log_weight = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
    return z, log_weight


def log_evidence(log_weight: np.ndarray) -> np.ndarray:
    r"""Importance-weighted log-likelihood `(N,)` of weights `(S, N)`, in nats.

    .. math:: \ln \frac1S \sum_s w_s \quad (\text{Burda et al. 2016: in expectation a lower bound})
    """
    most = log_weight.max(axis=0)
    return most + np.log(np.exp(log_weight - most).mean(axis=0))
