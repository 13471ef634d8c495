r"""The six indices of pose and conformation, each beside what an ignorant encoder scores.

Klindt et al. 2024, appendix A. With the volume `v`, the optics :math:`\pi_\phi`, the generator `g`
(the learned one, or the true one where the molecule is known) and the encoder
:math:`f = (f_z, f_\phi)` (the pair's guide, or an oracle), means over conformations, poses and
steps δz, δφ:

======  ====================================  ==============================================
``vc``  volume consistency                    :math:`|z - f_z(\pi_\phi(v_z))|^2`
``vi``  volume pose invariance                :math:`|\phi - f_\phi(\pi_\phi(v_z))|^2`
``cc``  conformation-encoder consistency      :math:`|z - f_z(g(z, \phi))|^2`
``ci``  conformation-encoder pose invariance  :math:`|f_z(g(z, \phi)) - f_z(g(z, \phi+δ\phi))|^2`
``pc``  pose-encoder consistency              :math:`|\phi - f_\phi(g(z, \phi))|^2`
``pi``  pose-encoder conform. invariance  :math:`|f_\phi(g(z, \phi)) - f_\phi(g(z+δz, \phi))|^2`
======  ====================================  ==============================================

Conformations in units of `z` squared, poses in rad² (arcs). With the learned generator ``vc`` and
``cc`` are one number, and so are ``vi`` and ``pc``. Small ones alone show nothing, as constant
latents have the smallest: read each against its floor, and beside R².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrocryo.diagnose.common import AT_ONCE, models
from pyrocryo.diagnose.worlds import Learned, Truth, moved_by, oracle
from pyrocryo.errors import InputError
from pyrocryo.interventions import arc
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["NAMES", "Indices", "indices"]

NAMES = ("vc", "vi", "cc", "ci", "pc", "pi")
FEWEST = 20


@dataclass(frozen=True)
class Indices:
    """The six indices of each seed, in the order of ``NAMES``; arrays `(seeds, 6)`.

    Attributes:
        seeds: Seeds.
        value: The indices; those of the pose are NaN where poses are known.
        error: Their standard errors.
        random: What an encoder scores whose answers belong to other particles.
        spread: `(seeds,)` mean variance of `z`, summed over latents: near 0 they have collapsed.
    """

    seeds: tuple[int, ...]
    value: np.ndarray
    error: np.ndarray
    random: np.ndarray
    spread: np.ndarray

    def rows(self) -> list[dict[str, float | str]]:
        """One flat row for each seed and index."""
        return [
            {
                "seed": seed,
                "index": name,
                "value": float(self.value[s, i]),
                "error": float(self.error[s, i]),
                "random": float(self.random[s, i]),
            }
            for s, seed in enumerate(self.seeds)
            for i, name in enumerate(NAMES)
        ]

    def __str__(self) -> str:
        lines = [f"{'seed':>4}  {'index':5}  {'value':>9}  {'± s.e.':>9}  {'random':>9}"]
        lines += [
            f"{row['seed']:>4}  {row['index']:5}  {row['value']:9.4f}  {row['error']:9.4f}  "
            f"{row['random']:9.4f}"
            for row in self.rows()
        ]
        return "\n".join(lines)


def indices(
    fit: Fit | Pair,
    particles: Particles,
    *,
    molecule: Any = None,
    encoder: Literal["guide", "oracle"] = "guide",
    pose_step: float = 30.0,
    z_step: float = 1.0,
    noise: bool = True,
    most: int = 512,
    starts: int = 8,
    steps: int = 150,
    seed: int = 0,
) -> Indices:
    """The six indices on particles that were not trained on.

    Conformations are those that the guide reads off the particles (or the true ones, for a true
    generator), each shown in the pose of another particle. Where encoder and generator speak of
    different coordinates, learned `z` are mapped to true ones by the affine regression of the
    particles' truth on what the guide reads, and poses by one offset and sign.

        >>> pc.diagnose.indices(fit, particles.test)  # doctest: +SKIP

    Args:
        fit: A fit, or a trained pair.
        particles: Flat ones; for a true generator with ``truth`` and ``rotation``.
        molecule: The true generator, such as :class:`pyrocryo.molecules.Arms`; None for the
            learned one.
        encoder: "guide": posterior means. "oracle": the conformation and pose of highest
            posterior density under the generator, by optimisation from several starts.
        pose_step: Standard deviation of δφ in degrees.
        z_step: Standard deviation of δz, in standard deviations of each component of `z`.
        noise: Add observation noise to generated images, which is what encoders are used to.
        most: Particles used.
        starts: Of the oracle: the guide's answer, and poses around the circle.
        steps: Of the oracle's optimiser.
        seed: Draws poses, steps and noise.

    Raises:
        InputError: If the particles are too few, tilted, or lack the truth that is asked for.
    """
    if encoder not in ("guide", "oracle"):
        raise InputError(f"encoder: expected 'guide' or 'oracle', got {encoder!r}")
    for name, value in {"pose_step": pose_step, "z_step": z_step}.items():
        if not value > 0:
            raise InputError(f"{name}: expected a positive number, got {value}")
    pairs = models(fit, particles, FEWEST)
    if any(pair.volume.dim != 2 for pair in pairs.values()):
        raise InputError("fit: the indices take poses in the plane; this volume has dim=3")
    for name in ("truth", "rotation") if molecule is not None else ():
        if name not in particles.fields:
            raise InputError(f"molecule: a true generator needs the {name} of the particles")
    particles = particles.spread(most)
    parts = []
    for pair in pairs.values():
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            learned = Learned(pair)
            world = learned if molecule is None else Truth(pair, molecule, particles)
            told = {"starts": starts, "steps": steps} if encoder == "oracle" else None
            experiment = _Experiment(learned, world, told, noise)
            step = np.deg2rad(pose_step), z_step
            one = [
                experiment(pair.moved(particles.batch(rows)), *step)
                for rows in particles.chunks(AT_ONCE)
            ]
        parts.append(
            [torch.cat(column).double().cpu().numpy() for column in zip(*one, strict=True)]
        )
    value = np.array([[column.mean(0) for column in columns[:-1]] for columns in parts])
    error = [[c[:, 0].std() / len(c) ** 0.5 for c in columns[:-1]] for columns in parts]
    spread = [columns[-1].var(axis=0).sum() for columns in parts]
    return Indices(tuple(pairs), value[..., 0], np.array(error), value[..., 1], np.array(spread))


class _Experiment:
    """Interventions in one world, read by one encoder."""

    def __init__(
        self, learned: Learned, world: Learned | Truth, told: dict[str, int] | None, noise: bool
    ) -> None:
        self.learned, self.world, self.told, self.noise = learned, world, told, noise

    def __call__(self, batch: Any, pose_step: float, z_step: float) -> list[Tensor]:
        """The six indices of each image beside those of strangers, `(n, 2)` each; and `z`."""
        learned, world = self.learned, self.world
        z, phi = learned.latents(batch)
        phi = phi.roll(1, 0)
        found = self._read(learned.render(z, phi, batch), phi, batch)
        here, where = world.taken(z, phi)
        vc = _square(here, found[0])
        vi = _arcs(where, found[1], vc)
        cc, pc = vc, vi
        if world is not learned:
            z, phi = world.latents(batch)
            phi = phi.roll(1, 0)
            found = self._read(world.render(z, phi, batch), phi, batch)
            cc, pc = _square(z, found[0]), _arcs(phi, found[1], vc)
        other = moved_by(phi, pose_step * torch.randn_like(z[..., 0]))
        in_turn = self._read(world.render(z, other, batch), other, batch)
        step = z_step * z.flatten(0, -2).std(dim=0) * torch.randn_like(z)
        bent = self._read(world.render(z + step, phi, batch), phi, batch)
        ci, pi = _square(found[0], in_turn[0]), _arcs(found[1], bent[1], vc)
        return [vc, vi, cc, ci, pc, pi, here.flatten(0, -2)]

    def _read(self, images: Tensor, phi: Tensor, batch: Any) -> tuple[Tensor, Tensor | None]:
        if self.noise:
            images = self.learned.pair.replicated(images)
        guess = self.world.taken(*self.learned.read(images, phi, batch))
        if self.told is None:
            return guess
        return oracle(self.world, images, phi, batch, guess, **self.told)


def _square(z: Tensor, found: Tensor) -> Tensor:
    both = [(z - answer).square().sum(-1) for answer in (found, found.roll(1, 0))]
    return torch.stack(both, dim=-1).flatten(0, -2)


def _arcs(phi: Tensor | None, found: Tensor | None, like: Tensor) -> Tensor:
    if phi is None or found is None:  # poses are known
        return torch.full_like(like, float("nan"))
    both = [arc(phi, answer).square() for answer in (found, found.roll(1, 0))]
    return torch.stack(both, dim=-1).flatten(0, -2)
