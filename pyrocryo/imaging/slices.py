r"""Images of voxel maps by the Fourier slice theorem: no sum along the beam.

The transform of a projection is the central slice of the map's transform, across the beam.
Conventions as in :mod:`pyrocryo.imaging.resample`; :math:`F(k) = \sum_r v(r) e^{-2 \pi i k r}`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from pyrocryo.imaging.splat import pixel_centres
from pyrocryo.precision import applied, exact

__all__ = ["band_limited", "half_plane", "image_of", "slice_projection"]


@exact
def slice_projection(
    maps: Tensor, rotation: Tensor, shift: Tensor, *, box: int, oversampling: int = 2
) -> Tensor:
    r"""Projects 3-D maps: :math:`X(k) = e^{-2 \pi i k t} F(A^\top (k, 0))`.

    As :func:`pyrocryo.imaging.resample_projection`, but the map is interpolated in Fourier space,
    where a map padded with zeros is smooth: trilinearly, which multiplies the map by a
    :math:`\mathrm{sinc}^2` along each axis; it is divided by that first. Frequencies beyond the
    Nyquist frequency of image or map (a circle) are zero: half of a map's frequencies are never
    seen, and a map fitted to images keeps there what it began with (see :func:`band_limited`).
    The slice is as finely sampled as the padded map, and the image cut from the middle of it: what
    moves out of the box is gone.

    Args:
        maps: `(B, side, side, side)` densities `v`, indexed `[z, y, x]`.
        rotation: `(B, 3, 3)` rotations `A`.
        shift: `(B, 2)` displacements `t` in pixels.
        box: Pixels along an edge of the result.
        oversampling: How many times as wide the map is padded. Relative errors on Gaussians of
            1.2 to 2 pixels that fill the box: 1.2-1.7 % at 2, .4-.6 % at 3, 10-17 % at 1; of
            :func:`pyrocryo.imaging.resample_projection` 1.0-5.7 %. Worst are rotations that map
            the axes onto each other, 4 % at 2.

    Returns:
        `(B, box, box)`.
    """
    side = maps.shape[-1]
    wide = oversampling * side
    like = {"dtype": maps.dtype, "device": maps.device}
    ends, half = _waves(side, wide, **like), _waves(side, wide, half=True, **like)
    whole = torch.complex(maps @ half.real.T, maps @ half.imag.T)  # [z, y, k_x]
    whole = ends @ whole
    whole = (ends @ whole.flatten(-2)).unflatten(-1, whole.shape[-2:])
    large = oversampling * box
    k = half_plane(large, **like)
    points = applied(rotation[:, None, None, :2, :].transpose(-1, -2), k) * (box / side)
    flipped = points[..., :1] < 0  # F(-k) is the conjugate of F(k): half of it is enough
    points = torch.where(flipped, -points, points)
    # grid_sample's [-1, 1] runs from the first to the last frequency of each axis
    x, y, z = points.unbind(-1)
    last = wide // 2
    grid = torch.stack([x * (2 * wide / last) - 1, y * (wide / last), z * (wide / last)], dim=-1)
    parts = torch.view_as_real(whole).movedim(-1, 1)
    found = grid_sample(parts, grid.unsqueeze(1), align_corners=True).squeeze(2)
    real, imag = found.unbind(1)
    imag = torch.where(flipped.squeeze(-1), -imag, imag)
    finest = 0.5 * min(1.0, side / box)
    inside = k.square().sum(-1) <= finest**2
    spectrum = torch.complex(real * inside, imag * inside) * (box / side) ** 2
    edge = large // 2 - box // 2
    return image_of(spectrum, shift, box=large)[..., edge : edge + box, edge : edge + box]


@exact
def band_limited(maps: Tensor, *, box: int) -> Tensor:
    """Maps `(..., side, side, side)` without the frequencies that no slice of ``box`` pixels has.

    Those beyond the Nyquist frequency of image or map (a sphere).
    """
    side, axes = maps.shape[-1], (-3, -2, -1)
    like = {"dtype": maps.dtype, "device": maps.device}
    k, half = torch.fft.fftfreq(side, **like).square(), torch.fft.rfftfreq(side, **like).square()
    inside = k[:, None, None] + k[:, None] + half <= (0.5 * min(1.0, box / side)) ** 2
    return torch.fft.irfftn(torch.fft.rfftn(maps, dim=axes) * inside, s=(side,) * 3, dim=axes)


def _waves(side: int, wide: int, *, half: bool = False, **like: object) -> Tensor:
    """Fourier matrix of an axis padded to ``wide``, `(frequencies, side)`, and the correction.

    Frequencies run from -1/2 (``half``: from 0) to 1/2, both ends there. Most of a padded map is
    zeros: a matrix product leaves them out, three times as fast as a transform of the whole.
    """
    last = wide // 2
    k = torch.arange(0 if half else -last, last + 1, **like)
    r = pixel_centres(side, **like)
    turn = torch.remainder(k[:, None] * r, wide) * (-2 * math.pi / wide)
    return torch.polar(torch.ones_like(turn), turn) / torch.sinc(r / wide).square()


def half_plane(box: int, **like: object) -> Tensor:
    """Wave vectors `(box, box // 2 + 1, 2)` (x, y; cycles a pixel) as ``rfft2`` has them."""
    ky, kx = torch.fft.fftfreq(box, **like), torch.fft.rfftfreq(box, **like)
    return torch.stack(torch.meshgrid(kx, ky, indexing="xy"), dim=-1)


def image_of(spectrum: Tensor, shift: Tensor, *, box: int) -> Tensor:
    r"""Images `(..., box, box)` whose transform about the box centre is given, moved by `t`.

    Args:
        spectrum: `(..., box, box // 2 + 1)` at :func:`half_plane`.
        shift: `(..., 2)` displacements `t` in pixels; the image is periodic.
        box: Pixels along an edge.
    """
    k = half_plane(box, dtype=shift.dtype, device=shift.device)
    turn = -2 * math.pi * (k * (shift + box // 2)[..., None, None, :]).sum(-1)
    return torch.fft.irfft2(spectrum * torch.complex(turn.cos(), turn.sin()), s=(box, box))
