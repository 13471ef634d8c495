"""How a pair is trained: numbers and schedules."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, Protocol, get_args, get_type_hints

from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.interventions import Interventions
from pyrocryo.pair import Pair

__all__ = ["Settings", "Term"]


class Term(Protocol):
    """A further term of the loss: :class:`pyrocryo.Interventions`, :mod:`pyrocryo.penalties`.

    A frozen dataclass of numbers and words, as checkpoints go by them.
    """

    def check(self, pair: Pair) -> None:
        """Raises InputError where a pair has nothing for it to look at."""

    def weight_at(self, step: int) -> float:
        """Weight at step 0, 1, ... after the rigid ones."""

    def __call__(self, pair: Pair, batch: Any) -> Tensor:
        """Its value for a batch, `()`, in nats a particle, without its weight."""


@dataclass(frozen=True)
class Settings:
    """How a pair is trained.

    Attributes:
        steps: Optimiser steps.
        batch_size: Particles (or molecules, when they have frames) a step.
        lr: Peak learning rate of Adam: 10 % linear warm-up, then a cosine down to 2 %.
        beta: Weight of the KL; 1 is the ELBO.
        gamma: Further weight of a prior's transition terms; 1 is the ELBO.
        kl_warmup: Steps over which β rises linearly from 0; helps where pose is unknown, hurts
            Boltzmann priors.
        rigid_steps: Steps at first in which every `z` is decoded as 0 and its KL left out: poses
            are found on a rigid molecule before it may move. The warm-up comes after.
        clip: Largest norm of the gradient (of the loss per particle).
        order: Seeds see the particles in an order of their "own" (a seed is then the same alone
            and in company), or in a "shared" one, which reads each batch once for all of them.
        interventions: Algorithm 1 as a further term of the loss; not in rigid steps.
        penalties: Further terms of the loss (:mod:`pyrocryo.penalties`); not in rigid steps.
        precision: "float32"; "tf32", matrix products of GPUs with 10 bits of mantissa; or "bf16",
            networks in bfloat16 (autocast). Poses, `z`, likelihood and KL stay in float32.
    """

    steps: int = 1500
    batch_size: int = 64
    lr: float = 4e-3
    beta: float = 1.0
    gamma: float = 1.0
    kl_warmup: int = 0
    rigid_steps: int = 0
    clip: float = 50.0
    order: Literal["own", "shared"] = "own"
    interventions: Interventions | None = None
    penalties: tuple[Term, ...] = ()
    precision: Literal["float32", "tf32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "kl_warmup", "rigid_steps"):
            if not isinstance(getattr(self, name), numbers.Integral):
                raise InputError(f"{name}: expected a whole number, got {getattr(self, name)!r}")
        for name in ("steps", "batch_size", "lr", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("beta", "gamma", "kl_warmup", "rigid_steps"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("order", "precision"):
            known = get_args(get_type_hints(Settings)[name])
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        one = is_dataclass(self.penalties)
        object.__setattr__(self, "penalties", (self.penalties,) if one else tuple(self.penalties))
        for term in self.penalties:
            known = all(hasattr(term, name) for name in ("check", "weight_at"))
            if isinstance(term, type) or not (is_dataclass(term) and callable(term) and known):
                raise InputError(
                    f"penalties: expected terms such as pc.penalties.Bonds(), got {term!r}"
                )
        if self.rigid_steps >= self.steps or self.rigid_steps + self.kl_warmup > self.steps:
            raise InputError(
                f"steps: {self.steps} leave no room for rigid_steps {self.rigid_steps} and "
                f"kl_warmup {self.kl_warmup}"
            )

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        warmup = max(1, self.steps // 10)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def beta_at(self, step: int) -> float:
        """Weight of the KL at step 0, 1, ..."""
        done = step + 1 - self.rigid_steps
        if done <= 0 or not self.kl_warmup:  # rigid steps leave out the KL of z alone
            return self.beta
        return self.beta * min(1.0, done / self.kl_warmup)

    @property
    def terms(self) -> tuple[Term, ...]:
        """All further terms of the loss, the interventions first."""
        first = () if self.interventions is None else (self.interventions,)
        return (*first, *self.penalties)

    def weights_at(self, step: int) -> list[float]:
        """Weights of the further terms at step 0, 1, ..."""
        return [term.weight_at(step - self.rigid_steps) for term in self.terms]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Settings from keywords; InputError for one that there is not."""
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise InputError(f"unknown setting {', '.join(unknown)}; fit knows {known}")
        return cls(**options)
