"""Projected Gaussians: :func:`pyrocryo.imaging.splat` beside the dense sum as plainly written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyrocryo.bench.timing import row
from pyrocryo.imaging import splat
from pyrocryo.imaging.splat import pixel_centres

__all__ = ["plain", "rows"]

WIDTH = 1.5  # pixels
ON_A_GPU = 64  # images at once
TIMES = 20  # a CUDA graph is replayed for one sample
PASSES = ("forward", "forward and backward")
Render = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(centres: Tensor, width: Tensor, weight: Tensor, *, box: int) -> Tensor:
    """The dense sum in pixels, every step left to autograd: :func:`splat` of version 0.1.

    Args:
        centres: `(..., A, 2)` positions.
        width: `(A,)` standard deviations.
        weight: `(A,)` heights.
        box: Pixels along an edge.

    Returns:
        `(..., box, box)`.
    """
    r = pixel_centres(box, dtype=centres.dtype, device=centres.device)
    v = (r - centres.unsqueeze(-1)) / width[:, None, None]
    along_x, along_y = torch.exp(-0.5 * v.square()).unbind(dim=-2)
    return (along_y * weight[:, None]).transpose(-1, -2) @ along_x


def rows(device: str = "cpu", quick: bool = False) -> Iterator[dict]:
    """Times images of 500 and 5000 atoms, 1.5 pixels wide, in boxes of 64, 128 and 256 pixels.

    Both are called in turns, on a GPU as CUDA graphs: 64 images, no time of Python's. On a CPU in
    single precision the plain sum also pays for subnormal numbers, of which the far tails of
    Gaussians are full.

    Args:
        device: Where to run.
        quick: Fewer images and repeats.

    Yields:
        ``name``; ``ours`` and ``other``, median seconds; ``ratio``, how many times slower the
        other is; ``spread``, the least and the largest ratio of two successive calls. On a GPU
        also with the least that a dense sum in single precision needs as ``other``
        (:func:`floor`).
    """
    on_gpu = torch.device(device).type == "cuda"
    images, repeats = (ON_A_GPU, 7) if on_gpu else (2, 3) if quick else (8, 7)
    rates = _rates(device) if on_gpu else None
    for count in (500, 5000):
        for box in (64, 128, 256):
            spent = _in_turns(count, box, images, repeats, device)
            for name, ours, other in zip(PASSES, *spent, strict=True):
                yield row(f"{count} atoms, {box} pixels, {name}", ours, other)
            if rates is not None:
                products, bytes_ = floor(count, box, images, *rates)
                told = f"FLOPs {1e3 * products:.3g} ms, bytes {1e3 * bytes_:.3g} ms"
                name = f"{count} atoms, {box} pixels: floor of a dense sum, {told}"
                yield row(name, spent[0][1], [max(products, bytes_)] * repeats)


def floor(count: int, box: int, images: int, rate: float, bandwidth: float) -> tuple[float, float]:
    r"""Least seconds of a dense sum with its gradients: of its products, and of its bytes.

    :math:`6 A D^2 B` operations at the rate of matrix products in single precision; the factors,
    :math:`2 A D B` numbers, written once and read twice, their gradients written and read once.
    Windows do less, so they may be faster.
    """
    return 6 * count * box**2 * images / rate, 5 * 4 * 2 * count * box * images / bandwidth


def _rates(device: str) -> tuple[float, float]:
    """Operations a second of a large matrix product, bytes a second of a large copy."""
    a = torch.randn(8192, 8192, device=device)
    b = torch.empty_like(a)
    product = _replayed(lambda: torch.matmul(a, a, out=b), 2)
    copy = _replayed(lambda: b.copy_(a), 20)
    return 2 * 8192**3 / product(), 2 * a.nbytes / copy()


def _in_turns(
    count: int, box: int, images: int, repeats: int, device: str
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of each pass at each repeat, of ours and the other."""
    draw = torch.Generator().manual_seed(0)
    centres = 0.7 * box * (torch.rand(images, count, 2, generator=draw) - 0.5)
    inputs = [centres, torch.full((count,), WIDTH), torch.rand(count, generator=draw)]
    inputs = [a.to(device).requires_grad_() for a in inputs]
    slope = torch.randn(images, box, box, generator=draw).to(device)
    renders: list[Render] = [
        lambda *a: splat(*a, box=box, pixel_size=1.0, widest=WIDTH),
        lambda *a: plain(*a, box=box),
    ]
    calls = [_passes(render, inputs, slope) for render in renders]
    for passes in calls:
        for one in passes:
            one()
    turns = [[[one() for one in passes] for passes in calls] for _ in range(repeats)]
    ours, other = zip(*turns, strict=True)
    return [list(a) for a in zip(*ours, strict=True)], [list(a) for a in zip(*other, strict=True)]


def _passes(render: Render, inputs: list[Tensor], slope: Tensor) -> list[Callable[[], float]]:
    """What tells the seconds of the images, and of images with the gradients of all inputs."""

    def forward() -> None:
        with torch.no_grad():
            render(*inputs)

    def both() -> None:
        torch.autograd.grad(render(*inputs), inputs, slope)

    if slope.is_cuda:
        return [_replayed(forward), _replayed(both)]
    return [lambda: _timed(forward), lambda: _timed(both)]


def _timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _replayed(call: Callable[[], object], times: int = TIMES) -> Callable[[], float]:
    """Makes a CUDA graph of a call; returns what tells the seconds of one replay."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        call()

    def spent() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / times

    return spent
