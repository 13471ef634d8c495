"""Particles that a model dreams up, with their latents, and what its guide says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrocryo import unit_vectors
from pyrocryo.agreement import columns
from pyrocryo.diagnose.common import MOST_NUMBERS, models
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles, evenly
from pyrocryo.svi import Fit

__all__ = ["Dreamt", "angles", "answers", "dream", "dreamt"]

SITES = ("z", "pose", "shift")
CENTRES = 4  # draws of a pose that say where its angles are counted from
FEWEST_DREAMS = 20


@dataclass(frozen=True)
class Dreamt:
    """What one pair drew: site → array.

    Attributes:
        truth: `(n, ...)` latents drawn from the prior, in the context of each particle.
        other: `(n, ...)` a second draw of the prior, in the same contexts.
        draws: `(S, n, ...)` draws of the guide for the images made of ``truth``.
        centre: `(n, ...)` a pose near the guide's, from draws that are not among ``draws``.
        frames: T, where each particle has several images.
    """

    truth: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    centre: np.ndarray | None
    frames: int | None

    def numbers(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names, truth `(n, Q)` and draws `(S, n, Q)` of all that is inferred, as plain numbers.

        Poses become angles (rad) from ``centre``: one in the plane, three about the axes of the
        image in space. Their order may hang on the image, as it does not tell truth from draws.
        """
        sites = [self.draws, {name: value[None] for name, value in self.truth.items()}]
        if self.centre is not None:
            sites = [part | {"pose": angles(part["pose"], self.centre)} for part in sites]
        (names, draws), (_, truth) = (
            columns(part, frames=self.frames is not None) for part in sites
        )
        return names, truth[0], draws


def dream(pair: Pair, batch: Any) -> tuple[Any, dict[str, Tensor]]:
    """Images drawn from the model in the contexts of a batch, in its place, and their latents."""
    model = poutine.uncondition(pair.model)
    with pyro.get_param_store().scope(), torch.no_grad():
        nodes = poutine.trace(model).get_trace(batch).nodes
    latent = {name: nodes[name]["value"] for name in SITES if name in nodes}
    return batch._replace(images=nodes["x"]["value"]), latent


def answers(pair: Pair, batch: Any, draws: int) -> dict[str, Tensor]:
    """Draws `(S, B, ...)` of the guide."""
    with pyro.get_param_store().scope(), torch.no_grad(), pyro.plate("draw", draws, dim=-2):
        nodes = poutine.trace(pair.guide).get_trace(batch).nodes
    return {name: nodes[name]["value"] for name in SITES if name in nodes}


def dreamt(
    fit: Fit | Pair, particles: Particles, *, n: int, draws: int, seed: int
) -> dict[int, Dreamt]:
    """For each seed, ``n`` particles from the model and what its guide says of them.

    Contexts (known poses, CTFs, temperatures, times) are those of ``particles``, as often as need
    be; their images are not looked at.
    """
    if n < FEWEST_DREAMS or draws < 9:
        raise InputError(f"n, draws: expected at least {FEWEST_DREAMS} and 9, got {n} and {draws}")
    return {
        s: _dreamt(pair, particles, n, draws, seed)
        for s, pair in models(fit, particles, 1).items()
    }


def _dreamt(pair: Pair, particles: Particles, n: int, draws: int, seed: int) -> Dreamt:
    rows = np.resize(evenly(len(particles), n), n)
    each = pair.volume.numbers_an_image * (particles.frames or 1)
    encoded = (draws + CENTRES) * (each if pair.pose.latent else pair.box**2)
    size = max(1, MOST_NUMBERS // max(each, encoded))
    parts: list[tuple[dict[str, np.ndarray], ...]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, n, size):
            batch = pair.moved(particles.batch(rows[start : start + size]))
            drawn, truth = dream(pair, batch)
            _, other = dream(pair, batch)
            several = answers(pair, drawn, draws + CENTRES)
            kept = {name: value[CENTRES:] for name, value in several.items()}
            near = several["pose"][:CENTRES].double() if "pose" in several else None
            centre = {} if near is None else {"pose": unit_vectors.mean(near)}
            parts.append(tuple(map(_numbers, (truth, other, kept, centre))))
    truth, other, kept, centre = (
        {
            name: np.concatenate([part[k][name] for part in parts], axis=int(k == 2))
            for name in first
        }
        for k, first in enumerate(parts[0])
    )
    return Dreamt(truth, other, kept, centre.get("pose"), particles.frames)


def _numbers(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().cpu().numpy() for name, value in tensors.items()}


def angles(pose: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Angles `(..., 1 or 3)` in rad of poses `(..., 2 or 4)` as seen from ``centre``."""
    return unit_vectors.angles(torch.as_tensor(centre), torch.as_tensor(pose)).numpy()
