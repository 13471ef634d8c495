r"""Likelihoods of images: white noise, coloured noise, and a contrast of each particle's own.

.. math:: x = c \, y + \epsilon, \qquad c \sim N(1, \tau^2), \quad
          \epsilon \sim N(0, \sigma^2 F^\top S F)

with `y` the clean image, `F` the discrete Fourier transform and `S` a radial power spectrum whose
mean is 1, so that σ is the standard deviation of a pixel. The contrast is integrated out:

.. math:: \ln p(x) = \ln N(x; y, \Sigma) - \tfrac12 \ln(1 + \tau^2 b)
          + \frac{\tau^2 a^2}{2 (1 + \tau^2 b)}, \qquad
          a = (x - y)^\top \Sigma^{-1} y, \quad b = y^\top \Sigma^{-1} y

(the covariance is :math:`\Sigma + \tau^2 y y^\top`; Sherman & Morrison 1950). The scale of `y`
itself is fixed by the mean contrast of 1.

How bright `y` is depends on `z` and pose, and a volume learns that slowly here: an image too dark
is an image of more contrast, at a cost of :math:`(c - 1)^2 / 2 \tau^2` nats at most, however clean
the data. Contrasts found early in training carry that error, and the more so the higher the
signal-to-noise ratio.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrocryo.errors import InputError
from pyrocryo.particles import Particles
from pyrocryo.precision import exact

__all__ = ["Gaussian", "ImageNormal", "estimate_spectrum"]

# where τ is learned: its first value, and how fast ln τ moves. Not faster: it would take up what
# the brightness of the volume has still to learn, and the volume stay dark
FIRST_CONTRAST, SPEED = 0.1, 1.0
LARGEST_LAG = 0.4  # of the box, up to which correlations in the corners are looked at
FLOOR = 1e-2  # of the spectrum's mean


class Gaussian(nn.Module):
    """``Pair(..., likelihood=pc.noise.Gaussian(spectrum, contrast=True))``.

    The overall σ is the pair's (``noise=``), learned or given.

    Train it with ``kl_warmup``, half of the steps say: low frequencies and brightness tell less of
    `z` here than under white noise, and a component of `z` may be given up before the volume can
    show it. Two arms, 4000 images of 32 pixels, SNR .3, 1200 steps, four seeds: linear R² of `z`
    under coloured noise .52 ± .12 without, .85 ± .04 with; one seed in four lost a component under
    a learned contrast without, none with (.950 ± .006).

    Args:
        spectrum: Power of the noise in rings of 0, 1, ... waves a box (in any unit), as
            :func:`estimate_spectrum` gives it; beyond the last ring it goes on as there. None for
            white noise.
        contrast: Standard deviation τ of the particles' contrast; True to learn it; None where
            all have the same.
    """

    def __init__(self, spectrum: Any = None, *, contrast: float | bool | None = None) -> None:
        super().__init__()
        if spectrum is not None:
            spectrum = np.asarray(spectrum, dtype=np.float64)
            if spectrum.ndim != 1 or len(spectrum) < 2 or not (spectrum > 0).all():
                raise InputError(
                    f"spectrum: expected positive powers of at least 2 rings, got {spectrum}"
                )
        if contrast is not None and not isinstance(contrast, bool) and not contrast > 0:
            raise InputError(f"contrast: expected a positive deviation or True, got {contrast}")
        self._spectrum = spectrum
        self.contrast = contrast if contrast is not False else None

    def build(self, box: int) -> Gaussian:
        """Makes buffers and parameters for images of ``box`` pixels."""
        if self._spectrum is None:
            self.register_buffer("root", None)
        else:
            root = np.sqrt(on_grid(self._spectrum, box))
            self.register_buffer("root", torch.tensor(root, dtype=torch.get_default_dtype()))
        self.steps = None
        if self.contrast is not None:
            learned = self.contrast is True
            first = FIRST_CONTRAST if learned else float(self.contrast)
            self.register_buffer("first", torch.tensor(first))
            self.steps = nn.Parameter(torch.zeros(()), requires_grad=learned)
        return self

    def extra_repr(self) -> str:
        """What decides its densities: resuming goes by it."""
        return f"contrast={self.contrast}, coloured={self._spectrum is not None}"

    def reset_parameters(self) -> None:
        """τ back to where it started."""
        if self.steps is not None:
            nn.init.zeros_(self.steps)

    @property
    def whole_images(self) -> bool:
        """Whether it cannot do with some of the pixels."""
        return self.root is not None or self.steps is not None

    @property
    def tau(self) -> Tensor | None:
        """Standard deviation of the contrast."""
        return None if self.steps is None else self.first * (SPEED * self.steps).exp()

    def forward(self, clean: Tensor, sd: Tensor) -> ImageNormal:
        """The law of images `(..., D, D)` around clean ones; ``sd`` is σ."""
        return ImageNormal(clean, sd, self.root, self.tau)

    def contrast_of(self, images: Tensor, clean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
        r"""Posterior mean and standard deviation of each particle's contrast, `(...,)`.

        .. math:: c | x \sim N\Big(\frac{\tau^{-2} + x^\top \Sigma^{-1} y}{\tau^{-2} + b},
                  \frac1{\tau^{-2} + b}\Big)

        Args:
            images: `(..., D, D)`.
            clean: `(..., D, D)`, for example ``pair.seen(z, batch)``.
            sd: σ, ``pair.noise``.
        """
        if self.tau is None:
            raise InputError("contrast: this likelihood has none, every particle has the same")
        law = self(clean, sd)
        precision = self.tau**-2 + law.inner(clean, clean)
        return (self.tau**-2 + law.inner(images, clean)) / precision, precision.rsqrt()


class ImageNormal(dist.TorchDistribution):
    """A normal law of images with a radial spectrum and a random contrast.

    Args:
        loc: Clean images `(..., D, D)`.
        sd: Standard deviation of a pixel.
        root: `(D, D // 2 + 1)` square root of the spectrum where ``rfft2`` has its frequencies,
            or None for white noise.
        tau: Standard deviation of the contrast, or None.
    """

    arg_constraints = {"loc": constraints.independent(constraints.real, 2)}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        sd: Tensor,
        root: Tensor | None = None,
        tau: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.sd, self.root, self.tau = loc, sd, root, tau
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> ImageNormal:
        new = self._get_checked_instance(ImageNormal, _instance)
        loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        new.loc, new.sd, new.root, new.tau = loc, self.sd, self.root, self.tau
        super(ImageNormal, new).__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.loc

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        r""":math:`a^\top \Sigma^{-1} b` `(...,)` of images `(..., D, D)`."""
        a, b = a / self.sd, b / self.sd
        if self.root is None:
            return (a * b).sum((-1, -2))
        a, b = _whitened(a, self.root), _whitened(b, self.root)
        product = a.real * b.real + a.imag * b.imag
        # every frequency twice, but for those that the half-spectrum does not leave out
        total, once = 2 * product.sum((-1, -2)), product[..., 0].sum(-1)
        return total - (once if self.root.shape[0] % 2 else once + product[..., -1].sum(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        n = math.prod(self.event_shape)
        residual = value - self.loc
        total = -0.5 * self.inner(residual, residual) - n * self.sd.log()
        total = total - 0.5 * n * math.log(2 * math.pi) - self._log_root()
        if self.tau is None:
            return total
        a, b = self.inner(residual, self.loc), self.inner(self.loc, self.loc)
        square = self.tau.square()
        return total + 0.5 * square * a.square() / (1 + square * b) - 0.5 * (square * b).log1p()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        like = {"dtype": self.loc.dtype, "device": self.loc.device}
        noise, clean = torch.randn(shape, **like), self.loc
        if self.root is not None:
            spectrum = torch.fft.rfft2(noise) * self.root
            noise = torch.fft.irfft2(spectrum, s=noise.shape[-2:])
        if self.tau is not None:
            clean = clean * (1 + self.tau * torch.randn((*shape[:-2], 1, 1), **like))
        return clean + self.sd * noise

    def _log_root(self) -> Tensor | float:
        """Half the log-determinant of the spectrum, over all frequencies."""
        if self.root is None:
            return 0.0
        logs, box = self.root.log(), self.root.shape[0]
        inner = logs[:, 1:] if box % 2 else logs[:, 1:-1]
        return logs.sum() + inner.sum()


@exact
def _whitened(images: Tensor, root: Tensor) -> Tensor:
    return torch.fft.rfft2(images, norm="ortho") / root


def on_grid(spectrum: np.ndarray, box: int) -> np.ndarray:
    """A radial spectrum where ``rfft2`` has its frequencies, `(D, D // 2 + 1)`, of mean 1."""
    ky, kx = np.fft.fftfreq(box)[:, None] * box, np.fft.rfftfreq(box) * box
    power = np.interp(np.hypot(ky, kx), np.arange(len(spectrum)), spectrum)
    return power / _mean(spectrum, box)


def _mean(spectrum: np.ndarray, box: int) -> float:
    """Over all frequencies of an image."""
    k = np.fft.fftfreq(box) * box
    return float(np.interp(np.hypot(k[:, None], k), np.arange(len(spectrum)), spectrum).mean())


def estimate_spectrum(particles: Particles) -> np.ndarray:
    r"""Power spectrum of the noise in rings of 0, 1, ..., D // 2 waves a box, of mean 1.

    From the corners outside the circle that fits the box, where there is background only: the
    autocorrelation of the masked images over that of the mask, for lags up to .4 of the box, under
    Hann's window, transformed and averaged over rings (Blackman & Tukey 1958). The window smooths
    the spectrum over some 5 rings. Of 2000 images of 32 pixels the rms error over rings is 1.5 %
    for white noise, 3 to 5 % for spectra that fall 7- to 10-fold (ring 0 is up to 15 % too low),
    and 10 % for a hump 5 rings wide.

    Args:
        particles: With noise in the corners; batches are read in turn.

    Raises:
        InputError: If the corners are empty, or the box has fewer than 12 pixels.
    """
    box = particles.box
    if box < 12:
        raise InputError(f"box: expected at least 12 pixels, for corners to speak of; got {box}")
    r = np.arange(box) - box // 2
    mask = (np.hypot(r[:, None], r) > box / 2).astype(np.float64)
    wide = (2 * box, 2 * box)
    mean = particles.statistics().background_mean
    total, n = np.zeros((2 * box, box + 1)), 0
    for rows in particles.chunks():
        images = (particles.raw(rows).astype(np.float64) - mean).reshape(-1, box, box) * mask
        total += np.square(np.abs(np.fft.rfft2(images, s=wide))).sum(axis=0)
        n += len(images)
    pairs = np.fft.irfft2(np.square(np.abs(np.fft.rfft2(mask, s=wide))), s=wide).round()
    lag = np.fft.fftfreq(2 * box) * 2 * box
    distance = np.hypot(lag[:, None], lag) / (LARGEST_LAG * box)
    found = np.fft.irfft2(total / n, s=wide) / np.maximum(pairs, 1.0)
    if not found[0, 0] > 0:
        raise InputError("spectrum: the corners of all images are constant, there is no noise")
    power = np.fft.rfft2(found * _hann(distance) * (pairs > 0)).real  # (2 D, D + 1)
    ring = np.hypot(lag[:, None], np.arange(box + 1)) / 2  # waves a box
    rings = np.arange(box // 2 + 1)
    power = np.array([power[np.abs(ring - k) <= 0.5].mean() for k in rings])
    power = np.maximum(power, FLOOR * power.mean())
    return power / _mean(power, box)


def _hann(x: np.ndarray) -> np.ndarray:
    return np.cos(0.5 * np.pi * np.minimum(x, 1.0)) ** 2
