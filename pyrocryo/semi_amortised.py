r"""``refined``: posteriors that start from the encoder, improved on each particle alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrocryo import unit_vectors
from pyrocryo.directions import PlanarNormal
from pyrocryo.errors import InputError
from pyrocryo.joint_normal import JointNormal
from pyrocryo.pair import Pair
from pyrocryo.poses import InPlane, turned
from pyrocryo.precision import applied
from pyrocryo.rotated_normal import RotatedNormal
from pyrocryo.svi import Fit

__all__ = ["refined"]

FURTHEST = 4.0  # standard deviations that a mean moves in a step
MOST = 9.0  # times that a precision grows or shrinks in a step
SLACK = 0.01  # nats that an ELBO may seem to fall by, as rounding and cubature go
PRIOR_DRAWS = 32  # of a prior without KL in closed form
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


class _Normal(NamedTuple):
    """Of all frames of a molecule: mean `(..., F, d)`, Cholesky factor `(..., F d, F d)`."""

    loc: Tensor
    scale: Tensor


class _Refined(Pair):
    """A pair whose guide's answers are improved before they are given."""

    refining: int
    answers: tuple[Any, _Normal, Tensor] | None  # of the batch that was asked for last

    def pose_of(self, batch: Any) -> Any:
        if not isinstance(self.pose, InPlane):
            return super().pose_of(batch)
        q, centre = self._together(batch)
        frames = batch.images.dim() == 4
        angle = q.loc[..., 0] if frames else q.loc[..., 0, 0]
        sd = _marginal(q)[..., 0, :].norm(dim=-1)
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
            loc, scale = law.mean, _scale_of(law)
            loc = loc if frames else loc.unsqueeze(-2)
            where = (direction, shift)

            def likelihood(theta: Tensor) -> Tensor:
                z = theta if frames else theta.squeeze(-2)
                found = self._likelihood(z, batch, *where)
                return found if frames else found.unsqueeze(-1)

            q = self._improved(batch, _Normal(loc, scale), likelihood)
            still = torch.eye(self.dim, dtype=loc.dtype, device=loc.device)
            if not frames:
                return RotatedNormal(q.loc.squeeze(-2), q.scale, still)
            if _tied(self.prior_of(batch)):
                return JointNormal(q.loc, q.scale, still)
            return RotatedNormal(q.loc, _marginal(q), still).to_event(1)

    def _together(self, batch: Any) -> tuple[_Normal, Tensor]:
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
            each = _blocks_of(_scale_of(law), z.shape[-2])
            scale = each.new_zeros(*each.shape[:-2], self.dim + 1, self.dim + 1)
            scale[..., 0, 0] = sd.squeeze(-1)
            scale[..., 1:, 1:] = each

            def likelihood(theta: Tensor) -> Tensor:
                theta = theta if frames else theta.squeeze(-2)
                direction = turned(centre, theta[..., 0])
                found = self._likelihood(theta[..., 1:], batch, direction, None)
                return found if frames else found.unsqueeze(-1)

            q = self._improved(batch, _Normal(loc, _block_diagonal(scale)), likelihood)
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
        factor, loc = _marginal(q), q.loc
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

    def _improved(self, batch: Any, q: _Normal, likelihood: Callable[[Tensor], Tensor]) -> _Normal:
        prior, angles = self.prior_of(batch), q.loc.shape[-1] - self.dim
        tied = batch.images.dim() == 4 and not angles and _tied(prior)
        points = max(1, MOST_NUMBERS // (self.volume.numbers_an_image * q.loc[..., 0].numel()))

        def some_at_once(theta: Tensor) -> Tensor:
            return torch.cat([likelihood(part) for part in theta.split(points)])

        best = q
        value, g, a = _told(best, some_at_once, prior, angles, tied)
        rate = torch.ones_like(value)
        for _ in range(self.refining):
            tried = _stepped(best, g, a, rate)
            fresh = _told(tried, some_at_once, prior, angles, tied)
            good = fresh[0] > value - SLACK
            good &= fresh[0].isfinite()
            rate = torch.where(good, (2 * rate).clamp_max(1.0), 0.25 * rate)

            def chosen(new: Tensor, old: Tensor, good: Tensor = good) -> Tensor:
                return torch.where(
                    good.view(*good.shape, *[1] * (new.dim() - good.dim())), new, old
                )

            best = _Normal(*map(chosen, tried, best))
            value, g, a = map(chosen, fresh, (value, g, a))
        return best


def _told(
    q: _Normal,
    likelihood: Callable[[Tensor], Tensor],
    prior: Any,
    angles: int,
    tied: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """ELBO `(...)`; its gradient and what the precision should be, in units of `q`, `(..., n)`.

    Both whitened by the factor of `q`: the gradient 0 and the precision 1 mean that it is best.
    """
    frames, d = q.loc.shape[-2:]
    w, weight = (part.to(q.loc) for part in _cubature(d))
    each = _marginal(q)
    lead = [1] * (q.loc.dim() - 1)
    f = likelihood(q.loc + applied(each, w.view(-1, *lead, d)))  # (P, ..., F)
    rise = f - f[:1]
    weighted = weight.view(-1, *lead) * rise
    first = torch.einsum("p...,pi->...i", weighted, w)
    second = torch.einsum("p...,pij->...ij", weighted, w.unsqueeze(-1) * w.unsqueeze(-2))
    second = second - torch.diag_embed(weighted.sum(0).unsqueeze(-1).expand_as(first))
    inverse = torch.linalg.inv(each)  # small, lower triangular
    gradient = applied(inverse.transpose(-1, -2), first).flatten(-2)
    precision = -_block_diagonal(inverse.transpose(-1, -2) @ second @ inverse)
    cost, slope, curve = _prior_terms(q, prior, angles, tied)
    gradient, precision = gradient - slope, precision + curve
    if not tied and frames > 1:
        precision = _block_diagonal(_blocks_of(precision, frames))
    entropy = q.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    entropy = entropy + 0.5 * frames * d * (1 + math.log(2 * math.pi))
    elbo = f[0].sum(-1) + weighted.sum(0).sum(-1) - cost + entropy
    turned = q.scale.transpose(-1, -2)
    return elbo, applied(turned, gradient), turned @ precision @ q.scale


def _stepped(q: _Normal, g: Tensor, a: Tensor, rate: Tensor) -> _Normal:
    """A natural-gradient step of ``rate`` `(...)`, not too far."""
    size, axes = torch.linalg.eigh(0.5 * (a + a.transpose(-1, -2)))
    size = torch.nan_to_num(size, nan=1.0).clamp(1 / MOST, MOST)
    size = 1 + rate.unsqueeze(-1) * (size - 1)
    axes_t = axes.transpose(-1, -2)
    step = rate.unsqueeze(-1) * applied(axes, applied(axes_t, g) / size)
    length = step.norm(dim=-1, keepdim=True) + 1e-12
    step = torch.nan_to_num(step * (FURTHEST / length).clamp_max(1.0))
    loc = q.loc + applied(q.scale, step).unflatten(-1, q.loc.shape[-2:])
    covariance = q.scale @ (axes / size.unsqueeze(-2)) @ axes_t @ q.scale.transpose(-1, -2)
    scale, failed = torch.linalg.cholesky_ex(covariance)
    failed = failed.view(*failed.shape, 1, 1) > 0
    return _Normal(loc, torch.where(failed, q.scale, scale))


def _prior_terms(q: _Normal, prior: Any, angles: int, tied: bool) -> tuple[Tensor, Tensor, Tensor]:
    r"""Of :math:`-E_q \ln p(z)`: value, gradient and second derivatives by the mean of `q`.

    These are the expected derivatives of :math:`-\ln p` (Bonnet's theorem). Angles have a flat
    prior: rows of zeros.
    """
    frames, d = q.loc.shape[-2:]
    k = d - angles
    still = torch.eye(k, dtype=q.loc.dtype, device=q.loc.device)
    factor = _marginal(q)
    if angles:
        rows = factor[..., angles:, :]
        factor = torch.linalg.cholesky(rows @ rows.transpose(-1, -2))
    with torch.enable_grad():
        flat = q.loc[..., angles:].flatten(-2).detach().requires_grad_()
        loc = flat.unflatten(-1, (frames, k))
        if tied:
            law: Any = JointNormal(loc, q.scale, still)
        elif len(prior.event_shape) == 2:
            law = RotatedNormal(loc, factor, still).to_event(1)
        else:
            law = RotatedNormal(loc.squeeze(-2), factor.squeeze(-3), still)
        cost = _cross_entropy(law, prior)
        (slope,) = torch.autograd.grad(cost.sum(), flat, create_graph=True)
        curve = []
        for i in range(flat.shape[-1]):
            row = None
            if slope.requires_grad:
                (row,) = torch.autograd.grad(
                    slope[..., i].sum(), flat, retain_graph=True, allow_unused=True
                )
            curve.append(torch.zeros_like(flat) if row is None else row)
    curve = torch.stack(curve, dim=-2).detach()
    slope, cost = slope.detach(), cost.detach()
    if angles:
        where = [t * d + angles + i for t in range(frames) for i in range(k)]
        full = q.loc.new_zeros(*slope.shape[:-1], frames * d)
        full[..., where] = slope
        square = q.loc.new_zeros(*slope.shape[:-1], frames * d, frames * d)
        square[..., torch.tensor(where).unsqueeze(-1), torch.tensor(where)] = curve
        slope, curve = full, square
    return cost, slope, curve


def _cross_entropy(law: Any, prior: Any) -> Tensor:
    try:
        return kl_divergence(law, prior) + law.entropy()
    except NotImplementedError:
        noise = _spread(law.event_shape.numel()).to(law.mean)
        moved = applied(
            _scale_of(law), noise.view(-1, *[1] * len(law.batch_shape), noise.shape[-1])
        )
        return -prior.log_prob(law.mean + moved.unflatten(-1, law.event_shape)).mean(0)


def _tied(prior: Any) -> bool:
    """Whether a prior makes the frames of a molecule depend on one another."""
    return len(prior.event_shape) == 2 and not isinstance(prior, Independent)


def _scale_of(law: Any) -> Tensor:
    """Cholesky factor of `z` `(..., n, n)`, all frames together, of a guide's law."""
    if isinstance(law, JointNormal):
        rows = law._rows().flatten(-3, -2)
        return torch.linalg.cholesky(rows @ rows.transpose(-1, -2))
    one = law.base_dist if isinstance(law, Independent) else law
    if isinstance(one, RotatedNormal):
        rows = one.rotation @ one.scale_tril
        each = torch.linalg.cholesky(rows @ rows.transpose(-1, -2))
    else:
        each = torch.diag_embed(one.variance.sqrt())
    return _block_diagonal(each) if isinstance(law, Independent) else each


def _marginal(q: _Normal) -> Tensor:
    """Cholesky factors `(..., F, d, d)` of each frame alone."""
    frames, d = q.loc.shape[-2:]
    if frames == 1:
        return q.scale.unsqueeze(-3)
    rows = q.scale.unflatten(-2, (frames, d))
    return torch.linalg.cholesky(rows @ rows.transpose(-1, -2))


def _block_diagonal(each: Tensor) -> Tensor:
    """Matrices `(..., F, d, d)` along the diagonal of one `(..., F d, F d)`."""
    frames = each.shape[-3]
    eye = torch.eye(frames, dtype=each.dtype, device=each.device)
    spread = each.unsqueeze(-2) * eye[:, None, :, None]
    return spread.flatten(-4, -3).flatten(-2, -1)


def _blocks_of(square: Tensor, frames: int) -> Tensor:
    """The blocks `(..., F, d, d)` along its diagonal."""
    d = square.shape[-1] // frames
    parts = square.unflatten(-1, (frames, d)).unflatten(-3, (frames, d))  # (..., F, d, F, d)
    return torch.diagonal(parts, dim1=-4, dim2=-2).movedim(-1, -3)


@lru_cache
def _cubature(d: int) -> tuple[Tensor, Tensor]:
    """Points `(P, d)`, the first the origin, and weights `(P,)` of N(0, 1): fifth degree."""
    size = math.sqrt(3.0)
    eye = torch.eye(d)
    points, weights = [torch.zeros(d)], [1 + (d * d - 7 * d) / 18]
    for i in range(d):
        points += [size * eye[i], -size * eye[i]]
        weights += [(4 - d) / 18] * 2
        for j in range(i):
            points += [size * (a * eye[i] + b * eye[j]) for a in (1, -1) for b in (1, -1)]
            weights += [1 / 36] * 4
    return torch.stack(points), torch.tensor(weights)


@lru_cache
def _spread(n: int) -> Tensor:
    """Draws `(32, n)` of N(0, 1), the same each time, of mean 0."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(PRIOR_DRAWS // 2, n, generator=generator)
    return torch.cat([half, -half])
