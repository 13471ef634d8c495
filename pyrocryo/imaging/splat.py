"""Gaussians to pixels: each is a product of one factor in x and one in y.

Dense, a factor has a value at every pixel of the axis, and an image is one matrix product.
Windowed, it has values at the :func:`window` pixels around the atom only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging import kernels

__all__ = ["one_each", "pixel_centres", "plain_windows", "splat", "splat_map", "window"]

REACH = 5.0  # standard deviations from an atom to the edge of its window
PAYS = 2.5  # windows of W pixels pay while W**2 <= PAYS * box
MOST = 2**21  # numbers made at once on a CPU: more fall out of its caches
FLOOR = 8.8  # standard deviations from where on a factor stays at 2e-17


def pixel_centres(box: int, pixel_size: float = 1.0, **like: object) -> Tensor:
    """Coordinates (Å) of the pixel centres along one axis, `(box,)`; 0 at pixel ``box // 2``."""
    return (torch.arange(box, **like) - box // 2) * pixel_size


def window(widest: float, *, box: int, pixel_size: float) -> int | None:
    r"""Edge `W`, in pixels, of the windows that hold Gaussians to 5 standard deviations.

    .. math:: W = \lceil 10 s_{max} / h \rceil, \qquad \text{or none unless } W^2 \le 2.5 D

    for `D` pixels of size `h`: beyond that the dense form is faster, whose cost does not grow with
    the width. Measured on one CPU core, forward and backward: the two take the same time at
    1.7 `D` (boxes up to 64 pixels) to 3.5 `D` (5000 atoms, 256 pixels). Where they cross on a GPU
    was not measured: on an H100 windows of 32 pixels in a box of 128 are still 3 times faster.

    Args:
        widest: Largest standard deviation, Å.
        box: Pixels along an edge of the image.
        pixel_size: Å per pixel.

    Returns:
        `W`, or None if the dense form is the one to take.
    """
    if not (widest > 0 and math.isfinite(widest)):
        raise InputError(f"widest: expected a positive number of Å, got {widest}")
    edge = math.ceil(2 * REACH * widest / pixel_size)
    return edge if edge**2 <= PAYS * box else None


def one_each(name: str, value: Any, count: int, *, least: float | None = None) -> Tensor:
    """Numbers `(count,)` of atoms, such as widths, from one or one for each.

    They must be positive or, where ``least`` is 0, not negative.

    Args:
        name: What to call them in a message.
        value: One number, or `(count,)`.
        count: Atoms.
        least: The smallest that is allowed; by default they must be above 0.

    Raises:
        InputError: If they are not.
    """
    value = torch.as_tensor(value, dtype=torch.get_default_dtype())
    good = (value > 0 if least is None else value >= least) & value.isfinite()
    if value.shape not in ((), (count,)) or not good.all():
        raise InputError(
            f"{name}: expected a {'positive number' if least is None else 'number from 0 on'}, or "
            f"one for each of {count} atoms, got "
            + (f"{value.item():g}" if value.dim() == 0 else f"shape {tuple(value.shape)}")
        )
    return value.expand(count).clone()


def splat(
    centres: Tensor,
    width: Tensor,
    weight: Tensor,
    *,
    box: int,
    pixel_size: float,
    widest: float | None = None,
) -> Tensor:
    r"""Projects isotropic Gaussians along the beam and samples the result at the pixel centres.

    .. math:: x(r) = \sum_a w_a e^{-(r_x - c_{a,x})^2 / 2 s_a^2} e^{-(r_y - c_{a,y})^2 / 2 s_a^2}

    The sum over `a` is one batched matrix product of the two factors, exact to rounding in the
    dtype of ``centres``. `w` is the height of the projected Gaussian in the image.

    Told that no atom is wider than ``widest``, and where it pays (:func:`window`), each Gaussian
    is left out from 5 standard deviations of the widest on: at most :math:`e^{-25/2} = 4 \cdot
    10^{-6}` of its height. The promise is not checked, for that the host would have to wait for
    the device; a wider atom is cut at the edge of its window. On a GPU the windows are added up
    in no fixed order, so that sums may differ in the last digits from run to run.

    Args:
        centres: `(..., A, 2)` or `(..., A, 3)` positions in the image frame, Å; a third
            coordinate lies along the beam and does not matter.
        width: `(A,)` standard deviations `s`, Å.
        weight: `(A,)` heights `w`.
        box: Pixels along an edge.
        pixel_size: Å per pixel.
        widest: A promise that no `s` exceeds this many Å; without it, dense.

    Returns:
        `(..., box, box)` images, indexed `[y, x]`.
    """
    edge = None if widest is None else window(widest, box=box, pixel_size=pixel_size)
    images = centres.shape[:-2]
    share = max(1, MOST // max(1, len(width) * (edge**2 if edge else 2 * box)))
    if centres.device.type == "cpu" and math.prod(images) > share:
        told = {"box": box, "pixel_size": pixel_size, "widest": widest}
        parts = centres.flatten(end_dim=-3).split(share)
        every = torch.cat([splat(part, width, weight, **told) for part in parts])
        return every.unflatten(0, images)
    flat = centres[..., :2]
    if edge:
        form = kernels.windows if kernels.usable(flat, edge) else plain_windows
        return form(flat / pixel_size, width / pixel_size, weight, box, edge)
    r = pixel_centres(box, pixel_size, dtype=flat.dtype, device=flat.device)
    along_x, along_y = _Gaussians.apply(r, flat, width).unbind(dim=-2)
    return (along_y * weight[:, None]).transpose(-1, -2) @ along_x


def splat_map(
    centres: Tensor, width: Tensor, weight: Tensor, *, side: int, voxel_size: float
) -> Tensor:
    r"""The 3-D map whose projection, a sum over voxels along the beam, is :func:`splat`'s image.

    .. math:: v(r) = \sum_a w_a \frac{h}{\sqrt{2 \pi} s_a} e^{-|r - c_a|^2 / 2 s_a^2}

    with `h` the voxel size.

    Args:
        centres: `(..., A, 3)` positions, Å.
        width: `(A,)` standard deviations `s`, Å.
        weight: `(A,)` heights `w` of the projections.
        side: Voxels along an edge.
        voxel_size: Å per voxel.

    Returns:
        `(..., side, side, side)` maps, indexed `[z, y, x]`.
    """
    r = pixel_centres(side, voxel_size, dtype=centres.dtype, device=centres.device)
    along_x, along_y, along_z = _Gaussians.apply(r, centres, width).unbind(dim=-2)
    height = weight * voxel_size / (math.sqrt(2 * math.pi) * width)
    plane = (along_y.unsqueeze(-1) * along_x.unsqueeze(-2)).flatten(-2)  # (..., A, side * side)
    maps = (along_z * height[:, None]).transpose(-1, -2) @ plane
    return maps.unflatten(-1, (side, side))


def plain_windows(centres: Tensor, width: Tensor, weight: Tensor, box: int, edge: int) -> Tensor:
    """:func:`splat` in pixels, from windows of ``edge`` pixels around each atom.

    Windows are added into an image with a margin of ``edge`` pixels, which takes those that lie
    partly or wholly outside the box. A position that is no number goes to the middle: it shows.
    """
    side, middle = box + 2 * edge, box // 2
    first = torch.ceil(centres.detach() - edge / 2).nan_to_num(nan=0.0)
    first = first.clamp(-middle - edge, box - middle)
    step = torch.arange(edge, device=centres.device)
    along_x, along_y = _Gaussians.apply(step.to(centres.dtype), centres - first, width).unbind(-2)
    values = (along_y * weight[:, None]).unsqueeze(-1) * along_x.unsqueeze(-2)
    x, y = (first.long() + (middle + edge)).unbind(dim=-1)
    pixel = (side * y + x).unsqueeze(-1) + (side * step[:, None] + step).flatten()
    image = values.new_zeros(*centres.shape[:-2], side * side)
    image = image.scatter_add(-1, pixel.flatten(-2), values.flatten(-3))
    return image.unflatten(-1, (side, side))[..., edge : edge + box, edge : edge + box]


class _Gaussians(torch.autograd.Function):
    r"""Each Gaussian along each axis, :math:`g = e^{-v^2 / 2}` with :math:`v = (r - c) / s`.

    ``apply(r, c, s)`` of positions `r` `(n,)`, centres `c` `(..., A, axes)` and widths `s`
    `(A,)`: `(..., A, axes, n)`. Written by hand to keep one array of this size for the backward
    pass, where autograd would keep three.

    From ``FLOOR`` standard deviations on, `g` stays at 2e-17, below the precision of a double
    beside the peak. Products of two tails would fall below 1e-38 otherwise, where single precision
    gets subnormal and processors compute many times slower.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(r: Tensor, centres: Tensor, width: Tensor) -> Tensor:
        v = _deviations(r, centres, width)
        return v.mul_(v).mul_(-0.5).exp_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        r, centres, width, g = ctx.saved_tensors
        v = _deviations(r, centres, width)
        by_centre = grad * g * v
        by_width = (by_centre * v).sum(dim=(-2, -1)).sum_to_size(width.shape)
        return None, by_centre.sum(dim=-1) / width[:, None], by_width / width

    @staticmethod
    def jvp(ctx: Any, _: None, centres_dot: Tensor, width_dot: Tensor) -> Tensor:
        r, centres, width, g = ctx.saved_tensors
        v = _deviations(r, centres, width)
        dot = 0.0 if centres_dot is None else centres_dot.unsqueeze(-1)
        if width_dot is not None:
            dot = dot + v * width_dot[:, None, None]
        return g * v * dot / width[:, None, None]


def _deviations(r: Tensor, centres: Tensor, width: Tensor) -> Tensor:
    """Distances along each axis in standard deviations, `(..., A, axes, n)`, but not far ones."""
    return ((r - centres.unsqueeze(-1)) / width[:, None, None]).clamp(-FLOOR, FLOOR)
