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

    Both are called in turns. On a CPU in single precision the plain sum also pays for subnormal
    numbers, of which the far tails of Gaussians are full.

    Args:
        device: Where to run.
        quick: Fewer images and repeats.

    Yields:
        ``name``; ``ours`` and ``other``, median seconds; ``ratio``, how many times slower the
        other is; ``spread``, the least and the largest ratio of two successive calls.
    """
    images, repeats = (2, 3) if quick else (8, 7)
    for count in (500, 5000):
        for box in (64, 128, 256):
            spent = _in_turns(count, box, images, repeats, device)
            for name, ours, other in zip(PASSES, *spent, strict=True):
                yield row(f"{count} atoms, {box} pixels, {name}", ours, other)


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
    for render in renders:
        _seconds(render, inputs, slope)
    turns = [[_seconds(render, inputs, slope) for render in renders] for _ in range(repeats)]
    ours, other = zip(*turns, strict=True)
    return [list(a) for a in zip(*ours, strict=True)], [list(a) for a in zip(*other, strict=True)]


def _seconds(render: Render, inputs: list[Tensor], slope: Tensor) -> tuple[float, float]:
    """What the images take, and the images with the gradients of all inputs."""
    started = _now(slope)
    images = render(*inputs)
    forward = _now(slope) - started
    torch.autograd.grad(images, inputs, slope)
    return forward, _now(slope) - started


def _now(like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
