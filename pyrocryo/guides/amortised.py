"""The amortised encoder: one network gives every particle's Gaussian posterior."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, softplus

from pyrocryo.imaging import resample
from pyrocryo.perceptron import perceptron
from pyrocryo.precision import applied, exact

__all__ = ["Amortised"]

SMALLEST_SD = 1e-4


class Amortised(nn.Module):
    r"""A multilayer perceptron from an image of known pose to :math:`N(\mu, L L^\top)` of `u`.

    A flat particle is turned upright before it is read, so the network need not learn what the
    pose already says; in three dimensions the nine entries of the rotation are read beside the
    image.

    Args:
        hidden: Widths of the hidden layers.
        side: Images wider than this are averaged down to it before they are read: enough for
            conformations, and the first layer keeps a size that trains at one learning rate.
        upright: Turn flat particles upright. Without, the pose is not looked at at all.
    """

    def __init__(
        self, hidden: tuple[int, ...] = (256, 128), *, side: int = 48, upright: bool = True
    ) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        self.side = side
        self.upright = upright

    def extra_repr(self) -> str:
        """What decides its answer beside the weights: resuming goes by it."""
        return "" if self.upright else "upright=False"

    def build(self, latent: int, box: int, volume: nn.Module) -> Amortised:
        """Makes the network for K = ``latent``, ``box`` pixels and a flat or 3-D ``volume``."""
        self.latent = latent
        self.spatial = volume.dim
        self.side = min(self.side, box)
        self.reads_pose = self.spatial == 3 and self.upright
        self.sizes = [latent, latent, latent * (latent - 1) // 2, self.more]
        self.network = self.made(9 if self.reads_pose else 0, sum(self.sizes))
        below = torch.tril_indices(latent, latent, offset=-1)
        self.register_buffer("_below", below, persistent=False)
        return self

    @property
    def more(self) -> int:
        """Numbers that are read off an image beside those of a normal."""
        return 0

    def made(self, known: int, outputs: int) -> nn.Module:
        """The network from flattened pixels and ``known`` further numbers to ``outputs``."""
        return perceptron(self.side**2 + known, self.hidden, outputs)

    def forward(self, images: Tensor, rotation: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        """Mean `(..., K)` and Cholesky factor `(..., K, K)` of each image's posterior.

        Args:
            images: `(..., D, D)`.
            rotation: `(..., 3, 3)`; may have leading axes (draws of a pose) that images lack.
            shift: `(..., 2)` in pixels.
        """
        lead, box = rotation.shape[:-2], images.shape[-1]
        images = images.expand(*lead, box, box).reshape(-1, box, box)
        rotation, shift = rotation.reshape(-1, 3, 3), shift.expand(*lead, 2).reshape(-1, 2)
        if self.spatial == 2 and self.upright:
            images = _upright(images, rotation, shift)
        if self.side < box:
            images = adaptive_avg_pool2d(images.unsqueeze(1), self.side).squeeze(1)
        features = images.flatten(1)
        if self.reads_pose:
            features = torch.cat([features, rotation.flatten(1)], dim=-1)
        read = self.network(features).to(images.dtype)
        loc, diagonal, below, more = read.split(self.sizes, dim=-1)
        scale = torch.diag_embed(softplus(diagonal) + SMALLEST_SD)
        scale[:, self._below[0], self._below[1]] = below
        answer = (loc, scale, more) if self.more else (loc, scale)
        return tuple(part.unflatten(0, lead) for part in answer)


@exact
def _upright(images: Tensor, rotation: Tensor, shift: Tensor) -> Tensor:
    """Flat particles `(B, D, D)` turned and moved back to where their molecule was."""
    back = rotation.transpose(-1, -2)
    undo = -applied(back[..., :2, :2], shift)
    return resample(images, back, undo, box=images.shape[-1])
