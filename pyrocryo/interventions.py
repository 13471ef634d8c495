r"""Algorithm 1: pose and conformation taken apart, put together otherwise, and found again.

Klindt et al. 2024, section 3.2. Encode a batch, :math:`(z_i, \phi_i) = f(x_i)`, and take both as
given; exchange the poses, :math:`\phi'_i = \phi_{\sigma(i)}`; decode and encode once more,
:math:`(\hat z_i, \hat\phi_i) = f(g(z_i, \phi'_i))`; then

.. math:: L = \frac1N \sum_i d_Z(z_i, \hat z_i) + d_\Phi(\phi'_i, \hat\phi_i) \qquad (2)

with the Euclidean distance of conformations and the arc between poses (rad). A pair that knows the
two apart has none of it; so has a pair whose latents have collapsed, which is why Eq. 2 alone
shows nothing (:mod:`pyrocryo.diagnose.indices` gives it beside a floor).

What it does was measured on 33 seeds and three data sets in each of six regimes with a plain pose
head (``models/posevae.py``): Eq. 2 and the KL fall, the reconstruction gets worse, the leak of the
pose into `z` stays or grows, and at low signal conformations are lost. No variant that we tried
lowers the leak on data sets that it was not chosen on. What keeps the pose out is a pose head that
turns with the image, :class:`pyrocryo.guides.Polar`. A fit with interventions says so.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.poses import shift_given
from pyrocryo.unit_vectors import between

__all__ = ["Interventions", "arc", "until_converged"]

log = logging.getLogger("pyrocryo")

SHARPNESS = 10.0  # of the contrastive distance: variance of the batch over that of a match
SMALLEST = 1e-6  # squared: keeps the gradient of a distance finite where it is 0


@dataclass(frozen=True)
class Interventions:
    r"""Algorithm 1 as a further term of the loss.

    ``pc.fit(pair, particles, interventions=pc.Interventions(weight=5.0))``. Poses that are known
    have no :math:`d_\Phi`; what is left asks that the conformation does not change with the pose.

    Attributes:
        weight: Of Eq. 2 beside the negative ELBO (nats a particle).
        start: Steps (after the rigid ones) without it.
        ramp: Steps over which the weight then rises linearly.
        poses: "exchanged" within the batch, as published, or drawn afresh from the "prior".
        distance: "plain", as published; in units of the standard deviation of each latent in the
            "batch" or of each "posterior", neither of which has a gradient; or "contrastive": the
            cross-entropy of telling from :math:`(\hat z, \hat\phi)` which of the batch it was,
            which a collapse does not lower.
        gradients: Of both encoder and decoder, as published, or of the "encoder" alone.
        noise: Add observation noise to the decoded images.
        draws: Take draws of the posterior for `z` and pose, not their means.
        relative: Compare the turn between two poses of one conformation in place of each pose, so
            that a frame that turns with the conformation costs nothing.
    """

    weight: float = 5.0
    start: int = 0
    ramp: int = 0
    poses: Literal["exchanged", "prior"] = "exchanged"
    distance: Literal["plain", "batch", "posterior", "contrastive"] = "plain"
    gradients: Literal["both", "encoder"] = "both"
    noise: bool = True
    draws: bool = False
    relative: bool = False

    def __post_init__(self) -> None:
        for name in ("weight", "start", "ramp"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("poses", "distance", "gradients"):
            known = get_args(get_type_hints(Interventions)[name])
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.relative and self.distance == "contrastive":
            raise InputError("relative: the contrastive distance has no relative form")

    def check(self, pair: Pair) -> None:
        """Raises InputError where a pair has no poses to draw."""
        if not pair.pose.latent and (self.poses == "prior" or self.relative):
            asked = "relative" if self.relative else "poses"
            raise InputError(f"{asked}: these poses are known, and can only be exchanged")

    def warn(self) -> None:
        """Says what to look at afterwards."""
        log.warning(
            "Algorithm 1 lowers Eq. 2, but did not keep the pose out of z where we measured it "
            "(models/posevae.py); look at diagnose.pose_invariance and at held-out R² or ELBO"
        )

    def weight_at(self, step: int) -> float:
        """Weight at step 0, 1, ... after the rigid ones."""
        done = step + 1 - self.start
        if done <= 0:
            return 0.0
        return self.weight * min(1.0, done / self.ramp) if self.ramp else self.weight

    def __call__(self, pair: Pair, batch: Any) -> Tensor:
        """Eq. 2 of a batch, without its weight."""
        with torch.no_grad():
            direction, shift, z, spread = self._encoded(pair, batch)
        turns = 2 if self.relative else 1
        found = [self._again(pair, batch, z, direction, shift, n + 1) for n in range(turns)]
        if self.distance == "contrastive":
            return _contrast(z, *found[0])
        unit = self._unit(z, spread)
        total = torch.stack([_length((f - z) / unit) for _, f, _ in found]).mean()
        if direction is None:
            return total
        if self.relative:
            (p, _, q), (r, _, s) = found
            return total + arc(between(p, r), between(q, s)).mean()
        given, _, again = found[0]
        return total + arc(given, again).mean()

    def _encoded(
        self, pair: Pair, batch: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """Pose, shift (where unknown), conformation and posterior standard deviations of `z`."""
        direction = shift = None
        if pair.pose.latent:
            law = pair.pose_of(batch)
            direction = law.rsample() if self.draws else law.mean
            if pair.pose.shifts:
                shift = shift_given(law, direction).mean
        law = pair.posterior_of(batch, direction, shift)
        z = law.rsample() if self.draws else law.mean
        return direction, shift, z, law.variance.sqrt()

    def _again(
        self,
        pair: Pair,
        batch: Any,
        z: Tensor,
        direction: Tensor | None,
        shift: Tensor | None,
        by: int,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The pose given, and what is found again: conformation and pose."""
        if direction is None:
            batch = batch._make(  # all that is known of a particle but what it is
                value if name in ("images", "index", "pixel_size") else value.roll(by, 0)
                for name, value in zip(batch._fields, batch, strict=True)
            )
            given = None
        else:
            given = direction.roll(by, 0)
            if self.poses == "prior":
                given = pair.pose.prior(batch).sample()
        with torch.set_grad_enabled(self.gradients == "both"):
            images = pair.seen(z, batch, given, shift=shift)
        if self.noise:
            images = pair.replicated(images)
        if self.gradients == "encoder":
            images = images.detach()
        again, _, found, _ = self._encoded(pair, batch._replace(images=images))
        return given, found, again

    def _unit(self, z: Tensor, spread: Tensor) -> Tensor:
        if self.distance == "batch":
            return z.flatten(0, -2).std(dim=0) + 1e-3
        return spread if self.distance == "posterior" else torch.ones_like(z)


