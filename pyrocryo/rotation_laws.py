r"""Laws of rotations in space, as laws of unit quaternions that give `q` and `-q` one density.

Densities are with respect to the area of the sphere S³, :math:`2 \pi^2`: the uniform law,
``UniformDirection(4)`` of :mod:`pyrocryo.directions`, is :math:`1 / 2 \pi^2` everywhere. Draws
come with either sign, at random, so that nobody can lean on it. For nearby rotations,
:math:`q = \pm e^{\omega / 2} \otimes q_0` with ω (rad) along the axes of the image: ω₃ turns the
particle in the plane, ω₁ and ω₂ tilt it.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.kl import register_kl

from pyrocryo.directions import UniformDirection
from pyrocryo.quaternions import conjugate, product, unit

__all__ = ["RotationFisher", "RotationMixture", "RotationNormal"]

NODES = 96  # of the quadrature of the KL, evenly over FROM < ln t < TO
FROM, TO = -17.0, 4.0
TABLE = 1024  # nodes of the table that angles are drawn from
FAR = 20.0  # from where on Bessel functions are taken from their asymptotic series


class RotationNormal(dist.TorchDistribution):
    r"""A Gaussian on the plane that touches S³ at :math:`q_0`, projected on the sphere.

    .. math:: q = \pm \frac{(1, g)}{\sqrt{1 + |g|^2}} \otimes q_0, \quad
              2 g \sim N(0, L L^\top), \quad
              p(q) = 4 N(2 g; 0, L L^\top) (1 + |g|^2)^2

    The central projection takes `q` and `-q` to one point, so the law is symmetric as it stands,
    exactly normalised at any width, and needs neither wraps nor a truncation. With
    :math:`g = n \tan \theta / 2`, 2 `g` is the rotation vector of small turns. Laws beyond .8 rad
    or so turn towards 180° and are better made of several (:class:`RotationMixture`).

    Args:
        centre: `(..., 4)` unit quaternion :math:`q_0`, scalar first; its sign does not matter.
        scale_tril: `(..., 3, 3)` lower triangular `L`, rad, along the axes of the image.
    """

    arg_constraints = {"centre": constraints.real_vector, "scale_tril": constraints.lower_cholesky}
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self, centre: Tensor, scale_tril: Tensor, *, validate_args: bool | None = None
    ) -> None:
        batch_shape = torch.broadcast_shapes(centre.shape[:-1], scale_tril.shape[:-2])
        self.centre = centre.expand(*batch_shape, 4)
        self.scale_tril = scale_tril.expand(*batch_shape, 3, 3)
        super().__init__(batch_shape, torch.Size([4]), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> RotationNormal:
        new = self._get_checked_instance(RotationNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        new.centre = self.centre.expand(*batch_shape, 4)
        new.scale_tril = self.scale_tril.expand(*batch_shape, 3, 3)
        super(RotationNormal, new).__init__(batch_shape, torch.Size([4]), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The centre, which is where the density is largest unless the law is very wide."""
        return self.centre

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)[:-1]
        like = {"dtype": self.centre.dtype, "device": self.centre.device}
        noise = torch.randn(*shape, 3, **like)
        g = 0.5 * (self.scale_tril * noise.unsqueeze(-2)).sum(-1)
        turn = torch.cat([torch.ones_like(g[..., :1]), g], dim=-1)
        sign = (torch.rand(*shape, 1, **like) - 0.5).sign()
        return sign * unit(product(turn, self.centre))

    def log_prob(self, value: Tensor) -> Tensor:
        g = self.tangent(value)
        scale = self.scale_tril.expand(*g.shape[:-1], 3, 3)
        white = torch.linalg.solve_triangular(scale, 2 * g.unsqueeze(-1), upper=False).squeeze(-1)
        half_log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        normal = -0.5 * white.square().sum(-1) - half_log_det - 1.5 * math.log(2 * math.pi)
        return math.log(4) + normal + 2 * g.square().sum(-1).log1p()

    def tangent(self, value: Tensor) -> Tensor:
        """`g` `(..., 3)` of unit quaternions, the same for `q` and `-q`."""
        along, across = _parts(value, self.centre)
        smallest = torch.finfo(along.dtype).eps
        return across / along.clamp_min(smallest).unsqueeze(-1)


