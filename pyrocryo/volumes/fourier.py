"""An implicit volume in Fourier space: a network gives the transform at any wave vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrocryo.imaging.slices import half_plane, image_of
from pyrocryo.precision import applied, exact
from pyrocryo.volumes.conditioned import Conditioned

__all__ = ["ImplicitFourier"]

REACH = 0.15  # of the box: standard deviation of the positions that the features stand for
FALL = 4.0  # waves a box at which transforms of molecules have fallen to half


class ImplicitFourier(Conditioned):
    r"""The Hartley transform of the density as a network of wave vector and conformation.

    .. math:: \hat v(k, z) = \tfrac12 [H(k, z) + H(-k, z)] - \tfrac i2 [H(k, z) - H(-k, z)]

    cryoDRGN's choice (Zhong et al. 2021): `H` of a real density is real and otherwise free, so
    densities and images are real by construction. Gaussian Fourier features of `k`, hidden layers
    that each see `z` too, times an envelope that falls as transforms of molecules do; nothing
    beyond the Nyquist frequency. An image is a central slice: one pass for each of its wave
    vectors, where :class:`~pyrocryo.volumes.Implicit` takes one for each point along the beam.

    Args:
        dim: 2 for flat molecules whose rotations are in the plane, 3 for maps.
        hidden: Widths of the hidden layers.
        features: Number of positions behind the features.
        side: Voxels along an edge of exported maps; by default the box, but at most 128 or 48.
    """

    def __init__(
        self,
        dim: int = 3,
        *,
        hidden: tuple[int, ...] = (64, 64),
        features: int = 48,
        side: int | None = None,
    ) -> None:
        super().__init__(dim, hidden, features, side)

    def build(self, latent: int, box: int) -> ImplicitFourier:
        """Makes the network for `z` of ``latent`` numbers and images of ``box`` pixels."""
        super().build(latent, box)
        self.register_buffer("places", 2 * math.pi * (self.normal() * REACH))  # in boxes
        k = box * half_plane(box, dtype=torch.get_default_dtype())
        where = (k.norm(dim=-1) <= (box - 1) // 2).flatten().nonzero().squeeze(1)
        self.register_buffer("where", where, persistent=False)
        self.register_buffer("waves", k.flatten(0, 1)[where], persistent=False)
        return self

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        return f"dim={self.dim}, side={self.side}"

    @property
    def numbers_an_image(self) -> int:
        """Numbers held while one image is made, for those who choose how many to make at once."""
        return 2 * len(self.where) * (2 * self.features + 2 * sum(self.hidden)) + self.box**2

    def density(self, z: Tensor) -> Tensor:
        """Density maps `(..., side, side[, side])`, indexed `[(z,) y, x]`, of `z` `(..., K)`."""
        side = self.side
        k = torch.fft.fftfreq(side, dtype=z.dtype, device=z.device) * side
        axes = torch.meshgrid(*[k] * self.dim, indexing="ij")[::-1]
        points = torch.stack(axes, dim=-1).flatten(0, -2)
        phase = -2 * math.pi * (side // 2) / side * points.sum(-1)
        centred = torch.polar(torch.ones_like(phase), phase)
        inside = points.norm(dim=-1) <= (min(side, self.box) - 1) // 2
        scale = (side / self.box) ** self.dim
        maps = []
        for code in z.reshape(-1, 1, z.shape[-1]):
            values = self._transform(points.unsqueeze(0), code).squeeze(0)
            whole = (values * inside * centred).unflatten(0, (side,) * self.dim)
            maps.append(scale * torch.fft.ifftn(whole, norm=None).real)
        return torch.stack(maps).reshape(*z.shape[:-1], *[side] * self.dim)

    def forward(self, z: Tensor, rotation: Tensor, shift: Tensor) -> Tensor:
        """Clean images `(..., box, box)` of conformations `z` in given poses.

        Args:
            z: `(..., K)`.
            rotation: `(..., 3, 3)`, broadcast against `z`.
            shift: `(..., 2)` in pixels, broadcast against `z`.
        """
        lead = torch.broadcast_shapes(z.shape[:-1], rotation.shape[:-2], shift.shape[:-1])
        z = z.expand(*lead, -1).flatten(0, -2)
        rotation = rotation.expand(*lead, 3, 3).reshape(-1, 3, 3)
        shift = shift.expand(*lead, 2).reshape(-1, 2)
        values = self._transform(self._points(rotation), z)
        empty = values.new_zeros(len(values), self.box * (self.box // 2 + 1))
        spectrum = empty.index_copy(1, self.where, values).unflatten(1, (self.box, -1))
        return image_of(spectrum, shift, box=self.box).unflatten(0, lead)

    @exact
    def _points(self, rotation: Tensor) -> Tensor:
        """Wave vectors of the slices, `(B, M, dim)`, in waves a box."""
        back = rotation[:, None, :2, : self.dim].transpose(-1, -2)
        return applied(back, self.waves)

    def _transform(self, points: Tensor, z: Tensor) -> Tensor:
        """Fourier coefficients `(B, M)` at ``points`` `(B, M, dim)`, about the origin."""
        here, there = self._hartley(points, z), self._hartley(-points, z)
        return 0.5 * torch.complex(here + there, there - here)

    def _hartley(self, points: Tensor, z: Tensor) -> Tensor:
        envelope = self.box**2 / 8 / (1 + points.square().sum(-1) / FALL**2)
        return self.network(points, self.places, z) * envelope
