r"""``refined``: posteriors that start from the encoder, improved on each particle alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrocryo import unit_vectors
from pyrocryo.directions import PlanarNormal
from pyrocryo.errors import InputError
from pyrocryo.joint_normal import JointNormal
from pyrocryo.natural_gradient import (
    Normal,
    block_diagonal,
    blocks_of,
    improved,
    marginal,
    scale_of,
    tied,
)
from pyrocryo.pair import Pair
from pyrocryo.poses import InPlane, turned
from pyrocryo.rotated_normal import RotatedNormal
from pyrocryo.svi import Fit

__all__ = ["refined"]

LARGEST_SD = 0.6  # rad, of angles in the plane
MOST_NUMBERS = 50_000_000  # held at once while decoding (200 MB)
STARTS = 36  # turns around the circle that are tried first


def refined(fit: Fit, *, steps: int = 6) -> Fit:
    r"""The same models, whose posteriors are improved on each particle, a few steps each.

    Semi-amortised: the encoder's answer is where it starts, and the best normal under the model
    itself (its decoder, prior, noise and optics, all frozen) is where it goes: at

    .. math:: \Sigma^{-1} = -E_q[\nabla^2 \ln p(x, z)], \quad E_q[\nabla \ln p(x, z)] = 0

    (Opper & Archambeau 2009), by natural-gradient steps (Khan & Lin 2017), which are Newton's
    where the posterior is a normal. Expectations of the likelihood are taken from its values alone
    at 2 d² + 1 points, exact to the fifth degree (McNamee & Stenger 1967), so any decoder, optics
    and noise will do; those of the prior from its KL, or else from 32 draws. A step that
    lowers a particle's ELBO is taken back and a smaller one tried.

    Frames that a transition prior ties together get the covariances between them as well
    (:class:`pyrocryo.joint_normal.JointNormal`). Of angles in the plane that are unknown, the
    angle is improved together with `z`, and `z` is then a normal given the angle. It starts from
    the pose guide's answer or, where another of 36 turns around the circle fits better, with `z`
    read at that turn, from there: a pose guide that was trained into a wrong peak is not
    believed. Rotations in space stay as the pose guide says; `z` is improved at each draw of them.

    Nothing is trained: what is returned goes wherever a fit does (:func:`pyrocryo.posterior`,
    :mod:`pyrocryo.diagnose`), and each step costs 2 d² + 1 images a particle, d = K, or K + 1 with
    an angle (and 36 images at first). What its credible sets hold, and what it costs, is in
    ``docs/calibrate_and_trust.md``.

    Example::

        better = pc.refined(fit)
        post = pc.posterior(better, particles.test)

    Args:
        fit: A fit.
        steps: Steps; from a trained encoder 4 to 6 are enough.
    """
    if not isinstance(fit, Fit):
        raise InputError(f"fit: expected a Fit, got {type(fit).__name__}")
    if steps < 1:
        raise InputError(f"steps: expected at least 1, got {steps}")
    pairs = []
    for pair in fit.pairs:
        new = copy.deepcopy(pair).eval()
        new.__class__ = _Refined if type(pair) is Pair else type("_", (_Refined, type(pair)), {})
        new.refining, new.answers = int(steps), None
        pairs.append(new)
    return replace(fit, pairs=pairs)


class _Refined(Pair):
    """A pair whose guide's answers are improved before they are given."""

    refining: int
    answers: tuple[Any, Normal, Tensor] | None  # of the batch that was asked for last

    def pose_of(self, batch: Any) -> Any:
        if not isinstance(self.pose, InPlane):
            return super().pose_of(batch)
        q, centre = self._together(batch)
        frames = batch.images.dim() == 4
        angle = q.loc[..., 0] if frames else q.loc[..., 0, 0]
        sd = marginal(q)[..., 0, :].norm(dim=-1)
        sd = sd if frames else sd[..., 0]
        law = PlanarNormal(turned(centre, angle) / sd.clamp_max(LARGEST_SD).unsqueeze(-1))
        return law.to_event(1) if frames else law

    def posterior_of(
        self, batch: Any, direction: Tensor | None = None, shift: Tensor | None = None
    ) -> Any:
        frames = batch.images.dim() == 4
        with torch.no_grad():
            if isinstance(self.pose, InPlane):
                if direction is None:
                    direction = self.pose_of(batch).mean
                return self._given(batch, direction)
            law = super().posterior_of(batch, direction, shift)
            loc, scale = law.mean, scale_of(law)
            loc = loc if frames else loc.unsqueeze(-2)
            where = (direction, shift)

            def likelihood(theta: Tensor) -> Tensor:
                z = theta if frames else theta.squeeze(-2)
                found = self._likelihood(z, batch, *where)
                return found if frames else found.unsqueeze(-1)

            q = self._improved(batch, Normal(loc, scale), likelihood)
            still = torch.eye(self.dim, dtype=loc.dtype, device=loc.device)
            if not frames:
                return RotatedNormal(q.loc.squeeze(-2), q.scale, still)
            if tied(self.prior_of(batch)):
                return JointNormal(q.loc, q.scale, still)
            return RotatedNormal(q.loc, marginal(q), still).to_event(1)

    def _together(self, batch: Any) -> tuple[Normal, Tensor]:
        """Angles from a centre, and `z`, of the particles in ``batch``; kept until the next."""
        if self.answers is not None and self.answers[0] is batch:
            return self.answers[1:]
        frames = batch.images.dim() == 4
        with torch.no_grad():
            pose = super().pose_of(batch)
            centre = self._best_start(batch, pose.mean)
            law = super().posterior_of(batch, centre)
            one = pose.base_dist if frames else pose
            sd = 1 / one.concentration.norm(dim=-1, keepdim=True).clamp_min(1 / LARGEST_SD)
            z = law.mean if frames else law.mean.unsqueeze(-2)
            sd = sd if frames else sd.unsqueeze(-2)
            loc = torch.cat([torch.zeros_like(z[..., :1]), z], dim=-1)
            each = blocks_of(scale_of(law), z.shape[-2])
            scale = each.new_zeros(*each.shape[:-2], self.dim + 1, self.dim + 1)
            scale[..., 0, 0] = sd.squeeze(-1)
            scale[..., 1:, 1:] = each

            def likelihood(theta: Tensor) -> Tensor:
                theta = theta if frames else theta.squeeze(-2)
                direction = turned(centre, theta[..., 0])
                found = self._likelihood(theta[..., 1:], batch, direction, None)
                return found if frames else found.unsqueeze(-1)

            q = self._improved(batch, Normal(loc, block_diagonal(scale)), likelihood)
        self.answers = (batch, q, centre)
        return q, centre

    def _best_start(self, batch: Any, centre: Tensor) -> Tensor:
        """The turn to start from: the pose guide's, or one around the circle that fits better."""
        angle = torch.arange(STARTS, dtype=centre.dtype, device=centre.device)
        angle = angle * (2 * math.pi / STARTS)  # the first is the guide's own
        found = []
        for turn in angle:  # one at a time: a batch of images each
            direction = turned(centre, turn.expand(centre.shape[:-1]))
            z = super().posterior_of(batch, direction).mean
            found.append(self._likelihood(z, batch, direction, None))
        best = torch.stack(found).nan_to_num(nan=-math.inf).argmax(0)
        return turned(centre, angle[best])

    def _given(self, batch: Any, direction: Tensor) -> Any:
        """The law of `z` at an angle."""
        q, centre = self._together(batch)
        frames = batch.images.dim() == 4
        factor, loc = marginal(q), q.loc
        if not frames:
            factor, loc = factor.squeeze(-3), loc.squeeze(-2)
        angle = unit_vectors.angles(centre, direction).squeeze(-1) - loc[..., 0]
        angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        gain = factor[..., 1:, 0] / factor[..., :1, 0]
        z = loc[..., 1:] + gain * angle.unsqueeze(-1)
        still = torch.eye(self.dim, dtype=loc.dtype, device=loc.device)
        law = RotatedNormal(z, factor[..., 1:, 1:], still)
        return law.to_event(1) if frames else law

    def _likelihood(
        self, z: Tensor, batch: Any, direction: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        """Logarithm of p(x | z, pose) of each image, `(..., B[, T])`."""
        law = self._law(self.seen(z, batch, direction, None, shift))
        found = law.log_prob(batch.images)
        return found if law.event_shape else found.sum((-1, -2))

    def _improved(self, batch: Any, q: Normal, likelihood: Callable[[Tensor], Tensor]) -> Normal:
        each = self.volume.numbers_an_image * q.loc[..., 0].numel()
        return improved(
            q,
            likelihood,
            self.prior_of(batch),
            angles=q.loc.shape[-1] - self.dim,
            steps=self.refining,
            at_once=max(1, MOST_NUMBERS // each),
        )
