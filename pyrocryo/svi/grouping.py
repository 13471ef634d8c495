"""How many seeds train at once: what fits, and what pays."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.svi.graph import Graph
from pyrocryo.svi.memory import free_memory
from pyrocryo.svi.objective import Objective
from pyrocryo.svi.settings import Settings
from pyrocryo.svi.stack import trained

__all__ = ["groups", "needed", "told", "too_large"]

SHARE = 0.8  # of the free memory
COPIES = 5  # of the parameters: they, two moments of Adam, gradients, and these joined
CACHE = 8_000_000  # bytes a seed beyond which company on a CPU gains less than a third (measured)
TOGETHER = 80_000_000  # bytes of all seeds at once, on a CPU
FULL = re.compile("not enough memory|can't allocate memory")


def needed(pair: Pair, peak: int, batch: int) -> int:
    """Bytes that one seed needs: its parameters, what a step holds, and its batch."""
    parameters = sum(p.numel() * p.element_size() for p in trained(pair).values())
    return COPIES * parameters + peak + 2 * batch


def groups(
    seeds: list[int], each: int, device: torch.device, most: int | None, free: int
) -> list[list[int]]:
    """Parts the seeds into groups that are trained at once.

    Args:
        seeds: The seeds.
        each: Bytes that one needs.
        device: On a GPU as many as fit; on a CPU only seeds whose step stays in the cache gain
            anything from company.
        most: Largest group allowed; None for no limit.
        free: Bytes that are free there.
    """
    fit = max(1, int(SHARE * free) // max(1, each))
    if device.type == "cpu" and most is None:
        fit = min(fit, TOGETHER // each) if each <= CACHE else 1
    size = max(1, min(fit, most or len(seeds), len(seeds)))
    number = -(-len(seeds) // size)
    # as even as can be: each size is traced once
    ends = [round(n * len(seeds) / number) for n in range(number + 1)]
    return [seeds[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]


@contextlib.contextmanager
def told(
    pair: Pair, settings: Settings, example: Any, at_once: Callable[[], int]
) -> Iterator[None]:
    """Turns an allocation that failed into an answer.

    Args:
        pair: Model and guide.
        settings: For its batch.
        example: A batch.
        at_once: How many seeds are trained at once just then.

    Raises:
        InputError: With the number of seeds or the batch that would fit.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not FULL.search(str(error)):
            raise
        seeds, device = at_once(), example.images.device
        if seeds > 1:
            raise InputError(
                f"together: the memory of {device} is too small for {seeds} seeds at once; "
                f"{seeds // 2} should fit"
            ) from None
        raise InputError(too_large(pair, settings, example)) from None


def too_large(pair: Pair, settings: Settings, example: Any, peak: int | None = None) -> str:
    """What to say of a batch that does not fit, whose step holds ``peak`` bytes (if known)."""
    device = example.images.device
    size, there = settings.batch_size, SHARE * free_memory(device)
    said = f"batch_size: {size} particles do not fit into the memory of {device}"
    few = max(1, len(example.images) // 8)
    least = _need(pair, settings, example, few)
    # memory grows with the batch, and never slower than before: the chord is an upper bound
    more = 2 * few if peak is None else len(example.images)
    most = _need(pair, settings, example, more, peak)
    if least is None or most is None or most <= least:
        return f"{said} ({there / 1e9:.2g} GB to be had)"
    each = (most - least) / (more - few)
    needed_now = least + each * (len(example.images) - few)
    fitting = few + int((there - least) // each)
    told = f"{said} ({needed_now / 1e9:.2g} GB needed, {there / 1e9:.2g} to be had)"
    return f"{told}; {fitting} would" if 0 < fitting < size else told


def _need(
    pair: Pair, settings: Settings, example: Any, n: int, peak: int | None = None
) -> int | None:
    """Bytes of a step on the first ``n`` particles; None if that cannot be told."""
    batch = example._make(field[:n] if field.dim() else field for field in example)
    if peak is None:
        objective = Objective(pair, batch, gamma=settings.gamma)
        parameters = [p.detach() for p in trained(pair).values()]
        try:
            peak = Graph(objective, [*parameters, *batch]).peak
        except Exception:  # not to be traced, or too large even so
            return None
    return needed(pair, peak, sum(field.nbytes for field in batch))
