r"""Particles as cryoDRGN sees them: Hartley transforms of windowed and centred images.

The discrete Hartley transform of a real image with Fourier transform F is :math:`H(k) =
\mathrm{Re} F(k) - \mathrm{Im} F(k)`.
"""

from __future__ import annotations

import numpy as np
import torch

from pyrocryo.errors import InputError
from pyrocryo.imaging.hartley import disc, soft_window, transform, translated, wrapped
from pyrocryo.particles import Particles

__all__ = ["disc", "hartley", "transform"]

FOR_SCALE = 1000  # images read to find the scale


def hartley(particles: Particles, *, test_fraction: float = 0.1) -> Particles:
    r"""Particles as cryoDRGN prepares them: windowed, transformed, centred, scaled.

    Images fade to zero between .85 and .99 of the half-box. Their centred Hartley transform gets
    the first row and column once more at its end, so that `k` and `-k` are both there, and a shift
    `t` of the molecule is undone by :math:`H'(k) = \cos(2\pi k t) H(k) - \sin(2\pi k t) H(-k)`.
    All is divided by the standard deviation of up to 1000 images' transforms before the window.
    (cryoDRGN multiplies its shifts, shares of the box, with the box plus one.) Pixels outside the
    :func:`disc`, which cryoDRGN never looks at, are zero.

    The result is held in memory: 4 (D + 1)² bytes a particle.

    Args:
        particles: `(N, D, D)` with D even.
        test_fraction: Share held out, drawn as :class:`pyrocryo.particles.Particles` draws it.
    """
    n, box = len(particles), particles.box
    if particles.frames is not None or box % 2:
        raise InputError(
            f"images: expected (N, D, D) with an even D, got {tuple(particles.images.shape)}"
        )
    sample = np.arange(0, n, max(1, n // FOR_SCALE))[:FOR_SCALE]
    scale = wrapped(transform(particles.batch(sample).images, 2)).std()
    if scale == 0:
        raise InputError("images: every pixel has the same value")
    window = soft_window(box)
    seen = torch.zeros((box + 1) ** 2).index_fill(0, disc(box + 1), 1).view(box + 1, -1)
    images = np.empty((n, box + 1, box + 1), np.float32)
    for rows in particles.chunks():
        batch = particles.batch(rows)
        found = wrapped(transform(batch.images * window, 2)) / scale
        if "shift" in particles.fields:
            found = translated(found, batch.shift / batch.pixel_size)
        images[rows] = (found * seen).numpy()
    fields = {name: value for name, value in particles.fields.items() if name != "shift"}
    return Particles(
        images,
        pixel_size=particles.pixel_size,
        test_fraction=test_fraction,
        index=particles.index,
        **fields,
    )
