"""Is a trained pair invertible, so that its latents can be asked for again?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.diagnose.common import batches, one_frame
from pyrocryo.diagnose.generator import Generator
from pyrocryo.diagnose.worlds import RATE, Learned, misfit
from pyrocryo.errors import InputError
from pyrocryo.metrics.mcc import matched
from pyrocryo.particles import Particles

__all__ = ["Invertibility", "invertibility"]

LEAST_R2 = 0.9  # of every component, from clean images
MOST_COLLISIONS = 0.05  # of conformations
FEWEST = 8  # particles
FAR = 1.0  # standard deviations along a component: another conformation
AS_GOOD = 1.0  # nats


@dataclass(frozen=True)
class Invertibility:
    r"""How well the conformations behind decoded images are found again.

    R² are of :math:`z \to \hat z` as they stand (no regression between): 1 - mean square error /
    variance, a number a component, `(K,)`.

    Attributes:
        encoded: By the pair's guide, from clean images.
        noisy: By the pair's guide, from images with its noise.
        inverted: By search for the most probable `z` of clean images in their poses: what any
            encoder could do.
        independent: The same for independent normal components, which simulated particles have:
            lower where `z` was not independent, and so is decoded where no particle was.
        mcc: Mean correlation coefficient of `z` with what the guide finds in noisy images.
        collisions: Share of conformations for which the search ends more than one standard
            deviation away along some component, at a place as probable (within 1 nat).
        passed: Whether ``inverted`` is at least .9 for every component, and at most 5 % collide.
        sentence: The same in words.
    """

    encoded: np.ndarray
    noisy: np.ndarray
    inverted: np.ndarray
    independent: np.ndarray
    mcc: float
    collisions: float
    passed: bool
    sentence: str


def invertibility(
    learned: Generator,
    particles: Particles,
    *,
    most: int = 200,
    starts: int = 3,
    steps: int = 100,
    seed: int = 0,
) -> Invertibility:
    r"""Decodes conformations in the poses of other particles, and looks for them again.

    Section 4.1 of Klindt et al. (2024): before a trained model serves as the ground truth of
    others, check "that no two distinct points in conformation latent space z1 ≠ z2 would lead to
    the same volume representation". Conformations are draws of the posterior of particles (the
    aggregate posterior), and independent normal ones with its mean and spread. Each is looked for
    in one pose; in space, other views may show what that one hides.

    Args:
        learned: The trained pair.
        particles: To take conformations and poses from.
        most: How many particles, at most.
        starts: Of the search: what the guide says, and draws of a standard normal law.
        steps: Of the search, by Adam.
        seed: Of all draws.

    Raises:
        InputError: If there are fewer than 8 particles, or nothing to search with.
    """
    learned.pair.check(particles)
    if len(particles) < FEWEST:
        raise InputError(f"particles: expected at least {FEWEST}, got {len(particles)}")
    if starts < 1 or steps < 1:
        raise InputError(f"starts and steps: expected at least 1, got {starts} and {steps}")
    world, found = Learned(learned.pair), []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for batch in batches(learned.pair, particles.spread(most)):
            batch = one_frame(batch)
            _, phi = world.latents(batch)
            law = learned.pair.posterior_of(batch, phi if learned.pair.pose.latent else None)
            batch, phi = _exchanged(batch), phi.roll(1, 0)
            for s in (learned.standard(law.sample()), torch.randn_like(law.mean).clamp(-3, 3)):
                found.append([s, *_again(learned, world, s, phi, batch, starts, steps)])
    parts = ([torch.cat(part).double().cpu().numpy() for part in zip(*found[n::2], strict=True)]
             for n in (0, 1))  # fmt: skip
    return _told(*parts)


def _again(
    learned: Generator,
    world: Learned,
    s: Tensor,
    phi: Tensor,
    batch: Any,
    starts: int,
    steps: int,
) -> tuple[Tensor, ...]:
    """What is found of `s` `(B, K)`: by the guide, clean and noisy, by search, and how good."""
    known = None if learned.pair.pose.latent else phi
    clean = world.render(learned.learned(s), phi, batch)
    encoded, noisy = (
        learned.standard(world.read(images, known, batch)[0])
        for images in (clean, learned.pair.replicated(clean))
    )
    tried = torch.stack([encoded, *torch.randn(starts - 1, *s.shape, device=s.device)])

    def cost(tried: Tensor) -> Tensor:
        seen = world.render(learned.learned(tried), phi, batch)
        return misfit(learned.pair, clean, seen) + 0.5 * tried.square().sum(-1)

    with torch.enable_grad():
        tried = tried.clone().requires_grad_()
        optimiser = torch.optim.Adam([tried], lr=RATE)
        for n in range(steps):
            optimiser.param_groups[0]["lr"] = RATE * (1 - n / steps)
            optimiser.zero_grad()
            cost(tried).sum().backward()
            optimiser.step()
    costs = cost(tried)
    best = costs.argmin(dim=0)
    rows = torch.arange(len(s), device=s.device)
    return encoded, noisy, tried[best, rows].detach(), costs[best, rows] - cost(s)


def _told(posterior: list[np.ndarray], normal: list[np.ndarray]) -> Invertibility:
    s, encoded, noisy, again, worse = posterior
    elsewhere = (np.abs(again - s) > FAR).any(axis=-1)
    collisions = float((elsewhere & (worse < AS_GOOD)).mean())
    inverted, independent = _r2(s, again), _r2(normal[0], normal[3])
    passed = bool(inverted.min() >= LEAST_R2 and collisions <= MOST_COLLISIONS)
    sentence = (
        f"{'Invertible' if passed else 'Not invertible'}: each component of decoded conformations "
        f"is found again with R² >= {inverted.min():.3f} (wanted: {LEAST_R2:g}) and "
        f"{100 * collisions:.1f} % collide with another (at most {100 * MOST_COLLISIONS:g} %); "
        f"independent components {independent.min():.3f}, by its guide "
        f"{_r2(s, encoded).min():.3f} from clean and {_r2(s, noisy).min():.3f} from noisy images."
    )
    mcc = matched(s, noisy)[0]
    return Invertibility(
        _r2(s, encoded), _r2(s, noisy), inverted, independent, mcc, collisions, passed, sentence
    )


def _r2(s: np.ndarray, found: np.ndarray) -> np.ndarray:
    return 1 - np.square(found - s).mean(axis=0) / s.var(axis=0)


def _exchanged(batch: Any) -> Any:
    """Each particle in the pose, shift and CTF of another."""
    held = [name for name in ("rotation", "shift", "ctf") if name in batch._fields]
    return batch._replace(**{name: getattr(batch, name).roll(1, 0) for name in held})
