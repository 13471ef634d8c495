r"""Hartley transforms as cryoDRGN holds images.

The discrete Hartley transform of a real image with Fourier transform F is :math:`H(k) =
\mathrm{Re} F(k) - \mathrm{Im} F(k)`. Zero frequency stands in the middle, and the first row and
column stand once more at the end, so that a box of D pixels gives (D + 1)² numbers and `k` and
`-k` are both there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging.ctf import contrast_transfer

__all__ = ["disc", "phase_signs", "soft_window", "transform", "translated", "wrapped"]

OUTER = 0.99  # of the half-box: nothing is left of the image there


def disc(box: int, radius: int | None = None) -> Tensor:
    """Positions in a flattened Hartley image of the pixels that count `(M,)`, in order.

    Those within ``radius`` of the centre (by default up to the highest frequency), and not the
    centre itself: M is even, and the pixel of -k comes as late as that of k comes early.
    """
    if box % 2 == 0:
        raise InputError(
            f"box: Hartley images have an odd box, one more than the particles' (see "
            f"pyrocryo.bench.hartley.hartley), got {box}"
        )
    k = torch.arange(box) - box // 2
    square = (k[:, None].square() + k.square()).flatten()
    most = box // 2 if radius is None else radius
    return ((square <= most**2) & (square > 0)).nonzero().squeeze(-1)


def transform(images: Tensor, dim: int) -> Tensor:
    """The Hartley transform over the last ``dim`` axes, zero frequency at ``side // 2``."""
    axes = tuple(range(-dim, 0))
    found = torch.fft.fftn(torch.fft.ifftshift(images, dim=axes), dim=axes)
    found = torch.fft.fftshift(found, dim=axes)
    return found.real - found.imag


def wrapped(images: Tensor) -> Tensor:
    """With the first row and column once more at the end: `(..., D + 1, D + 1)`."""
    images = torch.cat([images, images[..., :1, :]], dim=-2)
    return torch.cat([images, images[..., :1]], dim=-1)


def soft_window(box: int, inner: float = 0.85) -> Tensor:
    """1 within ``inner`` of the half-box about pixel ``box // 2``, fading to 0 at .99 of it."""
    r = (torch.arange(box) - box // 2) / (box / 2)
    r = (r[:, None].square() + r.square()).sqrt()
    if inner >= OUTER:
        return (r <= inner).float()
    return ((OUTER - r) / (OUTER - inner)).clamp(0, 1)


def translated(images: Tensor, shift: Tensor) -> Tensor:
    r"""Hartley images `(B, D + 1, D + 1)` with molecules moved back by ``shift`` `(B, 2)` (px).

    .. math:: H'(k) = \cos(2\pi k t) H(k) - \sin(2\pi k t) H(-k)
    """
    box = images.shape[-1] - 1
    k = torch.arange(-(box // 2), box // 2 + 1) / box  # cycles a pixel
    x, y = shift.T[..., None, None]
    turn = 2 * math.pi * (k * x + k[:, None] * y)
    return turn.cos() * images - turn.sin() * images.flip(-1, -2)


def phase_signs(ctf: Tensor, *, box: int, pixel_size: float | Tensor) -> Tensor:
    """Signs of the CTF `(B, D + 1, D + 1)` where Hartley images have their frequencies.

    Right within the :func:`disc`: of its frequencies, only those on an axis are Nyquist's.
    """
    half = contrast_transfer(ctf, box=box, pixel_size=pixel_size).sign()
    k = torch.arange(-(box // 2), box // 2 + 1)
    left = k < 0
    row = torch.where(left, -1, 1) * k[:, None]  # a CTF is even
    return half[..., row % box, k.abs()].float()
