r"""A focus mask: what may move with `z`, and what may not.

With a soft mask `m` from 0 to 1 on the voxels,

.. math:: v_m(z) = v(0) + m \, (v(z) - v(0))

Outside the mask there is the map of `z` = 0, learned but the same for all; inside, whatever `v`
can do. Volumes of Gaussians keep the places of those outside instead. Images are those of the
whole molecule, and the likelihood is of all their pixels.

The other way to focus, a likelihood of the pixels inside the mask's projection alone, does not do
what is wanted of it: along the beam those pixels show all that lies before and behind the mask,
and what moves there would still be in `z`. It also throws away pixels that the consensus outside
is learned from, and which pixels are data would depend on pose. Here all images stay data of one
generative model, whose prior over densities says that nothing moves outside: an ELBO that can be
compared with that of the same model without a mask. Motion outside is left in the residuals. It is
no noise, but for `z` it acts as some: a change inside the mask that looked like it in one view
would not in others. A learned σ takes it up, so widths of `z` come out somewhat too large, never
too small for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from pyrocryo.errors import InputError

__all__ = ["blended", "focus_mask", "mask_at"]

SLACK = 1e-3  # by which a mask written in float32 may leave 0 to 1


def focus_mask(mask: Any, *, side: int, dim: int) -> Tensor:
    """A mask on the voxels of a map, `(side,) * dim` float32 in [0, 1].

    Args:
        mask: `(M,) * dim`, a cube (or square) as wide as the particles' box, of any number of
            voxels: trilinear interpolation between them, the centre at voxel ``M // 2``.
        side: Voxels along an edge of the map.
        dim: 2 or 3.

    Raises:
        InputError: If it is of another shape, its values are not in [0, 1], or it is empty or
            full: then there is nothing to focus on.
    """
    found = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask, np.float64)
    if found.ndim != dim or len(set(found.shape)) != 1 or found.shape[0] < 2:
        kind = "a cube (M, M, M)" if dim == 3 else "a square (M, M)"
        raise InputError(f"focus: expected {kind} of voxels, got shape {found.shape}")
    if not (np.isfinite(found).all() and found.min() >= -SLACK and found.max() <= 1 + SLACK):
        raise InputError(
            f"focus: expected a mask of values from 0 to 1, got {found.min():.3g} to "
            f"{found.max():.3g}"
        )
    wide = found.shape[0]
    if wide != side:
        at = (np.arange(side) - side // 2) * (wide / side) + wide // 2
        grid = np.meshgrid(*[at] * dim, indexing="ij")
        found = map_coordinates(found, grid, order=1, mode="nearest")
    found = found.clip(0, 1)
    if found.max() < 0.5:
        raise InputError("focus: the mask is empty; nothing could move")
    if found.min() > 0.5:
        raise InputError("focus: the mask covers the whole box; leave it out")
    return torch.as_tensor(found, dtype=torch.float32)


def mask_at(mask: Tensor, points: Tensor, *, box: int) -> Tensor:
    """The mask at points `(A, dim)` (x, y[, z]; pixels from the centre of the box), `(A,)`."""
    side = len(mask)
    at = points.detach().cpu().double().numpy().T[::-1] * (side / box) + side // 2
    found = map_coordinates(mask.numpy().astype(np.float64), at, order=1, mode="nearest")
    return torch.as_tensor(found).to(points)


def blended(moved: Tensor, still: Tensor, mask: Tensor) -> Tensor:
    """``moved`` where the mask is 1, ``still`` where it is 0."""
    return still + mask * (moved - still)
