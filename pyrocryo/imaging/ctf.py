r"""The contrast transfer function, and images seen through it.

With the wave vector `k` (1/Å) at the angle θ from the image's x axis, the electron wavelength λ,
the spherical aberration :math:`C_s`, the phase shift ψ and the amplitude contrast `w`,

.. math:: CTF(k) = \sin\big(\pi \lambda \Delta f(\theta) k^2 - \tfrac\pi2 C_s \lambda^3 k^4
          + \psi + \arcsin w\big) \, e^{-B k^2 / 4}, \qquad
          \Delta f(\theta) = \tfrac12 [\Delta f_U + \Delta f_V + (\Delta f_U - \Delta f_V)
          \cos 2 (\theta - \theta_U)]

(Rohou & Grigorieff 2015, Eqs. 2-5.) Underfocus is positive, CTF(0) = w: RELION's sign, under
which molecules are bright; cryoDRGN's CTF is minus this one. A CTF is even and real, so images
stay real and nothing moves.
"""

from __future__ import annotations

import math

import torch
from scipy import constants
from torch import Tensor

from pyrocryo.precision import exact

__all__ = ["contrast_transfer", "filtered", "modulated", "transfer", "wavelength"]

MOST = 2**21  # numbers of padded images made at once on a CPU: more fall out of its caches


def wavelength(voltage: Tensor) -> Tensor:
    r"""Wavelength (Å) of electrons at ``voltage`` (kV), relativistic.

    .. math:: \lambda = h / \sqrt{2 m e V (1 + e V / 2 m c^2)}
    """
    volt = 1e3 * voltage
    energy = 2 * constants.m_e * constants.e * volt
    relativity = constants.e * volt / (2 * constants.m_e * constants.c**2)
    return 1e10 * constants.h / (energy * (1 + relativity)).sqrt()


def contrast_transfer(ctf: Tensor, *, box: int, pixel_size: float | Tensor) -> Tensor:
    """The CTF where ``torch.fft.rfft2`` has its frequencies.

    Computed in double precision: far from focus its phase is hundreds of radians.

    Args:
        ctf: `(..., 7)` or `(..., 8)`: defocus U and V (Å), angle of U (degrees from the x axis
            towards y), voltage (kV), spherical aberration (mm), amplitude contrast, phase shift
            (degrees) and, if given, the B-factor (Å²).
        box: Pixels along an edge.
        pixel_size: Å per pixel.

    Returns:
        `(..., box, box // 2 + 1)`, rows along ky.
    """
    like = {"dtype": torch.float64, "device": ctf.device}
    ky = torch.fft.fftfreq(box, **like)[:, None] / pixel_size
    kx = torch.fft.rfftfreq(box, **like) / pixel_size
    square, angle = kx.square() + ky.square(), torch.atan2(ky.expand(-1, len(kx)), kx)
    u, v, azimuth, voltage, aberration, amplitude, phase, *envelope = (
        value[..., None, None] for value in ctf.double().unbind(-1)
    )
    length = wavelength(voltage)
    defocus = 0.5 * (u + v + (u - v) * torch.cos(2 * (angle - torch.deg2rad(azimuth))))
    chi = math.pi * length * defocus * square
    chi = chi - 0.5 * math.pi * 1e7 * aberration * length**3 * square.square()
    transfer = torch.sin(chi + torch.deg2rad(phase) + torch.asin(amplitude))
    return transfer * torch.exp(-0.25 * envelope[0] * square) if envelope else transfer


@exact
def modulated(
    images: Tensor,
    ctf: Tensor,
    *,
    pixel_size: float | Tensor,
    margin: int = 1,
    sign: bool = False,
) -> Tensor:
    """Images seen through their CTF.

    Args:
        images: `(..., D, D)`.
        ctf: `(..., 7)` or `(..., 8)`, see :func:`contrast_transfer`; broadcast against images.
        pixel_size: Å per pixel.
        margin: The box is made so many times as wide with zeros on the way. 1 takes the image as
            periodic, as most programs do; from 2 on, what the CTF spreads beyond the box leaves
            it, as it does where particles are cut out of a micrograph.
        sign: Multiply by the sign of the CTF alone (phase flipping), which leaves white noise
            white.
    """
    wide = margin * images.shape[-1]
    multiplier = transfer(ctf, box=wide, pixel_size=pixel_size, like=images)
    return filtered(images, multiplier.sign() if sign else multiplier)


def transfer(ctf: Tensor, *, box: int, pixel_size: float | Tensor, like: Tensor) -> Tensor:
    """What :func:`filtered` multiplies by, `(..., box, box // 2 + 1)`, of the type of ``like``.

    The CTF; at the Nyquist frequency of x, where ky and -ky are one place, that of ``abs(ky)``.

    Args:
        ctf: `(..., 7)` or `(..., 8)`, as :func:`contrast_transfer` takes it.
        box: Pixels along an edge.
        pixel_size: Å per pixel.
        like: Of the type that is wanted.
    """
    multiplier = contrast_transfer(ctf, box=box, pixel_size=pixel_size).to(like.dtype)
    if box % 2 == 0:
        row = torch.arange(box, device=ctf.device)
        row = torch.minimum(row, box - row)
        multiplier = torch.cat([multiplier[..., :-1], multiplier[..., row, -1:]], dim=-1)
    return multiplier


@exact
def filtered(images: Tensor, multiplier: Tensor) -> Tensor:
    """Images `(..., D, D)`, multiplied by :func:`transfer` of a box that may be wider than they.

    Zeros are around them then, and what comes to lie there is left out.
    """
    box, wide = images.shape[-1], multiplier.shape[-2]
    further = images.dim() - multiplier.dim()
    rows = math.prod(images.shape[:further]) if further > 0 else 1
    share = max(1, MOST * rows // max(1, images[..., 0, 0].numel() * wide**2))
    if images.device.type == "cpu" and rows > share:
        parts = images.flatten(end_dim=further - 1).split(share)
        every = torch.cat([filtered(part, multiplier) for part in parts])
        return every.unflatten(0, images.shape[:further])
    spectrum = torch.fft.rfft2(images, s=(wide, wide)) * multiplier
    return torch.fft.irfft2(spectrum, s=(wide, wide))[..., :box, :box]
