r"""The best normal under a density that is only known by its values, by natural gradients.

.. math:: \Sigma^{-1} = -E_q[\nabla^2 \ln p(x, z)], \quad E_q[\nabla \ln p(x, z)] = 0

(Opper & Archambeau 2009), for many particles at once, in natural-gradient steps (Khan & Lin 2017),
which are Newton's where the posterior is a normal. Expectations of the likelihood come from its
values at 2 d² + 1 points, exact to the fifth degree (McNamee & Stenger 1967); those of the prior
from its KL, or else from 32 draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrocryo.joint_normal import JointNormal
from pyrocryo.precision import applied
from pyrocryo.rotated_normal import RotatedNormal

__all__ = ["Normal", "block_diagonal", "blocks_of", "improved", "marginal", "scale_of", "tied"]

FURTHEST = 4.0  # standard deviations that a mean moves in a step
MOST = 9.0  # times that a precision grows or shrinks in a step
SLACK = 0.01  # nats that an ELBO may seem to fall by, as rounding and cubature go
PRIOR_DRAWS = 32  # of a prior without KL in closed form


class Normal(NamedTuple):
    """Of all frames of a molecule: F frames of d numbers, those of the pose first.

    Attributes:
        loc: `(..., F, d)` mean.
        scale: `(..., F d, F d)` Cholesky factor of the covariance.
        centre: `(..., F, c)` where those of the pose are counted from (:mod:`pyrocryo.charts`);
            c = 0 where there are none.
    """

    loc: Tensor
    scale: Tensor
    centre: Tensor


def improved(
    q: Normal,
    likelihood: Callable[[Tensor, Tensor], Tensor],
    prior: Any,
    *,
    poses: int = 0,
    moved: Callable[[Normal], Normal] | None = None,
    steps: int,
    at_once: int,
) -> tuple[Normal, Tensor]:
    r"""A normal of more ELBO, by so many steps, and that ELBO `(...)`.

    A step that lowers a particle's ELBO is taken back and a smaller one tried.

    Args:
        q: Where it starts.
        likelihood: Of points `(P, ..., F, d)` and ``q.centre``, :math:`\ln p(x | \cdot)`
            `(P, ..., F)`; with the prior of the pose, where there is one.
        prior: The law of `z`, event shape `(K,)` or `(F, K)`.
        poses: How many of the `d` numbers are of the pose, whose prior is the likelihood's
            affair. Frames are then kept apart.
        moved: Brings the mean of the pose back to the centre after a step.
        steps: Steps.
        at_once: Points whose images are held at once.
    """
    together = q.loc.shape[-2] > 1 and not poses and tied(prior)

    def told(q: Normal) -> tuple[Tensor, Tensor, Tensor]:
        def some_at_once(theta: Tensor) -> Tensor:
            return torch.cat([likelihood(part, q.centre) for part in theta.split(at_once)])

        return _told(q, some_at_once, prior, poses, together)

    best = q
    value, g, a = told(best)
    rate = torch.ones_like(value)
    for _ in range(steps):
        tried = _stepped(best, g, a, rate)
        tried = tried if moved is None else moved(tried)
        fresh = told(tried)
        good = fresh[0] > value - SLACK
        good &= fresh[0].isfinite()
        rate = torch.where(good, (2 * rate).clamp_max(1.0), 0.25 * rate)

        def chosen(new: Tensor, old: Tensor, good: Tensor = good) -> Tensor:
            return torch.where(good.view(*good.shape, *[1] * (new.dim() - good.dim())), new, old)

        best = Normal(*map(chosen, tried, best))
        value, g, a = map(chosen, fresh, (value, g, a))
    return best, value


def _told(
    q: Normal,
    likelihood: Callable[[Tensor], Tensor],
    prior: Any,
    poses: int,
    together: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """ELBO `(...)`; its gradient and what the precision should be, in units of `q`, `(..., n)`.

    Both whitened by the factor of `q`: the gradient 0 and the precision 1 mean that it is best.
    """
    frames, d = q.loc.shape[-2:]
    w, weight = (part.to(q.loc) for part in _cubature(d))
    each = marginal(q)
    lead = [1] * (q.loc.dim() - 1)
    f = likelihood(q.loc + applied(each, w.view(-1, *lead, d)))  # (P, ..., F)
    rise = f - f[:1]
    weighted = weight.view(-1, *lead) * rise
    first = torch.einsum("p...,pi->...i", weighted, w)
    second = torch.einsum("p...,pij->...ij", weighted, w.unsqueeze(-1) * w.unsqueeze(-2))
    second = second - torch.diag_embed(weighted.sum(0).unsqueeze(-1).expand_as(first))
    inverse = torch.linalg.inv(each)  # small, lower triangular
    gradient = applied(inverse.transpose(-1, -2), first).flatten(-2)
    precision = -block_diagonal(inverse.transpose(-1, -2) @ second @ inverse)
    cost, slope, curve = _prior_terms(q, prior, poses, together)
    gradient, precision = gradient - slope, precision + curve
    if not together and frames > 1:
        precision = block_diagonal(blocks_of(precision, frames))
    entropy = q.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    entropy = entropy + 0.5 * frames * d * (1 + math.log(2 * math.pi))
    elbo = f[0].sum(-1) + weighted.sum(0).sum(-1) - cost + entropy
    turned = q.scale.transpose(-1, -2)
    return elbo, applied(turned, gradient), turned @ precision @ q.scale


def _stepped(q: Normal, g: Tensor, a: Tensor, rate: Tensor) -> Normal:
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
    return Normal(loc, torch.where(failed, q.scale, scale), q.centre)


def _prior_terms(
    q: Normal, prior: Any, poses: int, together: bool
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Of :math:`-E_q \ln p(z)`: value, gradient and second derivatives by the mean of `q`.

    These are the expected derivatives of :math:`-\ln p` (Bonnet's theorem). Numbers of the
    pose have rows of zeros: their prior is with the likelihood.
    """
    frames, d = q.loc.shape[-2:]
    k = d - poses
    still = torch.eye(k, dtype=q.loc.dtype, device=q.loc.device)
    factor = marginal(q)
    if poses:
        rows = factor[..., poses:, :]
        factor = _factor(rows)
    with torch.enable_grad():
        flat = q.loc[..., poses:].flatten(-2).detach().requires_grad_()
        loc = flat.unflatten(-1, (frames, k))
        if together:
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
    if poses:
        where = [t * d + poses + i for t in range(frames) for i in range(k)]
        full = q.loc.new_zeros(*slope.shape[:-1], frames * d)
        full[..., where] = slope
        square = q.loc.new_zeros(*slope.shape[:-1], frames * d, frames * d)
        square[..., torch.tensor(where).unsqueeze(-1), torch.tensor(where)] = curve
        slope, curve = full, square
    return cost, slope, curve


