r"""How images change with the conformation, and how far from orthogonal, even or sparse that is.

Contrasts of :math:`J = \Sigma^{-1/2} \, \partial g(z, \phi) / \partial z \; S`: change of an image
in standard deviations of the noise, for a standard deviation of each latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyrocryo.pair import Pair

__all__ = [
    "STEP",
    "gram",
    "ima_contrast",
    "isometry_contrast",
    "rows",
    "slopes",
    "spread",
    "whitened",
]

STEP = 0.02  # standard deviations of z, on either side
CLIPPED = 1e-12  # smallest determinant


def slopes(f: Callable[[Tensor], Tensor], z: Tensor, scale: Tensor) -> Tensor:
    r"""Central differences :math:`s_k \, \partial f / \partial z_k`, stacked in front: `(K, ...)`.

    Good to about 1e-4 for maps that bend on the scale of a standard deviation, for any volume
    (PyTorch's sampling of grids has no forward derivative).

    Args:
        f: Of conformations `(..., K)`, each of which moves its own part of the result only.
        z: `(..., K)`.
        scale: `(K,)` the unit of each latent.
    """
    units = torch.eye(z.shape[-1]).to(z) * (STEP * scale)
    return torch.stack([(f(z + step) - f(z - step)) / (2 * STEP) for step in units])


def whitened(pair: Pair, images: Tensor) -> Tensor:
    r""":math:`\Sigma^{-1/2} x` of images `(..., D, D)`, in standard deviations of the noise.

    A contrast of each particle's own has no part in it, and the noise has no gradient.
    """
    images = images / pair.noise.detach()
    root = getattr(pair.likelihood, "root", None)
    if root is None:
        return images
    spectrum = torch.fft.rfft2(images) / root.detach()
    return torch.fft.irfft2(spectrum, s=images.shape[-2:])


def rows(slope: Tensor) -> Tensor:
    """`(K, images, pixels)` of slopes `(K, B, [T,] D, D)`."""
    return slope.flatten(-2).flatten(1, -2)


def gram(slope: Tensor) -> Tensor:
    r""":math:`J^\top J` `(n, K, K)` of slopes `(K, n, P)`."""
    return torch.einsum("kbp,lbp->bkl", slope, slope)


def ima_contrast(gram: Tensor) -> Tensor:
    r"""The local IMA contrast `(...,)` in nats of Gram matrices :math:`J^\top J` `(..., K, K)`.

    .. math:: \sum_i \ln |J_i| - \tfrac12 \ln \det J^\top J \ge 0

    (Gresele et al. 2021, Eq. 11), which no scale of a column changes. Turning two orthogonal
    columns by 45° whose squared lengths have the ratio κ gives
    :math:`\tfrac12 \ln [(1 + \kappa)^2 / 4 \kappa]`: .2231 at κ = 4. The determinant of the
    normalised matrix is taken to be at least 1e-12, so the contrast is at most 13.8.
    """
    size = gram.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
    left = gram / (size.unsqueeze(-1) * size.unsqueeze(-2))
    log_det = torch.zeros_like(left[..., 0, 0])
    for _ in range(gram.shape[-1]):  # elimination: few columns, and no solver that has to wait
        pivot = left[..., 0, 0].clamp_min(CLIPPED)
        log_det = log_det + pivot.log()
        first = left[..., 1:, 0]
        across = first.unsqueeze(-1) * first.unsqueeze(-2) / pivot[..., None, None]
        left = left[..., 1:, 1:] - across
    return -0.5 * log_det.clamp(math.log(CLIPPED), 0.0)


def isometry_contrast(gram: Tensor) -> Tensor:
    r""":math:`|J^\top J - c 1|_F / (c \sqrt K)` `(n,)` of Gram matrices `(n, K, K)`.

    With `c` the mean of all diagonals: 0 if one standard deviation of z, in any direction and
    anywhere, changes images equally (Horan, Richardson & Weiss 2021).
    """
    unit = gram.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-30)
    off = gram / unit - torch.eye(gram.shape[-1]).to(gram)
    return (off.square().sum((-2, -1)) / gram.shape[-1]).clamp_min(1e-24).sqrt()


def spread(slope: Tensor, floor: float = 1e-30) -> Tensor:
    r""":math:`|J_k|_1 / \sqrt{P (|J_k|_2^2 + f)}` of slopes `(K, n, P)`, `(K, n)`.

    1 if a latent changes all `P` pixels by as much, :math:`1 / \sqrt P` if only one of them; no
    scale changes it (Hoyer 2004, Eq. 8), but for the ``floor`` `f`.
    """
    length = (slope.square().sum(-1) + floor).sqrt()
    return slope.abs().sum(-1) / (length * math.sqrt(slope.shape[-1]))
