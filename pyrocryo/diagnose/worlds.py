"""Generators to intervene in, learned or true, and the oracle that inverts them.

A pose φ here is a unit vector `(..., 2)` where the pair infers poses, and a rotation `(..., 3, 3)`
where it knows them (an encoder is then told the pose of what it is shown).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrocryo.diagnose.common import AT_ONCE, batches
from pyrocryo.imaging import modulated
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles, evenly
from pyrocryo.poses import shift_of, turn, turned
from pyrocryo.simulate.images import MARGIN

__all__ = ["Learned", "Truth", "misfit", "moved_by", "oracle"]

RATE = 0.1  # of the oracle's Adam


class Learned:
    """The world as a trained pair has it."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def latents(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What the guide reads off the particles; poses that are known, as they are."""
        z, phi = self.read(batch.images, None, batch)
        return z, batch.rotation if phi is None else phi

    def read(self, images: Tensor, phi: Tensor | None, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Posterior means of conformation and (inferred) pose of other images of a batch."""
        batch = self._shown(batch._replace(images=images), phi)
        direction = self.pair.pose_of(batch).mean if self.pair.pose.latent else None
        return self.pair.posterior_of(batch, direction).mean, direction

    def render(self, z: Tensor, phi: Tensor, batch: Any) -> Tensor:
        """Clean images of `z` in poses φ."""
        return self.pair.seen(z, self._shown(batch, phi), phi if self.pair.pose.latent else None)

    def log_prior(self, z: Tensor, batch: Any) -> Tensor:
        """Ln p(z) `(..., B)`."""
        return self.pair.prior_of(batch).log_prob(z)

    def taken(self, z: Tensor, phi: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Learned conformations and poses in the coordinates of this world."""
        return z, phi

    def _shown(self, batch: Any, phi: Tensor | None) -> Any:
        known = phi is not None and not self.pair.pose.latent
        return batch._replace(rotation=phi) if known and "rotation" in batch._fields else batch


class Truth:
    """The world of a known molecule, in the brightness of the particles.

    Learned conformations are taken there by the affine map, learned poses by the sign and offset
    that fit the particles' truth best; `z` is standard normal.

    Args:
        pair: The trained pair.
        molecule: With ``render``.
        particles: With ``truth`` and ``rotation``.
    """

    def __init__(self, pair: Pair, molecule: Any, particles: Particles) -> None:
        self.pair, self.molecule = pair, molecule
        self.scale, self.offset = 1.0, 0.0
        batch = pair.moved(particles.batch(evenly(len(particles), AT_ONCE)))
        clean = self.render(batch.truth, self._pose(batch.rotation), batch)
        centred = clean - clean.mean()
        self.scale = float((centred * batch.images).sum() / centred.square().sum())
        self.offset = float(batch.images.mean() - self.scale * clean.mean())
        found = [(*Learned(pair).latents(batch), batch) for batch in batches(pair, particles)]
        z = torch.cat([z.flatten(0, -2) for z, _, _ in found])
        truth = torch.cat([batch.truth.flatten(0, -2) for _, _, batch in found])
        one = torch.ones_like(z[:, :1])
        self._map = torch.linalg.lstsq(torch.cat([z, one], dim=1), truth).solution
        self._sign, self._turn = 1.0, torch.zeros(())
        if pair.pose.latent:
            phi = torch.cat([phi.flatten(0, -2) for _, phi, _ in found])
            true = torch.cat([self._pose(b.rotation).flatten(0, -2) for _, _, b in found])
            means = {s: turned(true, -s * _angle(phi)).mean(0) for s in (1.0, -1.0)}
            self._sign = max(means, key=lambda s: float(means[s].norm()))
            self._turn = _angle(means[self._sign])

    def latents(self, batch: Any) -> tuple[Tensor, Tensor]:
        """True conformations and poses."""
        return batch.truth, self._pose(batch.rotation)

    def render(self, z: Tensor, phi: Tensor, batch: Any) -> Tensor:
        """Clean images of `z` in poses φ, through the CTF where there is one."""
        rotation = turn(phi) if self.pair.pose.latent else phi
        shift = shift_of(batch) * batch.pixel_size
        size = {"box": self.pair.box, "pixel_size": float(batch.pixel_size)}
        images = self.molecule.render(z, rotation, shift, **size)
        if "ctf" in batch._fields:
            told = {"pixel_size": batch.pixel_size, "margin": MARGIN}
            images = modulated(images, batch.ctf, **told)
        return self.scale * images + self.offset

    def log_prior(self, z: Tensor, batch: Any) -> Tensor:
        """Ln p(z) `(..., B)`, but for a constant."""
        square = -0.5 * z.square().sum(-1)
        return square if batch.images.dim() == 3 else square.sum(-1)

    def taken(self, z: Tensor, phi: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Learned conformations and poses in true coordinates."""
        z = torch.cat([z, torch.ones_like(z[..., :1])], dim=-1) @ self._map
        if phi is None or not self.pair.pose.latent:
            return z, phi
        angle = self._sign * _angle(phi) + self._turn
        return z, torch.stack([angle.cos(), angle.sin()], dim=-1)

    def _pose(self, rotation: Tensor) -> Tensor:
        return rotation[..., :2, 0] if self.pair.pose.latent else rotation


def _angle(direction: Tensor) -> Tensor:
    return torch.atan2(direction[..., 1], direction[..., 0])


def moved_by(phi: Tensor, angle: Tensor) -> Tensor:
    """Poses turned in the plane by ``angle`` (rad)."""
    if phi.shape[-2:] == (3, 3):
        return turn(torch.stack([angle.cos(), angle.sin()], dim=-1)) @ phi
    return turned(phi, angle)


def oracle(
    world: Learned | Truth,
    images: Tensor,
    phi: Tensor,
    batch: Any,
    guess: tuple[Tensor, Tensor | None],
    *,
    starts: int,
    steps: int,
) -> tuple[Tensor, Tensor | None]:
    r""":math:`f^*(x) = \arg\max_{z, \phi} p(x | z, \phi) p(z, \phi)`, poses being uniform.

    By Adam from several starts, of which the best is kept image by image: the guess, and
    conformations at 0 in poses evenly around the circle from the guessed one. Poses that are
    known stay so; the further starts are then conformations drawn from a standard normal law.

    Args:
        world: Whose maximum.
        images: `(B, [T,] D, D)`.
        phi: Poses of the images, looked at where they are known.
        batch: The batch that the images stand in for.
        guess: Conformation and pose to start from.
        starts: How many, the guess among them.
        steps: Of Adam.
    """
    latent = world.pair.pose.latent
    first_z, first_phi = guess
    other = torch.zeros_like if latent else torch.randn_like
    z = torch.stack([first_z] + [other(first_z) for _ in range(starts - 1)])
    angle = z.new_zeros(z.shape[:-1])
    if latent:
        angle = angle + torch.linspace(0, 2 * math.pi, starts + 1)[:-1].to(z).view(
            -1, *[1] * (z.dim() - 2)
        )
    z, angle = z.detach().requires_grad_(), angle.detach().requires_grad_()
    optimiser = torch.optim.Adam([z, angle] if latent else [z], lr=RATE)

    def cost() -> Tensor:
        where = moved_by(first_phi, angle) if latent else phi
        fit = misfit(world.pair, images, world.render(z, where, batch))
        fit = fit if images.dim() == 3 else fit.sum(-1)
        return fit - world.log_prior(z, batch)

    with torch.enable_grad():
        for n in range(steps):
            optimiser.param_groups[0]["lr"] = RATE * (1 - n / steps)
            optimiser.zero_grad()
            cost().sum().backward()
            optimiser.step()
    with torch.no_grad():
        best = cost().argmin(dim=0)
        rows = torch.arange(len(best), device=best.device)
        found = moved_by(first_phi, angle[best, rows]) if latent else None
        return z[best, rows].detach(), found


def misfit(pair: Pair, images: Tensor, clean: Tensor) -> Tensor:
    """-ln p(x | clean) `(..., B, [T])` but for a constant, under the noise that the pair has."""
    sd = pair.noise.detach()
    if pair.likelihood is not None:
        return -pair.likelihood(clean, sd).log_prob(images)
    return 0.5 * ((images - clean) / sd).square().flatten(-2).sum(-1)
