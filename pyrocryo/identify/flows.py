r"""Maps `h` of the latent space that leave laws of `z` as they are.

Each takes `z` `(..., K)` to `(..., K)`, has an ``inverse``, and :math:`\ln |\det Dh|` as
``log_det``; all can be differentiated. They run in double precision and answer in that of `z`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyrocryo.errors import InputError

__all__ = ["HamiltonianFlow", "Rotation", "Twist", "wedge"]

Scalar = Callable[[Tensor], Tensor]

CUBE = 2 ** (1 / 3)
YOSHIDA = (1 / (2 - CUBE), -CUBE / (2 - CUBE), 1 / (2 - CUBE))
COARSEST, FINEST = 4, 256  # steps of a twist, a radian
LONGEST = 30  # radians after which it counts as lost
NEWTON = 6
STEP = 1e-5  # of numerical derivatives: errors of 1e-10 in double precision


class Rotation:
    r"""A rotation of whitened `z`, :math:`h(z) = c + M (z - c)`.

    With :math:`M = K^{-1/2} Q K^{1/2}`, `Q` orthogonal, it leaves every
    :math:`N(c, s K^{-1})` as it is, whatever `s` (see :meth:`in_plane`).

    Args:
        matrix: `(K, K)` M.
        centre: `(K,)` c.
    """

    def __init__(self, matrix: Tensor, centre: Tensor | None = None) -> None:
        self.matrix = matrix.double()
        self.centre = matrix.new_zeros(len(matrix)).double() if centre is None else centre.double()

    @classmethod
    def in_plane(
        cls, stiffness: Sequence[float], plane: tuple[int, int], angle: float
    ) -> Rotation:
        """In the plane of two components.

        Args:
            stiffness: `(K,)` inverse variances, but for a common factor.
            plane: The two components.
            angle: By how much, in rad.
        """
        root = torch.as_tensor(stiffness, dtype=torch.float64).sqrt()
        i, j = plane
        turn = torch.eye(len(root), dtype=torch.float64)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        return cls(turn * root / root.unsqueeze(-1))

    def __call__(self, z: Tensor) -> Tensor:
        """`h(z)`."""
        return self._by(self.matrix, z)

    def inverse(self, z: Tensor) -> Tensor:
        """`z` again, from `h(z)`."""
        return self._by(torch.linalg.inv(self.matrix), z)

    def log_det(self, z: Tensor, moved: Tensor | None = None) -> Tensor:
        """0, but for rounding, `(...)`."""
        return torch.linalg.slogdet(self.matrix).logabsdet.to(z).expand(z.shape[:-1])

    def _by(self, matrix: Tensor, z: Tensor) -> Tensor:
        return (self.centre + (z.double() - self.centre) @ matrix.T).to(z.dtype)


class HamiltonianFlow:
    r"""The flow of a separable energy in the plane of two components, for a time `t`.

    .. math:: \dot z_i = \partial E / \partial z_j, \quad \dot z_j = -\partial E / \partial z_i,
              \quad E = \epsilon_i(z_i) + \epsilon_j(z_j)

    It keeps areas and `E`, hence :math:`e^{-E / \tau} / Q(\tau)` at every temperature. Integrated
    by Yoshida's (1990) leapfrog of fourth order, a chain of shears: areas are kept, and the
    inverse undoes it, to rounding; `E` to the fourth power of the step.

    Args:
        energy: `E` of `z` `(..., K)`; what it makes of other components does not matter.
        plane: The components `i` and `j`.
        time: `t`.
        steps: Steps of the integrator.
        speed: A factor of the time that depends on the energy; by default 1. Areas are then kept
            to the accuracy of `E`.
    """

    def __init__(
        self,
        energy: Scalar,
        plane: tuple[int, int],
        time: float,
        *,
        steps: int = 64,
        speed: Scalar | None = None,
    ) -> None:
        if steps < 1:
            raise InputError(f"steps: expected at least 1, got {steps}")
        self.energy, self.plane, self.time = energy, plane, float(time)
        self.steps, self.speed = steps, speed

    def __call__(self, z: Tensor) -> Tensor:
        """`h(z)`."""
        return self._run(z, self.time)

    def inverse(self, z: Tensor) -> Tensor:
        """`z` again, from `h(z)`."""
        return self._run(z, -self.time)

    def log_det(self, z: Tensor, moved: Tensor | None = None) -> Tensor:
        """0 `(...)`: each shear has determinant 1; numerical, where the speed varies."""
        if self.speed is None:
            return z.new_zeros(z.shape[:-1])
        return _log_det(self, z, self.plane)

    def _run(self, z: Tensor, time: float) -> Tensor:
        i, j = self.plane
        columns = list(z.double().unbind(-1))
        step = time / self.steps
        if self.speed is not None:
            step = step * self.speed(self.energy(z.double()))

        def move(k: int, other: int, by: float | Tensor) -> None:
            slope = _gradient(self.energy, torch.stack(columns, dim=-1))
            columns[k] = columns[k] + by * slope[..., other]

        # half a step of i, a step of j, half of i, with neighbouring halves as one
        held = 0.0
        for _ in range(self.steps):
            for part in YOSHIDA:
                move(i, j, (held + part / 2) * step)
                move(j, i, -part * step)
                held = part / 2
        move(i, j, held * step)
        return torch.stack(columns, dim=-1).to(z.dtype)


class Twist:
    r"""A flow along the curves on which all of `m - 1` functions of `m` components are constant.

    .. math:: \dot z_C = e^{-b(z)} * (\nabla S_1 \wedge \dots \wedge \nabla S_{m-1}),
              \quad \nabla \cdot (e^{b} \dot z) = 0, \quad \dot z \cdot \nabla S_l = 0

    so that densities :math:`\propto e^{b + f(S)}` are kept, for every `f`: with
    :math:`b = \ln p_0 - \beta S` and :math:`S_l = \ln p_l - \ln p_0`, all of
    :math:`p_0, \dots, p_{m-1}`. For two components the gradient turned by 90°. Followed along its
    curve by the classical Runge-Kutta method, with a clock that tells when to stop, as the speed
    may differ by many orders of magnitude along one curve; with steps as short as it takes until
    twice as long ones do as well. A point whose clock never gets there (its curve is open, and
    runs out to infinity) becomes NaN. The inverse runs backwards.

    Args:
        field: `b` `(...)` and `S` `(..., m - 1)` of `z` `(..., K)`.
        components: The m components that move.
        time: How long.
        scale: `(K,)` typical sizes of the components, by default 1.
        pace: Typical radians by which :math:`*(\nabla S_1 \wedge \dots)` turns in unit time.
        tolerance: In units of ``scale``.
    """

    def __init__(
        self,
        field: Callable[[Tensor], tuple[Tensor, Tensor]],
        components: Sequence[int],
        time: float,
        *,
        scale: Tensor | None = None,
        pace: float = 1.0,
        tolerance: float = 1e-4,
    ) -> None:
        if len(components) < 2:
            raise InputError(f"components: expected at least 2, got {components}")
        self.field, self.components = field, list(components)
        self.time, self.pace, self.tolerance = float(time), pace, tolerance
        self.scale = None if scale is None else scale.double()

    def __call__(self, z: Tensor) -> Tensor:
        """`h(z)`."""
        return self._run(z, self.time)

    def roughly(self, z: Tensor) -> Tensor:
        """`h(z)` at one length of steps, not refined."""
        flat = z.double().flatten(0, -2)
        return self._march(flat, self.time, 2 * COARSEST).reshape(z.shape).to(z.dtype)

    def inverse(self, z: Tensor) -> Tensor:
        """`z` again, from `h(z)`."""
        return self._run(z, -self.time)

    def log_det(self, z: Tensor, moved: Tensor | None = None) -> Tensor:
        r""":math:`\ln |\det Dh| = b(z) - b(h(z))` `(...)`: the flow keeps :math:`e^b`.

        Args:
            z: Where.
            moved: `h(z)`, if it is known.
        """
        moved = self(z) if moved is None else moved
        return (self.field(z.double())[0] - self.field(moved.double())[0]).to(z.dtype)

    def direction(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`*(\nabla S_1 \wedge \dots)` `(..., m)` and :math:`b` `(...)`."""
        keep = z.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            x = z if keep else z.detach().requires_grad_()
            base, values = self.field(x)
            slopes = [
                torch.autograd.grad(value.sum(), x, create_graph=keep, retain_graph=True)[0]
                for value in values.unbind(-1)
            ]
            ahead = wedge(torch.stack(slopes, dim=-2)[..., self.components])
        return (ahead, base) if keep else (ahead.detach(), base.detach())

    def _run(self, z: Tensor, time: float) -> Tensor:
        """Where points end up, with steps short enough for each."""
        start = z.double().reshape(-1, z.shape[-1])
        end, left = torch.full_like(start, torch.nan), torch.arange(len(start))
        fine, before = COARSEST, self._march(start, time, COARSEST)
        while fine < FINEST:
            there = torch.isfinite(before).all(-1)
            left, before = left[there], before[there]
            if not len(left):
                break
            fine *= 2
            now = self._march(start[left], time, fine)
            good = ((now - before).abs() / self._size(start)).amax(-1) < self.tolerance
            end = end.index_copy(0, left[good], now[good])
            left, before = left[~good], now[~good]
        return end.reshape(z.shape).to(z.dtype)

    def _size(self, like: Tensor) -> Tensor:
        return like.new_ones(like.shape[-1]) if self.scale is None else self.scale

    def _march(self, start: Tensor, time: float, fine: int) -> Tensor:
        """Where points `(N, K)` are when their clocks show ``time``; NaN if they never do."""
        kept, step, goal = self.components, math.copysign(1 / fine, time), abs(time)
        size = self._size(start)[kept]

        def at(x: Tensor, rest: Tensor) -> Tensor:
            columns = list(rest.unbind(-1))
            for n, k in enumerate(kept):
                columns[k] = x[..., n]
            return torch.stack(columns, dim=-1)

        def rate(x: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
            """Of place and clock: a radian a unit where curves are small, else ``scale``."""
            ahead, base = self.direction(at(x, rest))
            slow = ((ahead / size).square().sum(-1) + self.pace**2).sqrt()
            return ahead / slow.unsqueeze(-1), base.exp() / slow

        def stepped(x: Tensor, rest: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
            """Where a step leads, and how long it takes."""
            along = by.unsqueeze(-1)
            v1, c1 = rate(x, rest)
            v2, c2 = rate(x + along / 2 * v1, rest)
            v3, c3 = rate(x + along / 2 * v2, rest)
            v4, c4 = rate(x + along * v3, rest)
            clock = by.abs() / 6 * (c1 + 2 * c2 + 2 * c3 + c4)
            return x + along / 6 * (v1 + 2 * v2 + 2 * v3 + v4), clock

        rows, x, clock = torch.arange(len(start)), start[:, kept], start.new_zeros(len(start))
        last = []  # of each point the row, where its last step starts, and the time still due
        for _ in range(LONGEST * fine):
            if not len(rows):
                break
            further, more = stepped(x, start[rows], torch.full_like(clock, step))
            over = clock + more >= goal
            if over.any():
                due = goal - clock[over]
                last.append((rows[over], x[over], due, step * due / more[over]))
            going = ~over & torch.isfinite(further).all(-1)
            rows, x, clock = rows[going], further[going], (clock + more)[going]
        end = torch.full_like(start, torch.nan)
        if not last:
            return end
        rows, x, due, part = (torch.cat(parts) for parts in zip(*last, strict=True))
        rest = start[rows]
        for _ in range(NEWTON):
            there, spent = stepped(x, rest, part)
            late = (spent - due) / rate(there, rest)[1]
            part = (part - math.copysign(1.0, step) * late).clamp(min(step, 0), max(step, 0))
        return end.index_copy(0, rows, at(stepped(x, rest, part)[0], rest))


def _gradient(function: Scalar, z: Tensor) -> Tensor:
    """Gradients `(..., K)` at `z`, with a graph where `z` has one."""
    keep = z.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        x = z if keep else z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=keep)
    return slope


def wedge(slopes: Tensor) -> Tensor:
    """The vector `(..., m)` normal to `m - 1` vectors `(..., m - 1, m)`, by their minors."""
    size = slopes.shape[-1]
    if size == 2:
        return torch.stack([slopes[..., 0, 1], -slopes[..., 0, 0]], dim=-1)
    others = [[c for c in range(size) if c != k] for k in range(size)]
    minors = torch.linalg.det(slopes[..., others].movedim(-2, -3))
    return minors * minors.new_tensor([(-1) ** k for k in range(size)])


def _log_det(h: Callable[[Tensor], Tensor], z: Tensor, components: Sequence[int]) -> Tensor:
    r""":math:`\ln |\det Dh|` of a map that moves some components, by central differences."""
    kept = list(components)
    x = z.double()
    columns = []
    for k in kept:
        aside = x.new_zeros(x.shape[-1])
        aside[k] = STEP
        change = h(torch.stack([x + aside, x - aside]))[..., kept]
        columns.append((change[0] - change[1]) / (2 * STEP))
    return torch.linalg.slogdet(torch.stack(columns, dim=-1)).logabsdet.to(z.dtype)