def _cross_entropy(law: Any, prior: Any) -> Tensor:
    try:
        return kl_divergence(law, prior) + law.entropy()
    except NotImplementedError:  # no KL in closed form
        noise = _spread(law.event_shape.numel()).to(law.mean)
        moved = applied(
            scale_of(law), noise.view(-1, *[1] * len(law.batch_shape), noise.shape[-1])
        )
        return -prior.log_prob(law.mean + moved.unflatten(-1, law.event_shape)).mean(0)


def tied(prior: Any) -> bool:
    """Whether a prior makes the frames of a molecule depend on one another."""
    return len(prior.event_shape) == 2 and not isinstance(prior, Independent)


def scale_of(law: Any) -> Tensor:
    """Cholesky factor of `z` `(..., n, n)`, all frames together, of a guide's law."""
    if isinstance(law, JointNormal):
        rows = law._rows().flatten(-3, -2)
        return _factor(rows)
    one = law.base_dist if isinstance(law, Independent) else law
    if isinstance(one, RotatedNormal):
        rows = one.rotation @ one.scale_tril
        each = _factor(rows)
    else:
        each = torch.diag_embed(one.variance.sqrt())
    return block_diagonal(each) if isinstance(law, Independent) else each


def _factor(rows: Tensor) -> Tensor:
    """The lower triangular factor of the covariance `rows rowsᵀ`."""
    return torch.linalg.cholesky(rows @ rows.transpose(-1, -2))


def marginal(q: Normal) -> Tensor:
    """Cholesky factors `(..., F, d, d)` of each frame alone."""
    frames, d = q.loc.shape[-2:]
    if frames == 1:
        return q.scale.unsqueeze(-3)
    rows = q.scale.unflatten(-2, (frames, d))
    return _factor(rows)


def block_diagonal(each: Tensor) -> Tensor:
    """Matrices `(..., F, d, d)` along the diagonal of one `(..., F d, F d)`."""
    frames = each.shape[-3]
    eye = torch.eye(frames, dtype=each.dtype, device=each.device)
    spread = each.unsqueeze(-2) * eye[:, None, :, None]
    return spread.flatten(-4, -3).flatten(-2, -1)


def blocks_of(square: Tensor, frames: int) -> Tensor:
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
