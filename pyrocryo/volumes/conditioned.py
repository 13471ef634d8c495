"""What implicit volumes share: a network of place and conformation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pyrocryo.errors import InputError
from pyrocryo.particles import Particles
from pyrocryo.precision import exact
from pyrocryo.volumes.grid import MOST_VOXELS_A_SIDE, refuse_tilted

__all__ = ["Conditioned"]


class Conditioned(nn.Module):
    """Gaussian Fourier features of a place, then hidden layers that each see `z` too.

    Args:
        dim: 2 for flat molecules whose rotations are in the plane, 3 for maps.
        hidden: Widths of the hidden layers.
        features: Number of frequencies.
        side: Voxels along an edge of exported maps; by default the box, but at most 128 (2-D) or
            48 (3-D).
    """

    def __init__(self, dim: int, hidden: tuple[int, ...], features: int, side: int | None) -> None:
        super().__init__()
        if dim not in (2, 3):
            raise InputError(f"dim: an implicit volume has 2 or 3 dimensions, got {dim}")
        self.dim = dim
        self.hidden = tuple(hidden)
        self.features = features
        self.side = side

    def build(self, latent: int, box: int) -> Conditioned:
        """Makes the network for `z` of ``latent`` numbers and images of ``box`` pixels."""
        self.box = box
        self.side = self.side or min(box, MOST_VOXELS_A_SIDE[self.dim])
        widths = (2 * self.features, *self.hidden)
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.codes = nn.ModuleList(nn.Linear(latent, width, bias=False) for width in self.hidden)
        self.last = nn.Linear(widths[-1], 1)
        return self

    def normal(self) -> Tensor:
        """Numbers `(dim, F)` of N(0, 1), the same for every seed, that features are made of."""
        return torch.randn(self.dim, self.features, generator=torch.Generator().manual_seed(0))

    def network(self, points: Tensor, waves: Tensor, z: Tensor) -> Tensor:
        """Numbers `(B, P)` at ``points`` `(B, P, dim)` of conformations `(B, K)`.

        Args:
            points: Places.
            waves: `(dim, F)` phases of the features per unit of place.
            z: Conformations.
        """
        hidden = _features(points, waves)
        for layer, code in zip(self.layers, self.codes, strict=True):
            hidden = silu(layer(hidden) + code(z).unsqueeze(1))
        return self.last(hidden).to(points.dtype).squeeze(-1)

    def check(self, particles: Particles) -> None:
        """Raises InputError if a 2-D volume is given rotations out of the plane."""
        if self.dim == 2:
            kind = type(self).__name__
            refuse_tilted(particles, "a 2-D implicit volume", f"{kind}(dim=3)")


@exact
def _features(points: Tensor, waves: Tensor) -> Tensor:
    """Fourier features `(..., 2 F)` of points `(..., dim)`."""
    phase = points @ waves
    return torch.cat([phase.cos(), phase.sin()], dim=-1)
