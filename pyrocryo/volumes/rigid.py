"""A volume of rigid bodies: domains of a structure, each with its own turn and shift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrocryo.chain import bonded
from pyrocryo.errors import InputError
from pyrocryo.perceptron import perceptron
from pyrocryo.volumes.atoms import Atoms

__all__ = ["RigidBodies", "blended", "moved"]

FIRST_TURN = 0.1  # rad for one unit of z: where hinges start
BENDS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # where along z a monotone angle may change its slope
SERIES = 0.25  # rad²: below, the quotients of a turn are taken by their series


class RigidBodies(Atoms):
    r"""Domains that turn and shift against each other: six numbers a body, learned from `z`.

    Body `b` moves by the twist :math:`(\omega_b, u_b)(z)`, a rotation vector (rad) and a velocity,
    for one unit of time; each atom by the mean of its bodies' twists, weighted by :math:`w_{ab}`:

    .. math:: r_a(z) = r_a + V(\omega_a) (u_a + \omega_a \times r_a), \quad
              (\omega_a, u_a) = \sum_b w_{ab} (\omega_b, u_b),

    with :math:`V(\omega) = \int_0^1 e^{t [\omega]_\times} dt` (Murray, Li & Sastry 1994,
    section 2.3). :math:`w_{ab}` is the share of body `b` among the residues within ``blend`` of
    `a` along the chain: atoms further than that from a joint move as one body, and those between
    turn about the same axis by part of the angle. A joint does not tear where the axis passes near
    it; where it does not, the slip is shared by ``2 blend + 1`` bonds
    (:func:`pyrocryo.diagnose.stereochemistry` says how far, :class:`pyrocryo.penalties.Bonds`
    bounds it). One body does not move: it is the frame.

    What is learned are the twists at `z = 0` (0 at first), and their change, a network of `z`.
    With ``separate``, each body is driven by latents of its own, in the order of the bodies: `z`
    has one number a body, or as many for each. That alone says which latent is whose: give the
    pair ``rotate=False``.

    With ``hinges``, body `b` turns about a given axis by an angle that is a function of one latent
    alone, linear or monotone: `z` then has one number a hinge, in their order; give the pair
    ``rotate=False``. Images, heights, widths and background are those of
    :class:`~pyrocryo.volumes.Atoms`.

    Args:
        positions: `(A, 3)` in Å from the box centre, in the order of the chain.
        segmentation: `(A,)` integers: the body of each atom.
        pixel_size: Å per pixel of the images.
        hinges: From a body to its axis `(3,)` and a point on it `(3,)`, Å. Bodies without one
            stay with the frame.
        monotone: Let the angles of hinges be monotone functions, that rise with `z`.
        separate: Give each body latents of its own.
        blend: Residues on either side of a joint that share its motion; 0 cuts sharply.
        frame: The body that does not move; by default the largest.
        width: Standard deviation in Å of each Gaussian to begin with (4).
        hidden: Widths of hidden layers between `z` and the twists; () for linear ones.
        side: Voxels along an edge of exported maps; by default the box, but at most 48.
    """

    def __init__(
        self,
        positions: Any,
        segmentation: Any,
        *,
        pixel_size: float,
        hinges: Mapping[int, tuple[Any, Any]] | None = None,
        monotone: bool = False,
        separate: bool = False,
        blend: int = 3,
        frame: int | None = None,
        width: float | None = None,
        hidden: tuple[int, ...] = (64,),
        side: int | None = None,
    ) -> None:
        positions = torch.as_tensor(positions, dtype=torch.get_default_dtype())
        if positions.dim() != 2 or positions.shape[1] != 3 or not len(positions):
            raise InputError(f"positions: expected (A, 3) in Å, got {tuple(positions.shape)}")
        super().__init__(positions, pixel_size=pixel_size, width=width, hidden=hidden, side=side)
        bodies = torch.as_tensor(segmentation)
        if bodies.shape != (len(positions),) or bodies.is_floating_point():
            raise InputError(
                f"segmentation: expected {len(positions)} integers, one an atom, got "
                f"{tuple(bodies.shape)} of {bodies.dtype}"
            )
        if blend < 0 or blend != int(blend):
            raise InputError(f"blend: expected a number of residues, 0 or more, got {blend}")
        names, sizes = bodies.unique(return_counts=True)
        self.frame = int(names[sizes.argmax()]) if frame is None else frame
        if self.frame not in names:
            raise InputError(f"frame: expected one of {names.tolist()}, got {frame}")
        still = [int(name) for name in names if name != self.frame]
        for name in hinges or ():
            if name not in still:
                raise InputError(f"hinges: expected bodies among {still}, got {name}")
        self.bodies = still if hinges is None else list(hinges)
        if not self.bodies:
            raise InputError(
                "segmentation, hinges: expected a body that moves, beside the frame; got none"
            )
        if separate and hinges is not None:
            raise InputError(
                "separate: hinges have latents of their own already; give one of both"
            )
        self.blend = int(blend)
        self.monotone = monotone
        self.separate = separate
        self._alone = False
        self._segmentation = bodies
        self._hinges = None if hinges is None else [_line(*hinges[b], b) for b in self.bodies]

    def build(self, latent: int, box: int) -> RigidBodies:
        """Makes the parameters for `z` of ``latent`` numbers and images of ``box`` pixels."""
        count = len(self.bodies)
        if self._hinges is not None and latent != count:
            raise InputError(f"dim: {count} hinges need as many latents, z has {latent}")
        if self.separate and latent % count:
            raise InputError(
                f"dim: {count} bodies with latents of their own need as many, or a multiple; "
                f"z has {latent}"
            )
        super().build(latent, box)
        share = blended(self._segmentation, self._reference, self.bodies, self.blend)
        inside = [self.start[self._segmentation == body] for body in self.bodies]
        self.register_buffer("share", share.to(self.start))
        if self._hinges is None:
            middle = torch.stack([atoms.mean(0) for atoms in inside])
            size = [(a - a.mean(0)).square().sum(-1).mean().sqrt().clamp_min(1.0) for a in inside]
            self.register_buffer("point", middle)
            self.register_buffer("radius", torch.stack(size)[:, None])
            parts = count if self.separate else 1
            self._alone = latent == parts
            self.displacement = _Split(latent, self.hidden, 6 * count, parts)
        else:
            axis, point = (torch.stack(part) for part in zip(*self._hinges, strict=True))
            self.register_buffer("axis", axis.to(self.start))
            self.register_buffer("point", point.to(self.start) / self.pixel_size)
            self.displacement = _Angles(count, self.monotone)
        return self

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        driven = ", separate" if self.separate else ", hinges" if self._hinges is not None else ""
        return f"{super().extra_repr()}, bodies={self.bodies}, blend={self.blend}{driven}"

    @property
    def axes(self) -> str | None:
        """What each latent is, where that is given."""
        if self._hinges is not None:
            return "one hinge"
        return "the motion of one body" if self.separate and self._alone else None

    def angles(self, z: Tensor) -> Tensor:
        """Angles of the hinges (rad), `(..., H)`, in the order in which they were given."""
        if self._hinges is None:
            raise InputError("hinges: none were given, so bodies turn about any axis")
        return self.displacement(z)

    def motions(self, z: Tensor) -> Tensor:
        """Six numbers a moving body, `(..., B, 6)`: rotation vector (rad), and shift (Å).

        The shift is that of the body's centre of mass, or of the hinge's point (0).
        """
        turn, velocity = self._twists(z)
        move = moved(self.point, turn, velocity) - self.point
        return torch.cat([turn, self.pixel_size * move], dim=-1)

    def centres(self, z: Tensor) -> Tensor:
        """Positions `(..., A, 3)` in pixels from the box centre."""
        turn, velocity = (self._each_atom(part) for part in self._twists(z))
        return moved(self.start, turn, velocity)

    def _twists(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation vectors and velocities at the origin `(..., B, 3)` of the moving bodies."""
        if self._hinges is not None:
            turn = self.displacement(z).unsqueeze(-1) * self.axis
            return turn, _cross(self.point, turn)
        six = self.displacement(z).unflatten(-1, (len(self.bodies), 6))
        turn, velocity = six[..., :3], self.radius * six[..., 3:]
        return turn, velocity + _cross(self.point, turn)

    def _each_atom(self, part: Tensor) -> Tensor:
        # a sum of products: matrix products of a GPU may have 10 bits of mantissa
        return (self.share.unsqueeze(-1) * part.unsqueeze(-3)).sum(-2)


