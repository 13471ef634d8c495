"""Conformations that a trained pair decodes: where its posterior is, and the atoms there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyrocryo.diagnose.common import batches
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles

__all__ = ["atoms", "has_atoms", "posterior_means"]


def posterior_means(pair: Pair, particles: Particles) -> np.ndarray:
    """Means of the posterior of all images, `(N, K)`; frames of a molecule one after another.

    Args:
        pair: A trained pair, such as ``fit.pairs[0]``.
        particles: All of which are looked at.

    Raises:
        InputError: If it is a fit, or does not go with the particles.
    """
    if not isinstance(pair, Pair):
        raise InputError(f"pair: expected one of fit.pairs, got {type(pair).__name__}")
    pair.check(particles)
    with torch.no_grad():
        means = [pair.posterior_of(batch).mean for batch in batches(pair, particles)]
    return torch.cat(means).reshape(-1, pair.dim).cpu().numpy()


def has_atoms(pair: Pair) -> bool:
    """Whether the volume is one of atoms in space (and not of the voxels of a map)."""
    volume = pair.volume
    return volume.dim == 3 and hasattr(volume, "structure") and getattr(volume, "chain", True)


def atoms(pair: Pair, z: np.ndarray) -> np.ndarray:
    """Positions `(..., A, 3)`, Å from the box centre, of conformations `(..., K)` as reported."""
    with torch.no_grad():
        z = torch.as_tensor(z).to(pair.noise_steps)
        centres: Tensor = pair.volume.structure(z @ pair.rotation())
    return centres.cpu().numpy().astype(np.float64)
