"""A trained pair as the ground truth of others (Klindt et al. 2024, section 4.1)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pyrocryo.diagnose.common import MOST_NUMBERS, batches, models
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.poses import Absent
from pyrocryo.precision import applied
from pyrocryo.svi import Fit

__all__ = ["Generator"]

FEWEST = 20  # particles to know the spread of z from


class Generator:
    r"""A molecule that looks and moves as a trained pair has learned: :math:`g^* := g`.

    Whatever takes a molecule takes it: the functions of :mod:`pyrocryo.simulate` draw particles
    of it whose conformations are known.

        >>> learned = pc.diagnose.Generator(fit, particles)  # doctest: +SKIP
        >>> pc.simulate.time_resolved(learned, 8000, **learned.imaging)  # doctest: +SKIP

    Conformations are the pair's reported `z` in units of its aggregate posterior, component by
    component: at `s`, the molecule is decoded at :math:`z = m + \sigma s`. A standard normal `s`
    so covers what was learned, if components of `z` are independent in the posterior as they are
    in `s`; correlated ones are decoded where no particle was, which
    :func:`pyrocryo.diagnose.invertibility` looks at too. Turns are turns of the learned volume,
    whatever the pair knew of poses.

    Args:
        fit: A fit, or a trained pair; left as it is.
        particles: What it was trained on, or others like these.
        seed: Which seed of the fit; by default the first.

    Attributes:
        pair: A copy of the pair, whose weights are fixed.
        dim: Number of conformational coordinates.
        spatial: 2 for flat volumes, which turn in the plane, 3 for volumes in space.
        mean: `(K,)` mean `m` of `z` over the particles.
        sd: `(K,)` standard deviation :math:`\sigma`, spread of means and widths of posteriors
            together.
        snr: Variance of the clean images over that of the noise, as learned.

    Raises:
        InputError: If pair and particles do not go together, the pair has no pose, or a component
            never varies.
    """

    def __init__(self, fit: Fit | Pair, particles: Particles, *, seed: int | None = None) -> None:
        pairs = models(fit, particles, FEWEST)
        if seed is not None and seed not in pairs:
            raise InputError(f"seed: the fit has seeds {', '.join(map(str, pairs))}, not {seed}")
        pair = pairs[next(iter(pairs)) if seed is None else seed]
        if isinstance(pair.pose, Absent):
            raise InputError("fit: a pair without poses has them among its latents; nothing turns")
        self.pair = copy.deepcopy(pair).eval().requires_grad_(False)
        self.dim, self.spatial = pair.dim, pair.volume.dim
        self.box, self.pixel_size = pair.box, particles.pixel_size
        loc, variance, seen = [], [], []
        with torch.no_grad():
            for batch in batches(self.pair, particles):
                direction = self.pair.pose_of(batch).mean if pair.pose.latent else None
                law = self.pair.posterior_of(batch, direction)
                loc.append(law.mean.flatten(0, -2))
                variance.append(law.variance.flatten(0, -2))
                clean = self.pair.seen(law.mean, batch, direction)
                seen.append(clean.flatten(-2).var(dim=-1).flatten())
        loc, variance = torch.cat(loc), torch.cat(variance)
        self.mean = loc.mean(dim=0)
        self.sd = (loc.var(dim=0) + variance.mean(dim=0)).sqrt()
        if not (torch.isfinite(self.sd) & (self.sd > 0)).all():
            raise InputError(f"fit: a component of z never varies, sd {self.sd.tolist()}")
        self.snr = float(torch.cat(seen).mean() / self.pair.noise.square())

    @property
    def imaging(self) -> dict[str, Any]:
        """What :mod:`pyrocryo.simulate` needs to know to make images like those the pair has seen.

        Box, pixel size and SNR; where the pair sees through CTFs, so do the new images, each
        through a CTF that is drawn for it. Noise will be white, also where the pair knows a
        spectrum or a contrast; `simulate` takes both as options of their own.
        """
        told = {"snr": self.snr, "box": self.box, "pixel_size": self.pixel_size}
        return told | ({"ctf": True} if self.pair.optics is not None else {})

    def learned(self, s: Tensor) -> Tensor:
        """The pair's `z` `(..., K)` for standardised conformations `(..., K)`."""
        return self.mean + self.sd * s.to(self.mean)

    def standard(self, z: Tensor) -> Tensor:
        """Standardised conformations `(..., K)` for the pair's `z` `(..., K)`."""
        return (z.to(self.mean) - self.mean) / self.sd

    def render(
        self, z: Tensor, rotation: Tensor, shift: Tensor, *, box: int, pixel_size: float
    ) -> Tensor:
        """Clean images of standardised conformations in given poses, before any CTF.

        Args:
            z: `(..., K)`, in standard deviations from the mean.
            rotation: `(..., 3, 3)`; about the beam, where the volume is flat.
            shift: `(..., 2)` in Å.
            box: Pixels along an edge: those of the pair.
            pixel_size: Å per pixel: that of the particles.

        Returns:
            `(..., box, box)`, indexed `[y, x]`, where `z` is.
        """
        if z.shape[-1] != self.dim:
            raise InputError(f"z: expected {self.dim} numbers on the last axis, got {z.shape[-1]}")
        if box != self.box or abs(pixel_size / self.pixel_size - 1) > 1e-4:
            raise InputError(
                f"box: a learned molecule is known in {self.box} pixels of "
                f"{self.pixel_size:g} Å, not in {box} of {pixel_size:g} Å"
            )
        lead = torch.broadcast_shapes(z.shape[:-1], rotation.shape[:-2], shift.shape[:-1])
        u = applied(self.pair.rotation().T, self.learned(z)).expand(*lead, -1).flatten(0, -2)
        rotation = rotation.to(u).expand(*lead, 3, 3).reshape(-1, 3, 3)
        moved = (shift.to(u) / self.pixel_size).expand(*lead, 2).reshape(-1, 2)
        size = max(1, MOST_NUMBERS // self.pair.volume.numbers_an_image)
        parts = zip(u.split(size), rotation.split(size), moved.split(size), strict=True)
        images = torch.cat([self.pair.volume(*part) for part in parts])
        return images.reshape(*lead, box, box).to(z)
