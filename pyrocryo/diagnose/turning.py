r"""Particles turned in their plane, with everything that turns with them.

A turn by α takes the image to :math:`x'(r) = x(R_\alpha^\top r)`, counter-clockwise about pixel
``box // 2``, x to the right and y along the rows. Where :math:`x(r) = h * \int v(A^\top (r - t))`,
this is the image of the same molecule with the rotation :math:`R_z(\alpha) A`, the shift
:math:`R_\alpha t` and a CTF whose astigmatism is turned by α.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["turned_batch", "turned_images", "turned_rotation"]

EXACT = 1e-6  # degrees off a quarter turn that are none
DEFOCUS_ANGLE = 2  # in ctf: defocus U and V in Å, the angle of U, kV, Cs, w, phase


def turned_images(images: Tensor, degrees: float) -> Tensor:
    """Images `(..., D, D)` turned counter-clockwise by ``degrees`` about pixel ``D // 2``.

    The image is taken as periodic, as its Fourier transform takes it. Quarter turns only move
    pixels, so four of them undo each other exactly; in an even box the row or column at
    ``-D / 2``, whose source at ``+D / 2`` is not there, gets the one at ``-D / 2``: the edge of
    the image, with noise as everywhere else. What is left, at most 45°, is done by three shears in
    Fourier space (Unser, Thevenaz & Yaroslavsky 1995), which neither blur nor smooth the noise;
    beyond the circle that fits the box, corners then come from the other side of the image.
    """
    quarters = round(degrees / 90)
    rest = degrees - 90 * quarters
    for _ in range(quarters % 4):
        images = torch.rot90(images, k=-1, dims=(-2, -1))
        if images.shape[-1] % 2 == 0:  # that was about (D - 1) / 2
            images = images.roll(1, dims=-1)
    return images if abs(rest) < EXACT else _sheared(images, math.radians(rest))


def turned_batch(batch: Any, degrees: float, *, optics: bool = True) -> Any:
    """A batch of particles seen by a camera turned clockwise by ``degrees``.

    Images, ``rotation`` `(..., 3, 3)`, ``shift`` `(..., 2)` and ``ctf`` `(..., 7)` are turned,
    those that there are; all other fields are taken not to depend on directions in the image.

    Args:
        batch: As ``particles.batch(index)`` gives it.
        degrees: Counter-clockwise turn of what is seen.
        optics: Whether ``shift`` and ``ctf`` turn as well, as they have to.
    """
    turns = TURNS if optics else {"rotation": turned_rotation}
    changed = {
        name: turn(getattr(batch, name), degrees)
        for name, turn in turns.items()
        if name in batch._fields
    }
    return batch._replace(images=turned_images(batch.images, degrees), **changed)


def turned_rotation(rotation: Tensor, degrees: float) -> Tensor:
    r""":math:`R_z(\alpha) A` of rotations `A` `(..., 3, 3)`."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y, beam = rotation.unbind(-2)
    return torch.stack([c * x - s * y, s * x + c * y, beam], dim=-2)


def _turned_shift(shift: Tensor, degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = shift.unbind(-1)
    return torch.stack([c * x - s * y, s * x + c * y], dim=-1)


def _turned_ctf(ctf: Tensor, degrees: float) -> Tensor:
    """The angle of defocus U runs counter-clockwise from the x axis, as in RELION."""
    turned = ctf.clone()
    turned[..., DEFOCUS_ANGLE] += degrees
    return turned


TURNS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "rotation": turned_rotation,
    "shift": _turned_shift,
    "ctf": _turned_ctf,
}


def _sheared(images: Tensor, angle: float) -> Tensor:
    r"""Turned by ``angle`` (rad), at most π/4 either way.

    .. math:: R_\alpha^\top = S_x(\tan \tfrac\alpha2) S_y(-\sin\alpha) S_x(\tan \tfrac\alpha2)
    """
    box = images.shape[-1]
    margin = box // 2
    wrapped = torch.arange(-margin, box + margin, device=images.device) % box
    wide = images[..., wrapped, :][..., wrapped]
    k = math.tan(angle / 2)
    wide = _slid(wide, k)
    wide = _slid(wide.transpose(-1, -2), -math.sin(angle)).transpose(-1, -2)
    wide = _slid(wide, k)
    return wide[..., margin : margin + box, margin : margin + box]


def _slid(images: Tensor, k: float) -> Tensor:
    """Each row `y` read at `x + k y`, y counted from the centre."""
    width = images.shape[-1]
    like = {"dtype": images.dtype, "device": images.device}
    y = torch.arange(width, **like) - width // 2
    frequency = torch.fft.rfftfreq(width, **like)
    phase = torch.polar(torch.ones((), **like), 2 * math.pi * k * y[:, None] * frequency)
    return torch.fft.irfft(torch.fft.rfft(images) * phase, n=width)
