"""What the diagnostics share: trained pairs, and their ELBO particle by particle."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import PER_IMAGE, Particles
from pyrocryo.peaks import pair_of
from pyrocryo.svi import Fit
from pyrocryo.svi.loss import elbo

__all__ = ["batches", "drawn", "models", "one_frame", "recast"]

AT_ONCE = 256  # particles
MOST_NUMBERS = 20_000_000  # held at once while decoding (80 MB)

Kind = TypeVar("Kind", bound=Pair)


def models(fit: Fit | Pair, particles: Particles, fewest: int) -> dict[int, Pair]:
    """Trained pairs by seed, checked against the particles; one pair alone is seed 0.

    Raises:
        InputError: If they do not go together, or there are fewer than ``fewest`` particles.
    """
    seeds = fit.seeds if isinstance(fit, Fit) else (0,)
    pairs = {seed: pair_of(fit, n) for n, seed in enumerate(seeds)}
    if len(particles) < fewest:
        raise InputError(f"particles: expected at least {fewest}, got {len(particles)}")
    for pair in pairs.values():
        pair.check(particles)
    return pairs


def batches(pair: Pair, particles: Particles) -> Iterator[Any]:
    """All particles where the pair is, some at a time."""
    each = pair.volume.numbers_an_image * (particles.frames or 1)
    for rows in particles.chunks(max(1, min(AT_ONCE, MOST_NUMBERS // each))):
        yield pair.moved(particles.batch(rows))


def drawn(pair: Pair, batch: Any, draws: int, seed: int, *, rigid: bool = False) -> Tensor:
    """The ELBO of each particle, `(B,)` in nats, a mean over ``draws``.

    The same ``seed`` gives the same noise, so that two guides can be compared.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return torch.stack([elbo(pair, batch, rigid=rigid) for _ in range(draws)]).mean(0)


def recast(pair: Pair, kind: type[Kind]) -> Kind:
    """A copy of a pair as one of ``kind``, which changes what its guide says and keeps its parts.

    Pairs are made from parts; a copy made from another pair has no use for a constructor.
    """
    new = copy.deepcopy(pair)
    # a pair that is a kind of its own already (pc.refined) stays that as well
    new.__class__ = kind if type(pair) is Pair else type(kind.__name__, (kind, type(pair)), {})
    return new


def one_frame(batch: Any) -> Any:
    """A batch of molecules as a batch of images: the first frame of each."""
    if batch.images.dim() == 3:
        return batch
    held = [name for name in ("images", *PER_IMAGE) if name in batch._fields]
    return batch._replace(**{name: getattr(batch, name)[:, 0] for name in held})
