"""Images of voxel maps, by interpolation on rotated grids.

Index conventions: maps are `[y, x]` or `[z, y, x]`; the molecule's origin is voxel ``side // 2``
on every axis, for odd and even sides alike; coordinates are in pixels of the image, and a map of
``side`` voxels spans the box, so a voxel is ``box / side`` pixels wide.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from pyrocryo.imaging.splat import pixel_centres
from pyrocryo.precision import applied, exact

__all__ = ["polar", "resample", "resample_projection", "rings"]


@exact
def resample(images: Tensor, rotation: Tensor, shift: Tensor, *, box: int) -> Tensor:
    r"""Turns and moves 2-D maps: :math:`y(r) = m(A^\top (r - t))`, bilinear, zero outside.

    With `A` and `t` replaced by :math:`A^\top` and :math:`-A^\top t` it undoes itself: this is how
    an encoder sees a particle of known pose upright.

    Args:
        images: `(B, side, side)` maps `m`.
        rotation: `(B, 3, 3)`; the upper left 2 x 2 block is used, so it must turn about the beam.
        shift: `(B, 2)` displacement `t` in pixels.
        box: Pixels along an edge of the result.

    Returns:
        `(B, box, box)`.
    """
    r = pixel_centres(box, dtype=images.dtype, device=images.device)
    back = rotation[:, :2, :2].transpose(-1, -2)
    return _sample(images, back, shift, [r, r])


@exact
def resample_projection(maps: Tensor, rotation: Tensor, shift: Tensor, *, box: int) -> Tensor:
    r"""Projects 3-D maps: :math:`y(r) = \int v(A^\top (r - t, s)) ds`, trilinear, zero outside.

    The integral is the sum over ``side`` samples along the beam, one voxel apart, in units of
    voxels.

    Args:
        maps: `(B, side, side, side)` densities `v`, indexed `[z, y, x]`.
        rotation: `(B, 3, 3)` rotations `A`.
        shift: `(B, 2)` displacements `t` in pixels.
        box: Pixels along an edge of the result.

    Returns:
        `(B, box, box)`.
    """
    like = {"dtype": maps.dtype, "device": maps.device}
    r = pixel_centres(box, **like)
    beam = pixel_centres(maps.shape[-1], box / maps.shape[-1], **like)
    return _sample(maps, rotation.transpose(-1, -2), shift, [r, r, beam]).sum(dim=1)


@exact
def polar(images: Tensor, shift: Tensor, *, radii: int, angles: int) -> Tensor:
    r"""Rings around the molecule: :math:`p(\rho, \theta) = x(t + \rho (\cos\theta, \sin\theta))`.

    A molecule turned counter-clockwise by α gives :math:`p(\rho, \theta - \alpha)`. Bilinear.

    Args:
        images: `(B, D, D)`.
        shift: `(B, 2)` displacement `t` of the molecule in pixels.
        radii: Rings; they lie evenly between the centre and half the box.
        angles: Samples on each ring, starting on the x axis.

    Returns:
        `(B, radii, angles)`.
    """
    like = {"dtype": images.dtype, "device": images.device}
    box = images.shape[-1]
    rho = torch.arange(1, radii + 1, **like) * (box / 2 / (radii + 1))
    theta = torch.arange(angles, **like) * (2 * math.pi / angles)
    ring = torch.stack([rho[:, None] * theta.cos(), rho[:, None] * theta.sin()], dim=-1)
    position = ring + shift[:, None, None, :]
    grid = (position + box // 2) * (2 / (box - 1)) - 1
    return grid_sample(images.unsqueeze(1), grid, align_corners=True).squeeze(1)


def rings(images: Tensor, shift: Tensor, *, by: int, radii: int, angles: int) -> Tensor:
    """As :func:`polar`, of images whose pixels are first averaged ``by`` times ``by``.

    Args:
        images: `(B, D, D)`.
        shift: `(B, 2)` displacement of the molecule, in pixels before averaging.
        by: Pixels along an edge of those averaged; 1 leaves all as it is.
        radii: Rings.
        angles: Places on each ring.
    """
    if by > 1:
        box = images.shape[-1]
        images = avg_pool2d(images.unsqueeze(1), by).squeeze(1)
        # the origin is the centre of pixel box // 2, wherever that falls between the wide ones
        shift = (shift + box // 2 + 0.5) / by - 0.5 - images.shape[-1] // 2
    return polar(images, shift, radii=radii, angles=angles)


def _sample(maps: Tensor, back: Tensor, shift: Tensor, axes: list[Tensor]) -> Tensor:
    """Interpolates ``maps`` at ``back (r - shift)`` for all positions `r` spanned by ``axes``.

    ``axes`` are x, y[, z] in pixels. Each coordinate is a sum of one term an axis, added up plane
    by plane: a third of the time of the same matrix product point by point.
    """
    side, dim = maps.shape[-1], len(axes)
    step = 2.0 / (side - 1)  # grid_sample's [-1, 1] runs from the first to the last voxel
    back = back * (step * side / len(axes[0]))
    origin = -applied(back[..., :2], shift) + ((side // 2) * step - 1.0)
    unit = origin.view(-1, dim, *[1] * dim)
    for n, axis in enumerate(axes):
        shape = [1] * dim
        shape[dim - 1 - n] = len(axis)
        unit = unit + (back[:, :, n, None] * axis).view(-1, dim, *shape)
    grid = unit.movedim(1, -1)
    return grid_sample(maps.unsqueeze(1), grid, padding_mode="zeros", align_corners=True).squeeze(
        1
    )
