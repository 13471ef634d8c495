"""What it costs that a stack is not in memory."""

from __future__ import annotations

import resource
import tempfile
import threading
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

__all__ = ["Noise", "rows", "sparse_stack"]

BOX = 128
BATCH = 128
IDLE = 5e-3  # s: a step on a device that leaves the processor alone
COUNTS = (10**4, 10**5, 10**6)  # images of sparse stacks
NZ = 8  # byte of an MRC header where the number of sections is
AT_HAND = 8  # batches: together more than the processor's cache holds


def rows(device: str, quick: bool) -> Iterator[dict]:
    """Times the steps of a fit with a streamed and a resident stack, and scattered reading.

    A step is a sleep of 5 ms, as while a GPU works, or a small network trained on ``device``.
    The other side has a few batches at hand all along: no feed can be faster. A resident stack
    on the CPU is scaled and gathered between the steps. The file has just been written, so all
    of this is with a warm page cache. A map whose pages are kept is faster than reading, as long
    as memory holds them; mapped afresh for each batch, it keeps as little as reading does.

    Last, random batches out of 10^5 and 10^6 images (6.5 and 65 GB) against as many out of 10^4,
    from files that are all hole: what indices, permutations and reads cost, and no disk. The name
    says by how much the process grew meanwhile.

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
        yield from _large(Path(folder), device, steps, repeats)


def sparse_stack(path: Path, n: int, box: int) -> Stacks:
    """A stack of n images of zeros that takes no place on the disk, where holes are to be had."""
    write_stack(path, np.zeros((1, box, box), dtype=np.float32), 1.0)
    with open(path, "r+b") as file:
        file.seek(NZ)
        file.write(np.array(n, dtype="<i4").tobytes())
        file.truncate(read_header(path).offset + 4 * n * box**2)
    return Stacks.of([path], np.zeros(n, dtype=np.int32), np.arange(n), source=path.name)


def _large(folder: Path, device: str, steps: int, repeats: int) -> Iterator[dict]:
    """Random batches of stacks of 10^4, 10^5 and 10^6 images."""
    loops = {}
    for n in COUNTS:
        particles = Particles(sparse_stack(folder / f"{n}.mrcs", n, BOX), offset=0.1, scale=1.1)
        order = np.random.default_rng(0).permutation(len(particles))

        def fed(particles: Particles = particles, order: np.ndarray = order) -> float:
            def rows(i: int) -> np.ndarray:
                return order[np.arange(i * BATCH, (i + 1) * BATCH) % len(order)]

            there = torch.device(device)
            with Feed(particles, there, rows, range(steps), resident=False) as feed:
                return _timed(feed, range(steps))

        loops[n] = fed
    first = loops.pop(COUNTS[0])
    first()
    for n, fed in loops.items():
        fed()
        before = _resident()
        with _Highest() as highest:
            found = _compared("", fed, first, repeats)
        grown = max(0, highest.bytes - before) / 1e6
        rate = BATCH / found["ours"]
        name = f"{BATCH} of {n:.0e} sparse against 1e4: {rate:.0f} images/s, +{grown:.0f} MB"
        yield {**found, "name": name}


class _Highest:
    """The most memory the process holds while this is entered, looked at every 10 ms."""

    def __enter__(self) -> _Highest:
        self.bytes, self._left = _resident(), threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._looking.join()

    def _look(self) -> None:
        while not self._left.wait(0.01):
            self.bytes = max(self.bytes, _resident())


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell (not Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


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
