"""The molecule behind simulated particles, to intervene in: for metrics that ask for it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pyrocryo.diagnose.common import AT_ONCE, batches, models, one_frame
from pyrocryo.diagnose.worlds import Learned, Truth
from pyrocryo.errors import InputError
from pyrocryo.metrics.interventions import Encode, Sampler
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.simulate.images import reflected
from pyrocryo.svi import Fit

__all__ = ["simulator"]

SURE = 3.0  # standard errors


def simulator(
    fit: Fit | Pair, molecule: Any, particles: Particles, *, seed: int = 0
) -> tuple[Sampler, Encode]:
    """What :func:`pyrocryo.metrics.betavae` and ``factorvae`` ask of the world, and of a model.

        >>> world = pc.diagnose.simulator(fit, molecule, particles.test)  # doctest: +SKIP
        >>> pc.metrics.factorvae(*world)  # doctest: +SKIP

    Args:
        fit: A fit, or a trained pair.
        molecule: What the particles were simulated from.
        particles: With ``truth`` and ``rotation``. Images are made as they were: in the pose,
            shift and CTF of one of them, in their brightness, with noise as the pair has it.
        seed: Draws whose, and the noise.

    Returns:
        ``sampler(n, fixed, rng)``: conformations `(n, K)`, standard normal and reflected at ± 3,
        but for those components that ``fixed`` gives as `(n,)` by number. ``encode(z)``: posterior
        means `(seeds, n, L)` of one noisy image of each, the same image for all seeds, and the
        same whenever it is asked for the same conformations.

    Raises:
        InputError: If the particles carry no truth or rotations, or are not of this molecule.
    """
    pairs = list(models(fit, particles, 2).values())
    for name in ("truth", "rotation"):
        if name not in particles.fields:
            raise InputError(f"particles: a simulator needs their {name}, and they carry none")
    if pairs[0].pose.latent and pairs[0].pose.spatial != 2:
        raise InputError("fit: in space, only pairs that know the poses can be intervened in")
    with torch.random.fork_rng(), torch.no_grad():
        world = Truth(pairs[0], molecule, particles)
        _check(world, one_frame(next(batches(pairs[0], particles))))

    def sampler(n: int, fixed: Mapping[int, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        z = reflected(rng.standard_normal((n, molecule.dim)))
        for k, values in fixed.items():
            z[:, k] = values
        return z

    def encode(z: np.ndarray) -> np.ndarray:
        codes = []
        z = np.ascontiguousarray(z, dtype=np.float64)
        rng = np.random.default_rng([seed, zlib.crc32(z.tobytes())])  # whatever was asked before
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(int(rng.integers(2**31)))
            for start in range(0, len(z), AT_ONCE):
                part = torch.as_tensor(z[start : start + AT_ONCE], dtype=torch.float32)
                rows = rng.integers(len(particles), size=len(part))
                batch = pairs[0].moved(one_frame(particles.batch(rows)))
                part, phi = part.to(batch.images), world.latents(batch)[1]
                images = pairs[0].replicated(world.render(part, phi, batch))
                known = None if pairs[0].pose.latent else phi
                codes.append(
                    torch.stack([Learned(p).read(images, known, batch)[0] for p in pairs]).cpu()
                )
        return torch.cat(codes, dim=1).numpy()

    return sampler, encode


def _check(world: Truth, batch: Any) -> None:
    """Raises InputError if true conformations do not tell these images apart."""
    phi = world.latents(batch)[1]
    own, other = (
        (world.render(z, phi, batch) - batch.images).square().mean((-1, -2))
        for z in (batch.truth, batch.truth.roll(1, 0))
    )
    gain = other - own
    if not gain.mean() > SURE * gain.std() / len(gain) ** 0.5:
        raise InputError(
            f"molecule: {type(world.molecule).__name__} shows the conformations of these "
            "particles no better than those of others: they are of another molecule"
        )
