"""Gaussians to pixels, exactly: each is a product of one factor in x and one in y."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["pixel_centres", "splat", "splat_map"]


def pixel_centres(box: int, pixel_size: float = 1.0, **like: object) -> Tensor:
    """Coordinates (Å) of the pixel centres along one axis, `(box,)`; 0 at pixel ``box // 2``."""
    return (torch.arange(box, **like) - box // 2) * pixel_size


def splat(
    centres: Tensor, width: Tensor, weight: Tensor, *, box: int, pixel_size: float
) -> Tensor:
    r"""Projects isotropic Gaussians along the beam and samples the result at the pixel centres.

    .. math:: x(r) = \sum_a w_a e^{-(r_x - c_{a,x})^2 / 2 s_a^2} e^{-(r_y - c_{a,y})^2 / 2 s_a^2}

    The sum over `a` is one batched matrix product of the two factors. `w` is the height of the
    projected Gaussian in the image.

    Args:
        centres: `(..., A, 2)` or `(..., A, 3)` positions in the image frame, Å; a third
            coordinate lies along the beam and does not matter.
        width: `(A,)` standard deviations `s`, Å.
        weight: `(A,)` heights `w`.
        box: Pixels along an edge.
        pixel_size: Å per pixel.

    Returns:
        `(..., box, box)` images, indexed `[y, x]`.
    """
    along_x, along_y = _factors(centres[..., :2], width, box, pixel_size).unbind(dim=-2)
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
    along_x, along_y, along_z = _factors(centres, width, side, voxel_size).unbind(dim=-2)
    height = weight * voxel_size / (math.sqrt(2 * math.pi) * width)
    plane = (along_y.unsqueeze(-1) * along_x.unsqueeze(-2)).flatten(-2)  # (..., A, side * side)
    maps = (along_z * height[:, None]).transpose(-1, -2) @ plane
    return maps.unflatten(-1, (side, side))


def _factors(centres: Tensor, width: Tensor, box: int, pixel_size: float) -> Tensor:
    """Each Gaussian along each axis, `(..., A, axes, box)`."""
    r = pixel_centres(box, pixel_size, dtype=centres.dtype, device=centres.device)
    square = ((r - centres.unsqueeze(-1)) / width[:, None, None]).square()
    # far tails end level, where no product of two of them is a denormal number: those are slow
    lowest = -0.8 * math.log(torch.finfo(square.dtype).tiny)
    return torch.exp(-0.5 * square.clamp_max(lowest))