class RotationFisher(dist.TorchDistribution):
    r"""The isotropic matrix Fisher law (as quaternions, a Bingham law) about known rotations.

    .. math:: p(q) = \frac{e^{-\kappa \sin^2 \theta / 2}}{Z(\kappa)}, \quad
              Z = 2 \pi^2 e^{-\kappa / 2} [I_0(\kappa / 2) - I_1(\kappa / 2)], \quad
              \kappa = 2 / s^2

    with θ the angle between the rotation and the centre: symmetric, smooth, from the uniform law
    (`s` → ∞) to a Gaussian of `s` rad about each axis. θ itself is then typically (median)
    1.54 `s`.

    Args:
        centre: `(..., 4)` unit quaternion, scalar first; its sign does not matter.
        sd: `(...)` `s`, rad about each axis.
    """

    arg_constraints = {"centre": constraints.real_vector, "sd": constraints.positive}
    support = constraints.sphere

    def __init__(self, centre: Tensor, sd: Tensor, *, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(centre.shape[:-1], sd.shape)
        self.centre = centre.expand(*batch_shape, 4)
        self.sd = sd.expand(batch_shape)
        super().__init__(batch_shape, torch.Size([4]), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> RotationFisher:
        new = self._get_checked_instance(RotationFisher, _instance)
        batch_shape = torch.Size(batch_shape)
        new.centre = self.centre.expand(*batch_shape, 4)
        new.sd = self.sd.expand(batch_shape)
        super(RotationFisher, new).__init__(batch_shape, torch.Size([4]), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The centre."""
        return self.centre

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)[:-1]
        like = {"dtype": self.centre.dtype, "device": self.centre.device}
        with torch.no_grad():
            axis = torch.randn(*shape, 3, **like)
            level = torch.rand(shape, **like)
            half = _half_angle(level, self.sd).unsqueeze(-1)
            axis = axis / axis.norm(dim=-1, keepdim=True)
            turn = torch.cat([half.cos(), half.sin() * axis], dim=-1)
            sign = (torch.rand(*shape, 1, **like) - 0.5).sign()
            return sign * unit(product(turn, self.centre))

    def log_prob(self, value: Tensor) -> Tensor:
        _, across = _parts(value, self.centre)
        return -2 * across.square().sum(-1) / self.sd.square() - self.log_normaliser()

    def log_normaliser(self) -> Tensor:
        """Ln Z."""
        return math.log(2 * math.pi**2) + _log_bessel_difference(1 / self.sd.square())


class RotationMixture(dist.TorchDistribution):
    """Several rotations that an image could have, each with its uncertainty.

    Draws are differentiable in the components, and not in the weights: those are for guides that
    compute them.

    Args:
        logits: `(..., M)` logarithms of the weights, up to a constant.
        component: M laws on the last batch axis `(..., M)`.
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self, logits: Tensor, component: RotationNormal, *, validate_args: bool | None = None
    ) -> None:
        self.logits = logits.log_softmax(-1).expand(component.batch_shape)
        self.component = component
        super().__init__(logits.shape[:-1], torch.Size([4]), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> RotationMixture:
        new = self._get_checked_instance(RotationMixture, _instance)
        shape = torch.Size(batch_shape) + self.logits.shape[-1:]
        new.logits, new.component = self.logits.expand(shape), self.component.expand(shape)
        super(RotationMixture, new).__init__(
            torch.Size(batch_shape), torch.Size([4]), validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The centre of the heaviest component."""
        best = self.logits.argmax(-1)[..., None, None].expand(*self.batch_shape, 1, 4)
        return self.component.centre.gather(-2, best).squeeze(-2)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        drawn = self.component.rsample(sample_shape)
        # the Gumbel trick: the largest of ln w + Gumbel noise falls on each as often as w says
        noise = torch.rand(drawn.shape[:-1], dtype=drawn.dtype, device=drawn.device)
        noise = -(-noise.clamp_min(torch.finfo(drawn.dtype).tiny).log()).log()
        which = (self.logits + noise).argmax(-1)[..., None, None]
        return drawn.gather(-2, which.expand(*which.shape[:-1], 4)).squeeze(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        return (self.logits + self.component.log_prob(value.unsqueeze(-2))).logsumexp(-1)

    def responsible(self, value: Tensor) -> Tensor:
        """Which component `(...,)` is the most likely one to have given ``value``."""
        return (self.logits + self.component.log_prob(value.unsqueeze(-2))).argmax(-1)


def _parts(value: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    r"""Cos θ/2 `(...)`, at least 0, and n sin θ/2 `(..., 3)` of the turn from centre to value.

    The latter from the difference of the two, which is exact where they are close: in single
    precision the square of a large concentration would be lost otherwise.
    """
    along = (value * centre).sum(-1)
    sign = torch.where(along < 0, -1.0, 1.0).unsqueeze(-1)
    across = product(sign * value - centre, conjugate(centre))[..., 1:]
    return along.abs(), across


def _half_angle(level: Tensor, sd: Tensor) -> Tensor:
    """θ/2 below which the share ``level`` of a Fisher law lies, from a table of its density."""
    shared = not any(sd.stride())
    # one table for all, or one each
    sd = sd.flatten()[:1] if shared else sd.expand(level.shape).unsqueeze(-1)
    v = torch.linspace(0, math.pi / 2, TABLE, dtype=level.dtype, device=level.device)
    squeeze = sd / (1 + sd)
    # nodes where the mass is; the last one, at a tangent of infinity, is π/2
    half = torch.atan2(squeeze * v.sin(), v.cos())
    density = half.sin().square() * (-2 * half.sin().square() / sd.square()).exp()
    step = half.diff(dim=-1)
    mass = torch.cumsum(0.5 * (density[..., 1:] + density[..., :-1]) * step, dim=-1)
    mass = torch.cat([torch.zeros_like(mass[..., :1]), mass / mass[..., -1:]], dim=-1)
    wanted = level.flatten() if shared else level.unsqueeze(-1)
    right = torch.searchsorted(mass, wanted).clamp(1, TABLE - 1)
    low, high = mass.gather(-1, right - 1), mass.gather(-1, right)
    a, b = half.gather(-1, right - 1), half.gather(-1, right)
    share = ((wanted - low) / (high - low).clamp_min(1e-30)).clamp(0, 1)
    return (a + share * (b - a)).reshape(level.shape)


def _series(order: int) -> list[float]:
    r"""Those of :math:`I_\nu(x) \sqrt{2 \pi x} e^{-x}` in 1/x (Abramowitz & Stegun, 9.7.1)."""
    found, term = [Fraction(1)], Fraction(1)
    for k in range(1, 8):
        term *= -Fraction(4 * order**2 - (2 * k - 1) ** 2, 8 * k)
        found.append(term)
    return [float(t) for t in found]


DIFFERENCE = [a - b for a, b in zip(_series(0), _series(1), strict=True)]  # the first is 0


def _log_bessel_difference(x: Tensor) -> Tensor:
    r""":math:`\ln (e^{-x} [I_0(x) - I_1(x)])`, without cancellation at large `x`."""
    near, far = x.clamp_max(FAR), x.clamp_min(FAR)
    direct = (torch.special.i0e(near) - torch.special.i1e(near)).log()
    tail = sum(c * far ** (1 - k) for k, c in enumerate(DIFFERENCE) if k)
    series = tail.log() - far.log() - 0.5 * (2 * math.pi * far).log()
    return torch.where(x < FAR, direct, series)


class _Moments:
    r"""Expectations under :math:`g \sim N(0, S)`, S = L Lᵀ / 4, as integrals over one number.

    From :math:`E e^{-t |g|^2} = D(t)^{-1/2}`, :math:`D = \det(1 + 2 t S)`, and
    :math:`1 / (1 + x) = \int e^{-t (1 + x)} dt`. Trapezoids in ln t; all terms are positive, so
    that small numbers are right too.
    """

    def __init__(self, scale_tril: Tensor) -> None:
        s = 0.25 * scale_tril @ scale_tril.transpose(-1, -2)
        self.s, square = s, s @ s
        self.e1 = s.diagonal(dim1=-2, dim2=-1).sum(-1)
        trace = square.diagonal(dim1=-2, dim2=-1).sum(-1)
        e2 = 0.5 * (self.e1.square() - trace).clamp_min(0.0)
        self.e3 = (scale_tril.diagonal(dim1=-2, dim2=-1).prod(-1) / 8).square()
        log_t = torch.linspace(FROM, TO, NODES, dtype=s.dtype, device=s.device)
        self.t = log_t.exp()
        self.weight = (-self.t).exp() * ((TO - FROM) / (NODES - 1))
        t, e1, e3 = self.t, self.e1.unsqueeze(-1), self.e3.unsqueeze(-1)
        e2 = e2.unsqueeze(-1)
        self.log_d = torch.log1p(2 * t * (e1 + 2 * t * (e2 + 2 * t * e3)))
        self.trace_m = (e1 + 4 * t * e2 + 12 * t.square() * e3) * (-self.log_d).exp()

    def log1p(self) -> Tensor:
        r""":math:`E \ln(1 + |g|^2)`."""
        return (-torch.expm1(-0.5 * self.log_d) * self.weight).sum(-1)

    def across(self, along: Tensor, c: Tensor) -> Tensor:
        r"""E sin² of half the angle to the rotation whose parts from the centre are these.

        :math:`E [|c - c_0 g|^2 + |g \times c|^2] / (1 + |g|^2)`, with
        :math:`M = (S^{-1} + 2 t)^{-1}` the covariance of `g` under the tilted law.
        """
        cc = c.square().sum(-1, keepdim=True)
        sc = (self.s * c.unsqueeze(-2)).sum(-1)
        first = (c * sc).sum(-1, keepdim=True)
        second = sc.square().sum(-1, keepdim=True)
        t, e1, e3 = self.t, self.e1.unsqueeze(-1), self.e3.unsqueeze(-1)
        cmc = first + 2 * t * (e1 * first - second).clamp_min(0.0) + 4 * t.square() * e3 * cc
        cmc = cmc * (-self.log_d).exp()
        inside = cc + (along.square().unsqueeze(-1) + cc) * self.trace_m - cmc
        return (inside * (-0.5 * self.log_d).exp() * self.weight * t).sum(-1)


def _negative_entropy(q: RotationNormal, moments: _Moments) -> Tensor:
    half_log_det = q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return math.log(4) - 1.5 * math.log(2 * math.pi * math.e) - half_log_det + 2 * moments.log1p()


@register_kl(RotationNormal, UniformDirection)
def _kl_to_uniform(q: RotationNormal, p: UniformDirection) -> Tensor:
    if p.event_shape[0] != 4:
        raise NotImplementedError
    return _negative_entropy(q, _Moments(q.scale_tril)) + math.log(2 * math.pi**2)


@register_kl(RotationNormal, RotationFisher)
def _kl_to_fisher(q: RotationNormal, p: RotationFisher) -> Tensor:
    moments = _Moments(q.scale_tril)
    along, c = _parts(p.centre, q.centre)
    expected = moments.across(along, c)
    return _negative_entropy(q, moments) + 2 * expected / p.sd.square() + p.log_normaliser()