class _Split(nn.Module):
    """Networks side by side, each of its share of the latents and 0 at 0, and a constant."""

    def __init__(self, latent: int, hidden: Sequence[int], outputs: int, parts: int) -> None:
        super().__init__()
        self.rest = nn.Parameter(torch.zeros(outputs))
        self.parts = nn.ModuleList(
            perceptron(latent // parts, hidden, outputs // parts, bias=False) for _ in range(parts)
        )

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.rest)

    def forward(self, z: Tensor) -> Tensor:
        shares = z.chunk(len(self.parts), dim=-1)
        # as of 0: networks have constants of their own, and start where they like
        moved = [f(u) - f(torch.zeros_like(u)) for f, u in zip(self.parts, shares, strict=True)]
        return self.rest + torch.cat(moved, dim=-1)


class _Angles(nn.Module):
    r""":math:`\theta_k = a_k + s_k z_k` (rad), or with a positive slope that bends.

    .. math:: \theta_k = a_k + e^{s_k} z_k + \sum_j \zeta(h_{kj}) \tanh(z_k - d_j)
    """

    def __init__(self, count: int, monotone: bool) -> None:
        super().__init__()
        self.monotone = monotone
        self.offset = nn.Parameter(torch.empty(count))
        self.slope = nn.Parameter(torch.empty(count))
        if monotone:
            self.bend = nn.Parameter(torch.empty(count, len(BENDS)))
        self.reset_parameters()

    def extra_repr(self) -> str:
        return f"monotone={self.monotone}"

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.offset)
        nn.init.constant_(self.slope, math.log(FIRST_TURN) if self.monotone else FIRST_TURN)
        if self.monotone:
            nn.init.constant_(self.bend, -4.0)

    def forward(self, z: Tensor) -> Tensor:
        if not self.monotone:
            return self.offset + self.slope * z
        bends = (z.unsqueeze(-1) - z.new_tensor(BENDS)).tanh()
        return self.offset + self.slope.exp() * z + (softplus(self.bend) * bends).sum(-1)


