"""What ``fit`` makes sure of before it computes anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.distributions import Distribution, kl_divergence

from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi.settings import Settings
from pyrocryo.svi.stack import trained

__all__ = ["Plan", "prepare"]


@dataclass(frozen=True)
class Plan:
    """A fit that can be started.

    Attributes:
        train: The particles to learn from.
        settings: With the batch no larger than the data.
        seeds: Which seeds.
        exact_kl: Whether the KL is known in closed form.
        key: What a checkpoint must agree with to be resumed.
    """

    train: Particles
    settings: Settings
    seeds: tuple[int, ...]
    exact_kl: bool
    key: dict[str, Any]


def prepare(
    pair: Pair,
    particles: Particles,
    seeds: int | Sequence[int],
    options: Mapping[str, Any],
    *,
    device: str | torch.device = "cpu",
    devices: int = 1,
    together: int | None = None,
) -> Plan:
    """Checks that pair, particles and settings go together; reads every pixel once.

    Args:
        pair: What is to be trained.
        particles: On what.
        seeds: How many, or which.
        options: Settings by name, as :func:`pyrocryo.fit` takes them.
        device: Where.
        devices: On how many of them.
        together: Most seeds at once; by default what fits, and what pays.

    Raises:
        InputError: If they do not.
    """
    settings = Settings.of(options)
    named = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not named or len(set(named)) != len(named):
        raise InputError(f"seeds: expected at least one, each different, got {seeds}")
    seeds = named
    if not trained(pair):
        raise InputError("pair: no parameter is left to train, all of them are frozen")
    for name, parameter in trained(pair).items():
        if parameter.dtype != pair.noise_steps.dtype or not parameter.is_floating_point():
            raise InputError(
                f"{name}: a parameter of {parameter.dtype}, where the pair is of "
                f"{pair.noise_steps.dtype}; .to() gives a module one kind of number (complex "
                "ones as pairs of real ones, torch.view_as_real)"
            )
    pair.check(particles)
    for term in settings.terms:
        term.check(pair)
    particles.statistics()  # finds pixels that are no numbers
    train = particles.train
    settings = replace(settings, batch_size=min(settings.batch_size, len(train)))
    if together is not None and together < 1:
        raise InputError(f"together: expected at least 1, got {together}")
    if devices < 1:
        raise InputError(f"devices: expected at least 1, got {devices}")
    if devices > 1 and torch.device(device).index is not None:
        raise InputError(f"device: {device} is one device, but devices is {devices}")
    if settings.batch_size % devices:
        raise InputError(
            f"batch_size: {settings.batch_size} particles cannot be shared evenly among "
            f"{devices} devices"
        )
    exact, transitions = _exact_kl(pair, train)
    if settings.gamma != 1.0 and not (exact and transitions):
        raise InputError(
            f"gamma: {settings.gamma:g} weighs transition terms, but the prior {pair.prior_name} "
            "has none in closed form"
        )
    key = {
        "settings": _without_penalties(asdict(settings)),
        "seeds": list(seeds),
        "data": particles.digest(),
        "model": _fingerprint(pair),
    }
    return Plan(train, settings, seeds, exact, key)


def _without_penalties(told: dict[str, Any]) -> dict[str, Any]:
    """Settings as before there were penalties, where there are none: old checkpoints go on."""
    return told if told["penalties"] else {n: v for n, v in told.items() if n != "penalties"}


def _fingerprint(pair: Pair) -> str:
    """A hash of the model's architecture and of everything about it that is not trained."""
    parts = [repr(pair), pair.prior_name]
    parts += [f"{name} {value.tolist()}" for name, value in pair.named_buffers()]
    parts += [f"{name} {p.requires_grad}" for name, p in pair.named_parameters()]
    if isinstance(pair.prior, Distribution):
        parts.append(_told(pair.prior))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _told(distribution: Distribution) -> str:
    """The numbers of a distribution, in words."""
    words = [type(distribution).__name__, str(tuple(distribution.event_shape))]
    for name, value in sorted(vars(distribution).items()):
        if isinstance(value, Distribution):
            words.append(f"{name} {_told(value)}")
        elif isinstance(value, torch.Tensor):
            words.append(f"{name} {value.tolist()}")
        elif isinstance(value, (int, float)):
            words.append(f"{name} {value}")
    return " ".join(words)


def _exact_kl(pair: Pair, particles: Particles) -> tuple[bool, bool]:
    """Whether the KL of guide from prior is known in closed form, and has transition terms."""
    batch = pair.moved(particles.batch(np.arange(min(2, len(particles)))))
    with torch.no_grad():
        prior = pair.prior_of(batch)
        transitions = hasattr(prior, "with_transition_weight")
        try:
            kl_divergence(pair.posterior_of(batch), prior)
        except NotImplementedError:  # how torch says that none is registered
            return False, transitions
    return True, transitions
