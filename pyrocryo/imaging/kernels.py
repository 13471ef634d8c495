r"""Windows of Gaussians on a GPU, added into images by one kernel, and their gradients by another.

What :func:`pyrocryo.imaging.splat` does in windows, but with nothing written in between: the plain
form writes and reads :math:`W^2` values, and their addresses, for each atom of each image.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch for CPUs comes without
    triton = None

__all__ = ["usable", "windows"]

WIDEST = 64  # pixels along the edge of a window that a block of threads holds
HELD = 1024  # values that it holds at a time
DEVICES = ("cuda", "cpu")  # the latter for Triton's interpreter


def usable(centres: Tensor, edge: int) -> bool:
    """Whether there are kernels for windows of ``edge`` pixels where ``centres`` are."""
    known = centres.dtype in (torch.float32, torch.float64)
    return triton is not None and centres.is_cuda and known and edge <= WIDEST


def windows(centres: Tensor, width: Tensor, weight: Tensor, box: int, edge: int) -> Tensor:
    """Images of Gaussians, each cut at the edge of its window.

    Sums are added up in no fixed order, so the last digits may differ from run to run.

    Args:
        centres: `(..., A, 2)` in pixels from the middle, pixel ``box // 2``.
        width: `(A,)` standard deviations, pixels.
        weight: `(A,)` heights.
        box: Pixels along an edge of the images.
        edge: Pixels along an edge of the windows.

    Returns:
        `(..., box, box)`, indexed `[y, x]`.
    """
    return _Windows.apply(centres, width, weight, box, edge)


class _Windows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(centres: Tensor, width: Tensor, weight: Tensor, box: int, edge: int) -> Tensor:
        flat = centres.reshape(1, -1, *centres.shape[-2:])
        image = torch.ops.pyrocryo.add_windows(flat, width[None], weight[None], box, edge)
        return image.reshape(*centres.shape[:-2], box, box)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.box, ctx.edge = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centres, width, weight = ctx.saved_tensors
        flat = centres.reshape(1, -1, *centres.shape[-2:])
        grad = grad.reshape(1, -1, ctx.box, ctx.box)
        told = flat, width[None], weight[None]
        by = torch.ops.pyrocryo.slope_of_windows(grad, *told, ctx.edge)[0]
        by_width, by_weight = by[..., 2:].sum(dim=0).unbind(dim=-1)
        return by[..., :2].reshape(centres.shape), by_width, by_weight, None, None

    @staticmethod
    def jvp(ctx: Any, *dots: Any) -> Tensor:
        from pyrocryo.imaging.splat import plain_windows

        given = [
            torch.zeros_like(value) if dot is None else dot
            for value, dot in zip(ctx.saved_tensors, dots, strict=False)
        ]
        call = functools.partial(plain_windows, box=ctx.box, edge=ctx.edge)
        return torch.func.jvp(call, tuple(ctx.saved_tensors), tuple(given))[1]


# not as custom_op, whose own autograd functions cannot be stacked over seeds
torch.library.define(
    "pyrocryo::add_windows",
    "(Tensor centres, Tensor width, Tensor weight, int box, int edge) -> Tensor",
)
torch.library.define(
    "pyrocryo::slope_of_windows",
    "(Tensor grad, Tensor centres, Tensor width, Tensor weight, int edge) -> Tensor",
)


@torch.library.impl("pyrocryo::add_windows", DEVICES)
def _add_windows(centres: Tensor, width: Tensor, weight: Tensor, box: int, edge: int) -> Tensor:
    """Images `(S, B, box, box)` of `(S, B, A, 2)` centres, with `(S, A)` widths and weights."""
    image = centres.new_zeros(*centres.shape[:2], box, box)
    if centres.numel():
        tensors = [value.contiguous() for value in (centres, width, weight)]
        grid, sizes = _launched(centres, edge)
        _add[grid](*tensors, image, *centres.shape[1:3], box, **sizes)
    return image


@torch.library.impl("pyrocryo::slope_of_windows", DEVICES)
def _slope_of_windows(
    grad: Tensor, centres: Tensor, width: Tensor, weight: Tensor, edge: int
) -> Tensor:
    """Gradients `(S, B, A, 4)` by both coordinates, width and weight, of those of the images."""
    slope = centres.new_zeros(*centres.shape[:3], 4)
    if centres.numel():
        tensors = [value.contiguous() for value in (grad, centres, width, weight)]
        grid, sizes = _launched(centres, edge)
        _slope[grid](*tensors, slope, *centres.shape[1:3], grad.shape[-1], **sizes)
    return slope


@torch.library.register_fake("pyrocryo::add_windows")
def _(centres: Tensor, width: Tensor, weight: Tensor, box: int, edge: int) -> Tensor:
    return centres.new_empty(*centres.shape[:2], box, box)


@torch.library.register_fake("pyrocryo::slope_of_windows")
def _(grad: Tensor, centres: Tensor, width: Tensor, weight: Tensor, edge: int) -> Tensor:
    return centres.new_empty(*centres.shape[:3], 4)


@torch.library.register_vmap("pyrocryo::add_windows")
def _(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    *tensors, box, edge = args
    tensors = [_over_seeds(info, value, dim) for value, dim in zip(tensors, dims, strict=False)]
    image = torch.ops.pyrocryo.add_windows(*_joined(tensors), box, edge)
    return image.unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap("pyrocryo::slope_of_windows")
def _(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    *tensors, edge = args
    tensors = [_over_seeds(info, value, dim) for value, dim in zip(tensors, dims, strict=False)]
    slope = torch.ops.pyrocryo.slope_of_windows(*_joined(tensors), edge)
    return slope.unflatten(0, (info.batch_size, -1)), 0


def _over_seeds(info: Any, value: Tensor, dim: int | None) -> Tensor:
    """With the axis of seeds in front, whether the tensor had one or not."""
    if dim is None:
        return value.expand(info.batch_size, *value.shape)
    return value.movedim(dim, 0)


def _joined(tensors: list[Tensor]) -> list[Tensor]:
    return [value.flatten(0, 1) for value in tensors]


def _launched(centres: Tensor, edge: int) -> tuple[tuple[int], dict[str, int]]:
    """How many blocks of threads, and what each of them holds."""
    stacks, images, atoms = centres.shape[:3]
    side = triton.next_power_of_2(edge)
    block = max(1, HELD // side**2)
    sizes = {"EDGE": edge, "SIDE": side, "BLOCK": block}
    return (stacks * images * triton.cdiv(atoms, block),), sizes


if triton is not None:

    @triton.jit
    def _placed(
        centres,
        width,
        weight,
        images,
        atoms,
        box,
        EDGE: tl.constexpr,
        SIDE: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """The atoms of this block of threads: where their windows are, and Gaussians there."""
        parts = tl.cdiv(atoms, BLOCK)
        place = tl.program_id(0)
        image = (place // parts).to(tl.int64)
        atom = (place % parts) * BLOCK + tl.arange(0, BLOCK)
        real = atom < atoms
        own = (image // images) * atoms + atom
        row = image * atoms + atom
        x = tl.load(centres + 2 * row, mask=real, other=0.0)
        y = tl.load(centres + 2 * row + 1, mask=real, other=0.0)
        s = tl.load(width + own, mask=real, other=1.0)
        w = tl.load(weight + own, mask=real, other=0.0)
        middle = box // 2
        # a position that is no number goes to the middle: it shows
        left = tl.where(x == x, tl.ceil(x - EDGE / 2), 0.0)
        top = tl.where(y == y, tl.ceil(y - EDGE / 2), 0.0)
        left = tl.minimum(tl.maximum(left, -middle - EDGE), box - middle)
        top = tl.minimum(tl.maximum(top, -middle - EDGE), box - middle)
        step = tl.arange(0, SIDE)[None, :]
        u = (left[:, None] + step - x[:, None]) / s[:, None]
        v = (top[:, None] + step - y[:, None]) / s[:, None]
        column = left.to(tl.int32)[:, None] + middle + step
        line = top.to(tl.int32)[:, None] + middle + step
        inside = real[:, None] & (step < EDGE)
        across = inside & (column >= 0) & (column < box)
        down = inside & (line >= 0) & (line < box)
        seen = down[:, :, None] & across[:, None, :]
        pixel = image * box * box + line[:, :, None] * box + column[:, None, :]
        gaussian = tl.exp(-0.5 * v * v)[:, :, None] * tl.exp(-0.5 * u * u)[:, None, :]
        return row, real, u, v, s, w, gaussian, pixel, seen

    @triton.jit
    def _add(
        centres,
        width,
        weight,
        image,
        images,
        atoms,
        box,
        EDGE: tl.constexpr,
        SIDE: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row, real, u, v, s, w, gaussian, pixel, seen = _placed(
            centres, width, weight, images, atoms, box, EDGE, SIDE, BLOCK
        )
        tl.atomic_add(image + pixel, w[:, None, None] * gaussian, mask=seen, sem="relaxed")

    @triton.jit
    def _slope(
        grad,
        centres,
        width,
        weight,
        slope,
        images,
        atoms,
        box,
        EDGE: tl.constexpr,
        SIDE: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row, real, u, v, s, w, gaussian, pixel, seen = _placed(
            centres, width, weight, images, atoms, box, EDGE, SIDE, BLOCK
        )
        felt = tl.load(grad + pixel, mask=seen, other=0.0) * gaussian
        by_line, by_column = tl.sum(felt, axis=2), tl.sum(felt, axis=1)
        scale = w / s
        along_x = tl.sum(by_column * u, axis=1)
        along_y = tl.sum(by_line * v, axis=1)
        wider = tl.sum(by_column * u * u, axis=1) + tl.sum(by_line * v * v, axis=1)
        tl.store(slope + 4 * row, scale * along_x, mask=real)
        tl.store(slope + 4 * row + 1, scale * along_y, mask=real)
        tl.store(slope + 4 * row + 2, scale * wider, mask=real)
        tl.store(slope + 4 * row + 3, tl.sum(by_line, axis=1), mask=real)
