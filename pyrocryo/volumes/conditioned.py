"""What implicit volumes share: a network of place and conformation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pyrocryo.precision import exact

__all__ = ["Conditioned"]


class Conditioned(nn.Module):
    """Gaussian Fourier features of a place, then hidden layers that each see `z` too."""

    def make_network(self, latent: int, features: int, hidden: Sequence[int]) -> None:
        """Makes the layers, for ``features`` frequencies and `z` of ``latent`` numbers."""
        widths = (2 * features, *hidden)
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.codes = nn.ModuleList(nn.Linear(latent, width, bias=False) for width in hidden)
        self.last = nn.Linear(widths[-1], 1)

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


@exact
def _features(points: Tensor, waves: Tensor) -> Tensor:
    """Fourier features `(..., 2 F)` of points `(..., dim)`."""
    phase = points @ waves
    return torch.cat([phase.cos(), phase.sin()], dim=-1)
