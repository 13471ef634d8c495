r"""Which parts of the molecule each latent moves, and whether that alone tells them apart.

Where every part of the molecule is moved by few latents, the axes of `z` are identified up to
order and a warp each if, for every latent `i`, the intersection of the sets of latents that move a
part, over all parts moved by `i`, is {i} (Zheng, Ng & Zhang 2022, structural sparsity); it is
enough that some parts are moved by `i` alone (Moran et al. 2022, anchor features). Both theorems
want the sparsest decoder that explains the data, which training does not look for by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrocryo.identify.slopes import Latents, slopes
from pyrocryo.pair import Pair
from pyrocryo.volumes.gaussians import GaussianVolume

__all__ = ["Supports", "supports", "supports_of"]

QUIET = 0.1  # of the most that a latent moves anything: less counts as still
ANCHOR = 0.5  # share of what a latent moves that must be still under another one
CONFORMATIONS = {2: 64, 3: 12}  # to average over, in flat and in solid maps


@dataclass(frozen=True)
class Supports:
    """What each latent of one seed moves.

    Attributes:
        what: "atoms" or "voxels".
        share: `(K,)` share of all atoms or voxels that a latent moves.
        apart: `(K, K)` share of latent i's motion (its mean square) where latent j is still.
        alone: `(K,)` the same where all others are still (1 for a single latent).
        anchored: `(K,)` whether no other latent moves (nearly) all that latent i moves.
    """

    what: str
    share: np.ndarray
    apart: np.ndarray
    alone: np.ndarray
    anchored: np.ndarray


def supports(pair: Pair, latents: Latents) -> Supports:
    """Of atoms by how far they go, of other volumes by how much the density of a voxel changes.

    Root mean squares over conformations, for a standard deviation of the latent, in the frame
    that :meth:`pyrocryo.pair.Pair.density` is in: a molecule that turns as it moves moves
    everywhere.
    """
    most = CONFORMATIONS[3 if getattr(pair.volume, "dim", 2) == 3 else 2]
    rows = torch.linspace(0, len(latents.draw) - 1, min(most, len(latents.draw))).long()
    z = latents.draw[rows.to(latents.draw.device)]
    atoms = isinstance(pair.volume, GaussianVolume) and pair.frame is None
    with torch.no_grad():
        if atoms:
            moved = slopes(lambda z: pair.volume.places(z @ pair.rotation()), z, latents.scale)
            square = moved.square().sum(-1).mean(1)
        else:
            square = slopes(pair.density, z, latents.scale).square().mean(1).flatten(1)
    return supports_of(square.double().cpu(), "atoms" if atoms else "voxels")


def supports_of(square: Tensor, what: str = "voxels") -> Supports:
    """From the mean square change `(K, parts)` of every part with every latent."""
    most = square.max(dim=1, keepdim=True).values
    moves = (square >= QUIET**2 * most) & (square > 0)
    total = square.sum(dim=1).clamp_min(1e-300)
    still = (~moves).to(square)
    apart = (square @ still.T) / total[:, None]
    others = torch.stack(
        [torch.cat([moves[:k], moves[k + 1 :]]).any(dim=0) for k in range(len(moves))]
    )
    alone = (square * ~others).sum(dim=1) / total
    off = apart + torch.eye(len(apart)).to(apart)  # a latent need not stand apart from itself
    return Supports(
        what,
        moves.double().mean(dim=1).numpy(),
        apart.numpy(),
        alone.numpy(),
        ((off >= ANCHOR).all(dim=1) & moves.any(dim=1)).numpy(),
    )
