"""Transitions per unit time: frames at the times they were taken, rates that can be learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.priors.transition import Transition

__all__ = ["Kinetics"]

ROUNDED = 0.01  # share of an interval that may be lost
SPEED = 5.0  # ln of a rate moves this much faster than the networks' weights


class Kinetics(nn.Module):
    r"""From the times of a molecule's frames to the law of its conformations.

    A step over an interval Δt is that of ``family`` with the scale
    :math:`s(\Delta t) = s \, \Delta t^h`, where `h` = ½ lets the variance of a step grow with
    time, as it does in diffusion (a Laplace rate falls as :math:`\Delta t^{-h}`). Laws of time of
    their own: for :class:`~pyrocryo.priors.GaussianTransition` the value is the relaxation rate
    1 / τ, exact at any interval (`h` has no part in it); for
    :class:`~pyrocryo.priors.JumpTransition` jumps a second, of which one counts in an interval,
    on small steps that grow by `h`; for :class:`~pyrocryo.priors.SwitchingTransition` the rate of
    forgetting, with both sizes growing by `h`.

    Where the particles have no times but the rate should be learned, frames may be 1 s apart:
    ``particles.having(time=np.tile(np.arange(T), (N, 1)))``. A learned scale or rate is identified
    by the spread of `z`, which N(0, I) sets on the first frame.

    Args:
        family: One of the transition priors with a value for each step, such as
            :class:`~pyrocryo.priors.StudentTransition`.
        dim: Size K of `z`.
        value: The family's scale or rate over 1 s, a number or `(K,)`.
        learned: Learn the logarithm of each component's value, from the one given.
        exponent: `h`.
        **options: What else the family takes, such as ``df``, ``small``, ``plugin``; not learned.

    Raises:
        InputError: If ``value`` is not positive, or ``options`` are not the family's.
    """

    def __init__(
        self,
        family: type[Transition],
        dim: int,
        value: float | Tensor,
        *,
        learned: bool = False,
        exponent: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__()
        if not (isinstance(family, type) and issubclass(family, Transition)):
            raise InputError(f"family: expected a class of transition priors, got {family!r}")
        if not 0 <= exponent < math.inf:
            raise InputError(f"exponent: expected a number from 0 on, got {exponent}")
        if taken := {"frames", "validate_args"} & set(options):
            raise InputError(f"{taken.pop()}: is not an option; frames are as many as times")
        try:
            law = family(dim, value, **options)  # says what is wrong with them
        except TypeError as error:
            raise InputError(f"{family.__name__}: {error}") from None
        numbers = {name: v for name, v in vars(law).items() if isinstance(v, Tensor)}
        if any(number.dim() > 1 for number in numbers.values()):
            raise InputError(f"{family.__name__}: expected numbers or {dim} of them, got more")
        self.family = family
        self.dim = dim
        self.learned = learned
        self.exponent = float(exponent)
        # the first is the value; they live here, so that they move with the pair
        self.register_buffer("given", next(iter(numbers.values())).clone())
        self._others = list(numbers)[1:]
        for name in self._others:
            self.register_buffer(f"given_{name}", numbers[name].clone())
        self.options = {name: v for name, v in options.items() if name not in numbers}
        self.log_speed = nn.Parameter(torch.zeros(dim), requires_grad=learned)
        self.forward(torch.arange(2.0))  # a family may have no law of time

    def reset_parameters(self) -> None:
        """Back to the value given."""
        nn.init.zeros_(self.log_speed)

    @property
    def value(self) -> Tensor:
        """Scale or rate of each component over 1 s, `(K,)`, now."""
        return self.given * (SPEED * self.log_speed).exp()

    def check(self, time: np.ndarray) -> None:
        """Checks that time goes on from frame to frame.

        Raises:
            InputError: If ``time`` is not `(N, T)` or does not increase along its rows.
        """
        time = np.asarray(time)
        if time.ndim != 2 or time.shape[1] < 2:
            raise InputError(
                f"time: expected (N, T) for at least 2 frames of each molecule, got {time.shape}"
            )
        # as the model will see it
        gaps, seen = (np.diff(t, axis=1) for t in (time, time.astype(np.float32)))
        bad = ~(seen > 0).all(axis=1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"time: must increase from frame to frame, but that of particle {row} is "
                f"{', '.join(f'{t:g}' for t in time[row])} s ({bad.sum()} of {len(time)} such; "
                "kept in single precision)"
            )
        if (np.abs(seen - gaps) > ROUNDED * gaps).any():
            raise InputError(
                f"time: up to {time.max():g} s, single precision does not keep intervals of "
                f"{gaps.min():g} s: subtract the time of the first frame"
            )

    def extra_repr(self) -> str:
        """Family, law of time and options."""
        told = [f"{self.family.__name__}, learned={self.learned}, exponent={self.exponent:g}"]
        return ", ".join(told + [f"{name}={value}" for name, value in self.options.items()])

    def forward(self, time: Tensor) -> Transition:
        """The law of `z` at each ``time`` `(..., T)` (s): batch `(...,)`, event `(T, K)`."""
        others = {name: getattr(self, f"given_{name}") for name in self._others}
        interval = time.to(self.given).diff(dim=-1)
        return self.family.over(
            self.dim, self.value, interval, self.exponent, **self.options, **others
        )