def until_converged(
    pair: Pair,
    particles: Particles,
    interventions: Interventions | None = None,
    *,
    steps: int = 5000,
    batch_size: int = 64,
    lr: float = 1e-3,
    patience: int = 200,
    seed: int = 0,
) -> tuple[Pair, np.ndarray]:
    """Algorithm 1 by itself, as published first: Eq. 2 alone is minimised until it has converged.

    Nothing holds the pair to its particles meanwhile, so look at its ELBO and R² afterwards.

    Args:
        pair: A trained pair; left as it is.
        particles: To take conformations and poses from.
        interventions: Which form of Eq. 2 (its weight and schedule are not looked at).
        steps: At most.
        batch_size: Particles a step.
        lr: Of Adam.
        patience: It has converged when the mean over as many steps is no longer 1 % below that of
            as many before.
        seed: Of the order of particles and of the noise.

    Returns:
        The pair, and Eq. 2 at each step.
    """
    chosen = interventions or Interventions()
    for name, value in {"steps": steps, "batch_size": batch_size, "patience": patience}.items():
        if value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    pair.check(particles)
    chosen.check(pair)
    pair, rng = copy.deepcopy(pair), np.random.default_rng(seed)
    optimiser = torch.optim.Adam([p for p in pair.parameters() if p.requires_grad], lr=lr)
    history: list[float] = []
    size = min(batch_size, len(particles))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        while len(history) < steps:
            rows = rng.choice(len(particles), size, replace=False)
            optimiser.zero_grad()
            loss = chosen(pair, pair.moved(particles.batch(rows)))
            loss.backward()
            optimiser.step()
            history.append(loss.item())
            if len(history) % patience == 0 and len(history) >= 2 * patience:
                before, now = np.reshape(history[-2 * patience :], (2, patience)).mean(axis=1)
                if now > 0.99 * before:
                    break
    return pair, np.array(history)


def _length(difference: Tensor) -> Tensor:
    return (difference.square().sum(-1) + SMALLEST).sqrt()


def arc(p: Tensor, q: Tensor) -> Tensor:
    r"""Geodesic distance (rad) `(...,)` of poses given as unit vectors `(..., 2)` or `(..., 4)`.

    On the circle the arc between the two; of unit quaternions the angle of the rotation between
    them, the same for q and -q. By the half-angle formula, which is accurate at both ends.
    """
    apart, sum_ = _length(p - q), _length(p + q)
    if p.shape[-1] == 2:
        return 2 * torch.atan2(apart, sum_)
    return 4 * torch.atan2(torch.minimum(apart, sum_), torch.maximum(apart, sum_))


def _contrast(z: Tensor, given: Tensor | None, found: Tensor, again: Tensor | None) -> Tensor:
    """Cross-entropy of naming the conformation, and then the pose, among those of the batch."""
    total = _named(found, z)
    return total if given is None else total + _named(again, given)


def _named(found: Tensor, among: Tensor) -> Tensor:
    found, among = found.flatten(0, -2), among.flatten(0, -2)
    width = among.var(dim=0).sum().clamp_min(SMALLEST) / SHARPNESS
    distance = (found.unsqueeze(1) - among).square().sum(-1)
    odds = torch.log_softmax(-distance / (2 * width), dim=1)
    return -odds.diagonal().mean()
