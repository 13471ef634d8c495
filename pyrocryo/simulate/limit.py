"""What could be known at all: the exact posterior under the true molecule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging import modulated
from pyrocryo.particles import Particles
from pyrocryo.simulate.images import MARGIN

__all__ = ["information_limit"]

SIDE = 25  # grid points along each component, in ± 3
EDGE = 3.0
MOST_POINTS = 500_000  # of the grid over all frames of a molecule
FINEST = 0.4  # grid steps that a median standard deviation must have
AT_ONCE = 128  # images rendered at once


def information_limit(molecule: Any, particles: Particles, prior: Any) -> np.ndarray:
    r"""Posterior means of `z` under the true molecule, pose, noise and prior.

    .. math:: E[z | x] = \frac{\sum_z z \, p(z) \prod_t N(x_t; a g^*(z_t, \phi_t), \sigma^2)}
              {\sum_z p(z) \prod_t N(x_t; a g^*(z_t, \phi_t), \sigma^2)}

    on a grid of 25 points in ± 3 for each component, with all frames of a molecule together. The
    brightness `a` and the noise σ are those that fit the true images best; particles with
    a CTF are seen through it. Score the result as one would score a model: that is the bound to
    print beside it, as no encoder does better.

    Args:
        molecule: What the particles were simulated from.
        particles: With ``truth``, ``rotation`` and ``shift``.
        prior: A distribution over `z`, event shape `(K,)` or, for particles with frames, `(T, K)`.

    Returns:
        `(N, [T,] K)`.

    Raises:
        InputError: If the particles are no simulated ones, the prior is not one over them, or the
            grid would be too large, or is too coarse for what the images tell.
    """
    missing = [n for n in ("truth", "rotation", "shift") if n not in particles.fields]
    if missing:
        raise InputError(f"{missing[0]}: the information limit needs simulated particles")
    frames, k = particles.frames or 1, molecule.dim
    if SIDE ** (k * frames) > MOST_POINTS:
        raise InputError(
            f"particles: {frames} frames of {k} components need a grid of {SIDE}^{k * frames} "
            "points"
        )
    event = (k,) if particles.frames is None else (frames, k)
    if tuple(getattr(prior, "event_shape", ())) != event:
        raise InputError(f"prior: expected a distribution of event shape {event}, got {prior!r}")
    axis = torch.linspace(-EDGE, EDGE, SIDE)
    points = torch.cartesian_prod(*[axis] * k).reshape(-1, k)
    n = len(particles)
    images = torch.as_tensor(particles.batch(np.arange(n)).images).reshape(n * frames, -1)
    poses = [
        torch.as_tensor(a.reshape(n * frames, *shape), dtype=torch.float32)
        for a, shape in ((particles.rotation, (3, 3)), (particles.shift, (2,)))
    ]
    truth = torch.as_tensor(particles.truth, dtype=torch.float32).reshape(-1, k)
    ctf = None
    if "ctf" in particles.fields:
        ctf = torch.as_tensor(particles.ctf.reshape(n * frames, -1))
    size = {"box": particles.box, "pixel_size": particles.pixel_size}

    def seen(z: Tensor, rows: Any) -> Tensor:
        shown = molecule.render(z, *(a[rows] for a in poses), **size)
        if ctf is not None:
            shown = modulated(shown, ctf[rows], pixel_size=particles.pixel_size, margin=MARGIN)
        return shown.flatten(1)

    clean = seen(truth, slice(None))
    brightness = (images * clean).sum() / clean.square().sum()
    variance = (images - brightness * clean).square().mean()
    fitness = torch.empty(n * frames, len(points))
    for i in range(n * frames):
        for part in torch.arange(len(points)).split(AT_ONCE):
            shown = seen(points[part], i)
            error = (images[i] - brightness * shown).square().sum(-1)
            fitness[i, part] = -0.5 * error / variance
    ways = torch.cartesian_prod(*[torch.arange(len(points))] * frames).reshape(-1, frames)
    before = prior.log_prob(points[ways] if particles.frames else points)
    means = torch.stack(
        [
            (before + sum(row[ways[:, t]] for t, row in enumerate(rows))).softmax(0)
            @ points[ways].flatten(1)
            for rows in fitness.unflatten(0, (n, frames))
        ]
    )
    own = fitness.softmax(-1)
    spread = (own @ points.square() - (own @ points).square()).clamp_min(0).sqrt().median()
    step = 2 * EDGE / (SIDE - 1)
    if spread < FINEST * step:
        raise InputError(
            f"particles: z is known to {spread:.2g} from an image, too sharp for a grid of step "
            f"{step:g}: no limit at so high a signal"
        )
    return means.reshape(*particles.truth.shape).numpy()
