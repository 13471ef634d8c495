"""The batches of a fit: from tensors on its device, or read ahead of it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from typing import Any, Self

import numpy as np
import torch

from pyrocryo.particles import Particles
from pyrocryo.svi.memory import free_memory

__all__ = ["Feed"]

AHEAD = 3  # batches read, or being read, before they are asked for
SHARE = 0.5  # of the free memory of a device, that particles may take there

Rows = Callable[[int], np.ndarray]


class Feed:
    """Batches of a fit, on its device, a few steps ahead of it.

    Particles that fit are put on the device once. Else one thread reads ahead, and memory holds
    a few batches however large the stack is::

        with Feed(train, device, rows, range(1000)) as feed:
            for step in range(1000):
                batch = feed(step)

    A batch is what ``particles.batch(rows(step))`` gives, moved to the device.

    Args:
        particles: Where the batches come from.
        device: Where they go.
        rows: Positions in ``particles`` for each step: `(B,)`, or `(S, B)` for S models that are
            trained at once, whose images are `(S, B, [T,] D, D)` and whose fields `(S, B, ...)`.
            Called in the thread that reads ahead, where there is one.
        steps: The steps that will be asked for, in this order.
        asked: Particles that will be asked for in all, each as often as it is; by default, more
            than there are.
        resident: Whether to put all particles on the device; by default, if they take no more
            than half of its free memory, and no fewer than there are will be asked for.

    Attributes:
        resident: What was chosen.
    """

    def __init__(
        self,
        particles: Particles,
        device: torch.device,
        rows: Rows,
        steps: range,
        *,
        asked: float = math.inf,
        resident: bool | None = None,
    ) -> None:
        if resident is None:
            resident = _there(particles, device) or (
                asked >= len(particles) and _fits(particles, device)
            )
        self.resident = resident
        self._device = device
        self._rows = rows
        self._steps = iter(steps)
        self._batch = particles.batch
        if self.resident and not _there(particles, device):
            self._batch = _Whole(particles, device).batch
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: deque[tuple[int, Future]] = deque()

    def again(self, rows: Rows, steps: range) -> Feed:
        """The same particles, in another order."""
        new = copy(self)
        new._rows, new._steps = rows, iter(steps)
        new._ahead = deque()
        return new

    def __enter__(self) -> Self:
        if not self.resident:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="feed")
            for _ in range(AHEAD):
                self._ask()
        return self

    def __exit__(self, *error: object) -> None:
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)
            self._ahead.clear()

    def __call__(self, step: int) -> Any:
        """The batch of ``step``.

        Raises:
            InputError: If a file of the stack cannot be read any more, or has changed.
        """
        if self.resident:
            return self._batch(self._rows(step))
        if not self._ahead or self._ahead[0][0] != step:
            raise ValueError(f"step {step} is out of turn: enter the feed, go through its steps")
        batch = self._ahead.popleft()[1].result()
        self._ask()
        return batch._make(field.to(self._device, non_blocking=True) for field in batch)

    def _ask(self) -> None:
        """Has the next step read, if there is one."""
        for step in self._steps:
            self._ahead.append((step, self._reader.submit(self._read, step)))
            break

    def _read(self, step: int) -> Any:
        batch = self._batch(self._rows(step))
        if self._device.type != "cuda":
            return batch
        return batch._make(field.pin_memory() for field in batch)


class _Whole:
    """All particles as one batch on a device, scaled as batches are.

    Args:
        particles: What to put there, a chunk at a time.
        device: Where.
    """

    def __init__(self, particles: Particles, device: torch.device) -> None:
        n = len(particles)
        one = particles.batch(np.arange(1))
        self._fields = one._make(
            torch.empty((n, *field.shape[1:]), dtype=field.dtype, device=device)
            if field.ndim
            else field.to(device)
            for field in one
        )
        for rows in particles.chunks():
            for whole, part in zip(self._fields, particles.batch(rows), strict=True):
                if whole.ndim:
                    whole[rows[0] : rows[-1] + 1] = part

    def batch(self, rows: np.ndarray) -> Any:
        """The particles at positions ``rows``, as :meth:`Particles.batch` gives them."""
        index = torch.tensor(rows).to(self._fields.images.device)
        flat = index.flatten()
        return self._fields._make(
            whole.index_select(0, flat).unflatten(0, index.shape) if whole.ndim else whole
            for whole in self._fields
        )


def _there(particles: Particles, device: torch.device) -> bool:
    """Whether the images are on the device as they are."""
    return device.type == "cpu" and particles.in_memory


def _fits(particles: Particles, device: torch.device) -> bool:
    one = particles.batch(np.arange(1))
    needed = len(particles) * sum(field.nbytes for field in one)
    return needed <= SHARE * free_memory(device)
