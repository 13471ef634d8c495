"""The variational lookup table: no encoder at all, a row of numbers for every particle."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrocryo.errors import InputError
from pyrocryo.particles import Particles

__all__ = ["LookupTable"]

SMALLEST_SD = 1e-4
FIRST_SPREAD = 0.1  # of the means as they start, in units of the prior's


class LookupTable(nn.Module):
    r"""Means and Cholesky factors of `u` looked up by the particle's ``index``, not read off it.

    .. math:: q(u | i) = N(\mu_i, L_i L_i^\top)

    An auto-decoder: what the best encoder could do at most, with no network to blame (Edelberg &
    Lederman 2023, section on the variational lookup table). It knows nothing of particles that it
    was not trained on: their rows stay as they started, so neither the ELBO nor a posterior of
    held-out particles means anything under it (:func:`pyrocryo.diagnose.amortisation_gap` fits
    them one by one instead).

    A particle is seen once an epoch, while Adam goes on moving its row for some ten steps more:
    train it longer than an encoder. All rows have moments in the optimiser, three times the
    table in memory: good for 10⁵ particles, not for 10⁷.

    Example::

        pc.Pair(prior, volume, box=particles.box, guide=pc.guides.LookupTable(len(particles)))

    Args:
        n: Rows: particles in the whole stack, held-out ones included, as ``index`` counts them.
        frames: Frames T of each particle, None where a particle is one image.
        speed: How many times faster than a network's weights the rows move.
    """

    def __init__(self, n: int, *, frames: int | None = None, speed: float = 20.0) -> None:
        super().__init__()
        if n < 1:
            raise InputError(f"n: expected at least one particle, got {n}")
        if frames is not None and frames < 1:
            raise InputError(f"frames: expected at least one, or None, got {frames}")
        if not speed > 0:
            raise InputError(f"speed: expected a positive number, got {speed}")
        self.n = int(n)
        self.frames = frames
        self.speed = float(speed)

    def build(self, latent: int, box: int, volume: nn.Module) -> LookupTable:
        """Makes the table for K = ``latent``; images are not looked at."""
        self.latent = latent
        rows = (self.n,) if self.frames is None else (self.n, self.frames)
        self.loc = nn.Parameter(torch.empty(*rows, latent))
        self.diagonal = nn.Parameter(torch.empty(*rows, latent))
        self.below = nn.Parameter(torch.empty(*rows, latent * (latent - 1) // 2))
        below = torch.tril_indices(latent, latent, offset=-1)
        self.register_buffer("_below", below, persistent=False)
        self.reset_parameters()
        return self

    def extra_repr(self) -> str:
        """What decides its answer beside the rows: resuming goes by it."""
        return f"n={self.n}, frames={self.frames}, speed={self.speed:g}"

    def reset_parameters(self) -> None:
        """Means near 0, so that particles can part; standard deviations of ln 2."""
        nn.init.normal_(self.loc, std=FIRST_SPREAD / self.speed)
        nn.init.zeros_(self.diagonal)
        nn.init.zeros_(self.below)

    def check(self, particles: Particles) -> None:
        """Raises InputError if the particles have no rows of their own in the table."""
        if particles.frames != self.frames:
            raise InputError(
                f"frames: the lookup table was made for {self.frames}, the particles have "
                f"{particles.frames}"
            )
        index = particles.index
        if index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= self.n:
            raise InputError(
                f"index: the lookup table has rows 0 to {self.n - 1}, the particles ask for "
                f"{index.min()} to {index.max()}; n counts the whole stack"
            )
        if (rows := len(np.unique(index))) < len(index):
            raise InputError(
                f"index: {len(index)} particles would share {rows} rows of the lookup table"
            )

    def forward(
        self, images: Tensor, rotation: Tensor, shift: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean `(..., K)` and Cholesky factor `(..., K, K)` of the posterior in each row.

        Args:
            images: `(B, [T,] D, D)`, not used.
            rotation: `(..., B, [T,] 3, 3)`; may have leading axes (draws of a pose), else not
                used.
            shift: Not used.
            index: `(B,)` rows.
        """
        lead = rotation.shape[:-2]
        scale = torch.diag_embed(softplus(self.speed * self.diagonal[index]) + SMALLEST_SD)
        scale[..., self._below[0], self._below[1]] = self.speed * self.below[index]
        loc = self.speed * self.loc[index]
        return loc.expand(*lead, -1), scale.expand(*lead, -1, -1)
