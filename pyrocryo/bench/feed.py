"""What it costs that a stack is not in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pyrocryo.bench.timing import row
from pyrocryo.io.mrc import Stacks, read_header, write_stack
from pyrocryo.particles import Particles
from pyrocryo.svi.feed import Feed

__all__ = ["Noise", "rows"]

BOX = 128
BATCH = 128
IDLE = 5e-3  # s: a step on a device that leaves the processor alone
AT_HAND = 8  # batches: together more than the processor's cache holds


def rows(device: str, quick: bool) -> Iterator[dict]:
    """Times the steps of a fit with a streamed and a resident stack, and scattered reading.

    A step is a sleep of 5 ms, as while a GPU works, or a small network trained on ``device``.
    The other side has a few batches at hand all along: no feed can be faster. A resident stack
    on the CPU is scaled and gathered between the steps. The file has just been written, so all
    of this is with a warm page cache. A map whose pages are kept is faster than reading, as long
    as memory holds them; mapped afresh for each batch, it keeps as little as reading does.

    Args:
        device: Where the batches go.
        quick: A stack of 64 MB and not of 1 GB, and fewer steps.

    Yields:
        ``name``, ``ours`` and ``other`` (seconds a step, or a batch; medians), ``ratio`` (other
        over ours: the share of the rate that is kept, or how many times faster ours is) and
        ``spread`` (the lowest and highest of the single ratios).
    """
    n, steps, repeats = (1024, 40, 3) if quick else (16384, 200, 7)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.mrcs"
        write_stack(path, Noise(n, BOX), 1.0)
        images = Stacks([(path, i) for i in range(n)])
        particles = Particles(images, offset=0.1, scale=1.1).train
        orders = [_order(len(particles), seed) for seed in range(steps)]
        step_of = {"5 ms asleep": lambda batch: time.sleep(IDLE), "a network": _network(device)}
        for kind, step in step_of.items():
            for resident in (False, True):
                name = f"{'resident' if resident else 'streamed'}, step of {kind}"
                loops = _loops(particles, torch.device(device), orders, step, resident)
                yield _compared(name, *loops, repeats)
        kept = _mapped(path)
        for told, mapped in (("afresh", lambda: _mapped(path)), ("once, all kept", lambda: kept)):
            yield _compared(
                f"Stacks against np.memmap mapped {told}; {BATCH} scattered images",
                lambda: _timed(lambda order: images[order], orders),
                lambda mapped=mapped: _timed(lambda order: mapped()[order], orders),
                repeats,
            )


class Noise:
    """Images of noise `(n, box, box)`, made when asked for."""

    def __init__(self, n: int, box: int) -> None:
        self.shape = (n, box, box)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(int(index[0]))
        return rng.standard_normal((len(index), *self.shape[1:]), dtype=np.float32)


def _order(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)[:BATCH]


def _mapped(path: Path) -> np.memmap:
    h = read_header(path)
    return np.memmap(h.path, h.dtype, "r", h.offset, h.shape)


def _network(device: str) -> Callable[[object], None]:
    """A step that computes, and holds the interpreter between its many small operations."""
    layers = [nn.Flatten(), nn.Linear(BOX * BOX, 64)]
    for _ in range(20):
        layers += [nn.Linear(64, 64), nn.Tanh()]
    network = nn.Sequential(*layers).to(device)
    optimiser = torch.optim.Adam(network.parameters())

    def step(batch: object) -> None:
        optimiser.zero_grad()
        loss = network(batch.images).square().mean()
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def _loops(
    particles: Particles,
    device: torch.device,
    orders: list[np.ndarray],
    step: Callable[[object], None],
    resident: bool,
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Seconds a step, with a feed and with a few batches over and over."""
    steps = range(len(orders))

    def new() -> Feed:
        return Feed(particles, device, orders.__getitem__, steps, resident=resident)

    kept = new() if resident else None

    def fed() -> float:
        with kept or new() as feed:
            _timed(lambda i: step(feed(i)), steps[:AT_HAND])
            return _timed(lambda i: step(feed(i)), steps[AT_HAND:])

    few = [particles.batch(order) for order in orders[:AT_HAND]]
    few = [batch._make(field.to(device) for field in batch) for batch in few]
    return fed, lambda: _timed(lambda i: step(few[i % AT_HAND]), steps)


def _timed(call: Callable[[object], object], given: range | list) -> float:
    """Seconds for one of the calls, all of them timed at once."""
    started = time.perf_counter()
    for value in given:
        call(value)
    return (time.perf_counter() - started) / len(given)


def _compared(
    name: str, ours: Callable[[], float], other: Callable[[], float], repeats: int
) -> dict:
    """Runs both sides in turn, after a first time that does not count."""
    samples = [(ours(), other()) for _ in range(repeats + 1)][1:]
    return row(name, *zip(*samples, strict=True))
