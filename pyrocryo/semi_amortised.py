r"""``refined``: posteriors that start from the encoder, improved on each particle alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrocryo.charts import Plane, Space, chart_of
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
from pyrocryo.poses import shift_given, turned
from pyrocryo.precision import applied
from pyrocryo.rotated_normal import RotatedNormal
from pyrocryo.svi import Fit

__all__ = ["refined"]

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
    (:class:`pyrocryo.joint_normal.JointNormal`). Poses that are unknown are improved together
    with `z`, each frame alone, and `z` is then a normal given the pose:

    - Angles in the plane start from the pose guide's answer or, where another of 36 turns around
      the circle fits better, with `z` read at that turn, from there: a pose guide that was trained
      into a wrong peak is not believed.
    - Rotations in space, and shifts, start from the pose guide's answer; no other turns are tried.
      Of several peaks (:class:`pyrocryo.guides.Search`) each is improved, and weighed by its ELBO.
      Several peaks in each of several frames stay as the pose guide says, and so do poses whose
      guide answers with another law; `z` is then improved at each draw of them, which is slow.

    Nothing is trained: what is returned goes wherever a fit does (:func:`pyrocryo.posterior`,
    :mod:`pyrocryo.diagnose`), and each step costs 2 d² + 1 images a particle (and a peak): d = K,
    K + 1 with an angle (and 36 images at first), K + 3 with a rotation and K + 5 with a shift too.
    Answers are kept for the batch, so that draws of the pose cost nothing more. What its credible
    sets hold, and what it costs, is in ``docs/calibrate_and_trust.md``.

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
        new.refining, new.answer = int(steps), None
        pairs.append(new)
    return replace(fit, pairs=pairs)


class _Answer(NamedTuple):
    """What is said of the particles of a batch.

    Attributes:
        batch: Which.
        pose: The law of their poses.
        chart: Where their poses are numbers; None if they stay as the pose guide says.
        q: Poses and `z` together.
    """

    batch: Any
    pose: Any
    chart: Plane | Space | None
    q: Normal | None


class _Refined(Pair):
    """A pair whose guide's answers are improved before they are given."""

    refining: int
    answer: _Answer | None  # of the batch that was asked for last

    def pose_of(self, batch: Any) -> Any:
        return self._together(batch).pose

    def posterior_of(
        self, batch: Any, direction: Tensor | None = None, shift: Tensor | None = None
    ) -> Any:
        with torch.no_grad():
            if not self.pose.latent or self._together(batch).q is None:
                return self._alone(batch, direction, shift)
            pose = self._together(batch).pose
            direction = pose.mean if direction is None else direction
            if self._shifts and shift is None:
                shift = shift_given(pose, direction).mean
            return self._given(batch, direction, shift)

    def _alone(self, batch: Any, direction: Tensor | None, shift: Tensor | None) -> Any:
        """The law of `z`, improved at one pose."""
        frames = batch.images.dim() == 4
        law = super().posterior_of(batch, direction, shift)
        loc = law.mean if frames else law.mean.unsqueeze(-2)

        def likelihood(theta: Tensor, centre: Tensor) -> Tensor:
            z = theta if frames else theta.squeeze(-2)
            found = self._likelihood(z, batch, direction, shift)
            return found if frames else found.unsqueeze(-1)

        start = Normal(loc, scale_of(law), loc[..., :0])
        q, _ = self._improved(batch, start, likelihood)
        still = torch.eye(self.dim, dtype=loc.dtype, device=loc.device)
        if not frames:
            return RotatedNormal(q.loc.squeeze(-2), q.scale, still)
        if tied(self.prior_of(batch)):
            return JointNormal(q.loc, q.scale, still)
        return RotatedNormal(q.loc, marginal(q), still).to_event(1)

    def _together(self, batch: Any) -> _Answer:
        """Poses and `z` of the particles in ``batch``; kept until the next."""
        if self.answer is not None and self.answer.batch is batch:
            return self.answer
        frames = batch.images.dim() == 4
        with torch.no_grad():
            pose = super().pose_of(batch)
            one = pose.base_dist if frames else pose
            chart = chart_of(self.pose, one)
            if chart is None or (frames and chart.several):
                self.answer = _Answer(batch, pose, None, None)
                return self.answer
            start = self._start(batch, chart, one)

            def likelihood(theta: Tensor, centre: Tensor) -> Tensor:
                if not frames:
                    theta, centre = theta.squeeze(-2), centre.squeeze(-2)
                n = chart.numbers
                where = chart.placed(centre, theta[..., :n])
                found = self._likelihood(theta[..., n:], batch, *where)
                found = found + chart.log_prior(self.pose, batch, theta, *where)
                return found if frames else found.unsqueeze(-1)

            q, elbo = self._improved(batch, start, likelihood, chart)
            law = chart.law(*_by_image(q, frames), elbo)
        self.answer = _Answer(batch, law.to_event(1) if frames else law, chart, q)
        return self.answer

    def _start(self, batch: Any, chart: Plane | Space, pose: Any) -> Normal:
        """What the guides say."""
        centre, loc, scale = chart.start(pose)
        if isinstance(chart, Plane):
            centre = self._best_start(batch, centre)
        law = super().posterior_of(batch, *chart.placed(centre, loc))
        theta = torch.cat([loc, law.mean], dim=-1)
        n, d = chart.numbers, theta.shape[-1]
        frames = batch.images.dim() == 4
        if not frames:
            theta, centre, scale = theta.unsqueeze(-2), centre.unsqueeze(-2), scale.unsqueeze(-3)
        each = scale.new_zeros(*theta.shape, d)
        each[..., :n, :n] = scale
        each[..., n:, n:] = blocks_of(scale_of(law), theta.shape[-2])
        return Normal(theta, block_diagonal(each), centre)

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

    def _given(self, batch: Any, direction: Tensor, shift: Tensor | None) -> Any:
        """The law of `z` at a pose."""
        _, pose, chart, q = self._together(batch)
        frames = batch.images.dim() == 4
        if chart.several:
            rows = torch.arange(len(batch.images), device=direction.device)
            which = pose.responsible(direction)
            q = Normal(*(part[which, rows] for part in q))
        centre, loc, scale = _by_image(q, frames)
        n = chart.numbers
        away = chart.read(centre, direction, shift) - loc[..., :n]
        scale = scale.expand(*away.shape[:-1], *scale.shape[-2:])
        white = torch.linalg.solve_triangular(
            scale[..., :n, :n], away.unsqueeze(-1), upper=False
        ).squeeze(-1)
        z = loc[..., n:] + applied(scale[..., n:, :n], white)
        still = torch.eye(self.dim, dtype=loc.dtype, device=loc.device)
        law = RotatedNormal(z, scale[..., n:, n:], still)
        return law.to_event(1) if frames else law

    def _likelihood(
        self, z: Tensor, batch: Any, direction: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        """Logarithm of p(x | z, pose) of each image, `(..., B[, T])`."""
        law = self._law(self.seen(z, batch, direction, None, shift))
        found = law.log_prob(batch.images)
        return found if law.event_shape else found.sum((-1, -2))

    def _improved(
        self,
        batch: Any,
        q: Normal,
        likelihood: Callable[[Tensor, Tensor], Tensor],
        chart: Plane | Space | None = None,
    ) -> tuple[Normal, Tensor]:
        each = self.volume.numbers_an_image * q.loc[..., 0].numel()
        return improved(
            q,
            likelihood,
            self.prior_of(batch),
            poses=0 if chart is None else chart.numbers,
            moved=None if chart is None else chart.moved,
            steps=self.refining,
            at_once=max(1, MOST_NUMBERS // each),
        )


def _by_image(q: Normal, frames: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, mean and factor `(..., B[, T], ...)` of each image."""
    parts = q.centre, q.loc, marginal(q)
    axes = -2, -2, -3
    return parts if frames else tuple(p.squeeze(k) for p, k in zip(parts, axes, strict=True))
