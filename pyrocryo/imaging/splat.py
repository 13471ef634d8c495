"""Gaussians to pixels, exactly: each is a product of one factor in x and one in y."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pixel_centres", "splat"]


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
    r = pixel_centres(box, pixel_size, dtype=centres.dtype, device=centres.device)
    offset = (r - centres[..., :2].unsqueeze(-1)) / width[:, None, None]  # (..., A, 2, D)
    factor = torch.exp(-0.5 * offset.square())
    along_x, along_y = factor.unbind(dim=-2)
    return (along_y * weight[:, None]).transpose(-1, -2) @ along_x
