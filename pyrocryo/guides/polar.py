"""The in-plane pose head: it turns with the image, so that no pose is ever harder than another."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyrocryo.directions import PlanarNormal
from pyrocryo.imaging import rings
from pyrocryo.precision import exact

__all__ = ["Polar"]

# Times the length of the mean: short lengths still give any posterior down to the uniform one. An
# exponential without a floor is pushed to 0 by the KL early on, its gradient with it, for good.
SMALLEST_SIZE, FIRST_SIZE = 10.0, 30.0


WIDEST = 48  # pixels: wider images are averaged down to it first, for rings as far apart as pixels


class Polar(nn.Module):
    r"""Reads :math:`q(\phi | x)` off an image, equivariantly in the plane.

    The image is resampled to polar coordinates, where a turn is a shift along the angle. Two
    layers of filters as long as the circle (by FFT) give each angle a score; softmax turns scores
    into weights, and the weighted mean of the unit vectors, times a concentration that does not
    depend on the turn, is the concentration vector of a projected normal. Scores that cannot
    decide between two angles shorten that mean, and so widen the posterior. Turning the image by
    α turns the posterior by α, exactly but for interpolation: pose cannot leak into a conformation
    that is read from the image so turned back.

    Args:
        channels: Filters in each layer.
        angles: Samples around the circle.
    """

    def __init__(self, channels: int = 32, *, angles: int = 48) -> None:
        super().__init__()
        self.channels = channels
        self.angles = angles

    def build(self, box: int) -> Polar:
        """Makes the filters for images of ``box`` pixels."""
        self.box = box
        self.bin = -(-box // WIDEST)
        self.radii = max(2, box // self.bin // 2 - 1)
        self.first = CircularFilters(self.radii, self.channels, self.angles)
        self.second = CircularFilters(self.channels, self.channels, self.angles)
        self.score = nn.Conv1d(self.channels, 1, 1)
        self.spread = nn.Linear(self.channels, 1)
        angle = torch.arange(self.angles) * (2 * math.pi / self.angles)
        directions = torch.stack([angle.cos(), angle.sin()], dim=-1)
        self.register_buffer("directions", directions, persistent=False)
        return self

    @exact
    def forward(self, images: Tensor, shift: Tensor) -> PlanarNormal:
        """The pose posterior of images `(..., D, D)` of molecules at ``shift`` `(..., 2)` (px)."""
        lead = images.shape[:-2]
        flat, shift = images.reshape(-1, self.box, self.box), shift.reshape(-1, 2)
        seen = rings(flat, shift, by=self.bin, radii=self.radii, angles=self.angles)
        features = self.second(self.first(seen))
        weights = self.score(features).squeeze(1).softmax(-1)
        size = length_of(self.spread(features.mean(-1)))
        return PlanarNormal((size * (weights @ self.directions)).unflatten(0, lead))


def length_of(raw: Tensor) -> Tensor:
    """Sizes from the smallest up, the first one at 0: linear upwards, and ever slower downwards.

    Algebraic on either side, so that a gradient is left to come back by.
    """
    return SMALLEST_SIZE + (FIRST_SIZE - SMALLEST_SIZE) * 0.5 * (raw + (raw.square() + 4).sqrt())


class CircularFilters(nn.Module):
    """A circular convolution with filters as long as the signal, then SiLU.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        length: Samples around the circle.
    """

    def __init__(self, inputs: int, outputs: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.weight = nn.Parameter(torch.empty(inputs, outputs, length))
        self.bias = nn.Parameter(torch.empty(outputs, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of variance 1 / (inputs · length), so that a layer keeps the signal's size."""
        nn.init.normal_(self.weight, std=(self.weight.shape[0] * self.length) ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, signal: Tensor) -> Tensor:
        """From `(B, inputs, length)` to `(B, outputs, length)`."""
        spectrum = torch.fft.rfft(signal).permute(2, 0, 1)  # (frequency, B, inputs)
        filters = torch.fft.rfft(self.weight).permute(2, 0, 1)
        product = (spectrum @ filters).permute(1, 2, 0)
        return nn.functional.silu(torch.fft.irfft(product, n=self.length) + self.bias)