def blended(bodies: Tensor, positions: Tensor, moving: Sequence[int], blend: int) -> Tensor:
    """Share `(A, B)` of each moving body among the residues within ``blend`` along the chain.

    The chain ends where two atoms in a row are not bonded (:func:`pyrocryo.chain.bonded`).

    Args:
        bodies: `(A,)` body of each atom.
        positions: `(A, 3)`, Å.
        moving: The B bodies that move.
        blend: Residues.
    """
    chain = torch.cat([torch.zeros(1), (~bonded(positions)).cumsum(0).cpu()])
    place = torch.arange(len(bodies))
    near = ((place[:, None] - place).abs() <= blend) & (chain[:, None] == chain)
    of = torch.stack([bodies.cpu() == body for body in moving], dim=-1).to(positions)
    near = near.to(positions)
    return near @ of / near.sum(1, keepdim=True)


def moved(r: Tensor, turn: Tensor, velocity: Tensor) -> Tensor:
    r"""Points `(..., 3)` after the twists: :math:`r + V(\omega) (u + \omega \times r)`.

    Args:
        r: `(..., 3)`.
        turn: Rotation vectors ω `(..., 3)`, rad.
        velocity: `u` `(..., 3)`: of the point of the body at the origin.
    """
    along = velocity + _cross(turn, r)
    across = _cross(turn, along)
    first, second = _quotients(turn.square().sum(-1, keepdim=True))
    return r + along + first * across + second * _cross(turn, across)


def _quotients(square: Tensor) -> tuple[Tensor, Tensor]:
    """(1 - cos θ) / θ² and (θ - sin θ) / θ³ of θ², good to rounding at 0 as well."""
    s = square.clamp_max(SERIES)
    small = (
        1 / 2 - s * (1 / 24 - s * (1 / 720 - s * (1 / 40320 - s / 3628800))),
        1 / 6 - s * (1 / 120 - s * (1 / 5040 - s * (1 / 362880 - s / 39916800))),
    )
    large = square.clamp_min(SERIES)
    angle = large.sqrt()
    direct = (1 - angle.cos()) / large, (angle - angle.sin()) / (large * angle)
    a, b = (torch.where(square < SERIES, x, y) for x, y in zip(small, direct, strict=True))
    return a, b


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.cross(*torch.broadcast_tensors(a, b), dim=-1)


def _line(axis: Any, point: Any, body: int) -> tuple[Tensor, Tensor]:
    """A unit axis and a point on it."""
    axis, point = (torch.as_tensor(x, dtype=torch.float64) for x in (axis, point))
    if axis.shape != (3,) or point.shape != (3,) or not axis.norm() > 0:
        raise InputError(
            f"hinges: expected an axis (3,) that is not 0 and a point (3,) for body {body}, got "
            f"{axis.tolist()} and {point.tolist()}"
        )
    return axis / axis.norm(), point
