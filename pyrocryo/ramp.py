"""Weights of further terms of the loss, which set in late and rise slowly."""

from __future__ import annotations

from pyrocryo.errors import InputError

__all__ = ["Ramped"]


class Ramped:
    """A term with ``weight``, of which nothing counts before step ``start``, all ``ramp`` later.

    Attributes:
        weight: Of the term, beside the negative ELBO.
        start: Steps (after the rigid ones) without it.
        ramp: Steps over which the weight then rises linearly.
    """

    weight: float
    start: int
    ramp: int

    def weight_at(self, step: int) -> float:
        """Weight at step 0, 1, ... after the rigid ones."""
        done = step + 1 - self.start
        if done <= 0:
            return 0.0
        return self.weight * min(1.0, done / self.ramp) if self.ramp else self.weight

    def _check_ramp(self) -> None:
        for name in ("weight", "start", "ramp"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: expected 0 or more, got {getattr(self, name)}")
