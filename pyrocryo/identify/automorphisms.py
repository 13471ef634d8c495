r"""The search for maps of `z` that no condition can see, from samples and ``log_prob`` alone.

A map `h` that leaves every :math:`p(z | u_l)` as it is makes of a decoder `g` another one,
:math:`g \circ h^{-1}`, with the same likelihood at every condition: whatever else tells the two
apart, data do not. Rotations of whitened `z` are found as the null space of a linear system;
curved maps are flows along the curves on which all contrasts
:math:`S_l = \ln p_l - \ln p_0` are constant, in subsets of components where such curves exist
(fewer independent contrasts than components) and close.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.identify.candidates import (
    TOLERANCE,
    TRIVIAL,
    Automorphism,
    Candidates,
    Map,
    named,
    why,
)
from pyrocryo.identify.densities import Laws, gradient
from pyrocryo.identify.flows import HamiltonianFlow, Rotation, Twist

__all__ = ["Automorphism", "automorphism"]

ANGLE = np.pi / 4  # where a rotation mixes two components most
TIMES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # of a flow, in typical radians
MIXED = 0.75  # MCC at which it has gone on for long enough
COARSE, MOST = 32, 1024  # steps of a flow: a radian while exploring; at most in all
LARGEST = 5  # components that a flow moves together
SLACK = 1e-4  # standard deviations by which h's inverse may miss


def automorphism(prior: Any, conditions: Any = None, *, seed: int = 0) -> Automorphism:
    """Looks for a map of `z` that leaves a prior as it is at all of its conditions.

    Continuous maps only: permutations, signs and other mirror images do not count. Laws of several
    frames `(T, K)` are searched for rotations alone, the same for all frames. The prior is taken
    with the values that it has now; one that is learned may have more freedom. Failure to find a
    map is no proof that there is none.

    Args:
        prior: What :class:`pyrocryo.Pair` takes.
        conditions: As of :class:`pyrocryo.identify.densities.Laws`.
        seed: Of the points.

    Raises:
        InputError: If ``prior`` is no prior, or ``conditions`` are not what it asks for.
    """
    return _Search(Laws(prior, conditions), seed).run()


class _Search(Candidates):
    """Rotations first, then flows."""

    def run(self) -> Automorphism:
        """The first that is found."""
        if self.laws.dim == 1:
            self.tried.append("there is one component, and nothing to mix it with")
        for found in itertools.chain(self.rotations(), self.flows()):
            return replace(found, tried=tuple(self.tried))
        none = np.full(self.laws.count, np.nan)
        names = tuple(self.laws.names)
        tried = tuple(self.tried)
        return Automorphism(None, None, (), names, self.warmest, none, none, none, tried)

    # rotations

    def rotations(self) -> Iterator[Automorphism]:
        r"""Affine maps: generators `A`, `b` with :math:`\nabla \ln p_l (A z + b) + tr A = 0`."""
        dim = self.laws.dim
        z = self.few
        slope = gradient(lambda x: self.laws.own(x).sum(-1), z)
        z, slope = (z - self.centre) / self.scale, slope * self.scale
        if self.laws.frames is None:
            z, slope = z.unsqueeze(-2), slope.unsqueeze(-2)
        trace = torch.eye(dim, dtype=z.dtype) * z.shape[-2]
        linear = torch.einsum("...ti,...tj->...ij", slope, z) + trace
        rows = torch.cat([linear.flatten(-2), slope.sum(-2)], dim=-1).flatten(0, -2)
        rows = rows[torch.isfinite(rows).all(-1)]
        least = np.inf
        for plane in itertools.combinations(range(dim), 2):
            kept = [i * dim + j for i in plane for j in plane] + [dim * dim + i for i in plane]
            null, smallest = self._null(rows[:, kept])
            least = min(least, smallest)
            for vector in null:
                whole = rows.new_zeros(dim * dim + dim)
                whole[kept] = vector
                yield from self._rotation(whole, plane)
        if dim > 2:
            null, smallest = self._null(rows)
            least = min(least, smallest)
            for vector in null:
                yield from self._rotation(vector, tuple(range(dim)))
        if dim > 1:
            share = f" (the gentlest changes ln p by {least:.2g} of what the harshest does)"
            self.tried.append(f"rotations: none{share if least > self.null else ''}")

    def _null(self, rows: Tensor) -> tuple[Tensor, float]:
        """Directions that change nothing, and the least change over the largest."""
        _, values, directions = torch.linalg.svd(rows, full_matrices=False)
        return directions[values < self.null * values[0]], float(values[-1] / values[0])

    def _rotation(self, generator: Tensor, components: tuple[int, ...]) -> Iterator[Automorphism]:
        dim = self.laws.dim
        a, b = generator[: dim * dim].reshape(dim, dim), generator[dim * dim :]
        rate = torch.linalg.eigvals(a).imag.abs().max()
        if rate < 1e-6 * a.norm():
            return
        fixed = -torch.linalg.lstsq(a, b.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        matrix = torch.linalg.matrix_exp(ANGLE / rate * a)
        h = Rotation(
            matrix * self.scale.unsqueeze(-1) / self.scale, self.centre + self.scale * fixed
        )
        yield from self.checked(h, "rotation", components)

    # flows

    def flows(self) -> Iterator[Automorphism]:
        """Curved maps, in subsets of components of least size."""
        if self.laws.frames is not None:
            self.tried.append("flows: not looked for in laws of several frames")
            return
        lacking: list[tuple[int, ...]] = []
        every = self._slopes(self.few)
        for size in range(2, min(self.laws.dim, LARGEST) + 1):
            for components in itertools.combinations(range(self.laws.dim), size):
                if any(set(smaller) <= set(components) for smaller in lacking):
                    continue
                slopes = every[..., components]
                rank = self._rank(slopes)
                if rank == size:
                    self.tried.append(
                        f"{named(components)}: {rank} independent contrasts pin down every point"
                    )
                    continue
                lacking.append(components)
                yield from self._flow(components, slopes, rank)

    def _slopes(self, z: Tensor) -> Tensor:
        """Gradients `(N, L, K)` at all points of ln p at the warmest condition, then contrasts."""
        z = z.flatten(0, -2)
        slopes = [
            gradient(lambda x, row=row: self.laws.log_prob(x)[..., row], z) for row in self.order
        ]
        stacked = torch.stack(slopes, dim=1) * self.scale
        return torch.cat([stacked[:, :1], stacked[:, 1:] - stacked[:, :1]], dim=1)

    @property
    def order(self) -> list[int]:
        """Conditions, the warmest first."""
        rest = [row for row in range(self.laws.count) if row != self.warmest]
        return [self.warmest, *rest]

    def _rank(self, slopes: Tensor) -> int:
        """Of the contrasts' gradients `(N, L - 1, m)`, generically."""
        if slopes.shape[1] == 1:
            return 0
        values = torch.linalg.svdvals(slopes[:, 1:])
        typical = values.median(dim=0).values
        return int((typical > self.null * slopes.square().mean().sqrt()).sum())

    def _flow(
        self, components: tuple[int, ...], slopes: Tensor, rank: int
    ) -> Iterator[Automorphism]:
        name = named(components)
        if rank not in (0, len(components) - 1) or (rank == 0 and len(components) > 2):
            return
        alone, apart = self._alone(components)
        if not alone:
            self.tried.append(f"{name}: not independent of the others, so not moved alone")
            return
        if any(self._kinked(k) for k in components):
            self.tried.append(
                f"{name}: ln p has a kink, and so have flows along its level curves; decoders "
                "with a derivative are not mistaken for one another"
            )
            return
        rows = self._leading(slopes, rank)
        laws = self.laws.only(rows) if rank else self.laws.only([self.warmest])
        slope, hamiltonian = self._levels(laws, components, rank)
        if hamiltonian:
            energy = _alone(
                lambda x: -laws.log_prob(x, inside=True)[..., 0], components, self.centre
            )
            if apart:

                def shears(time: float, steps: int) -> Map:
                    return HamiltonianFlow(energy, components, time, steps=steps)

                yield from self._timed(shears, "flow", components)
                return

            def field(z: Tensor) -> tuple[Tensor, Tensor]:
                value = energy(z)
                return torch.zeros_like(value), value.unsqueeze(-1)

        else:

            def contrasts(z: Tensor) -> tuple[Tensor, Tensor]:
                value = laws.log_prob(z, inside=True)
                contrast = value[..., 1:] - value[..., :1]
                return value[..., 0] - contrast @ slope, contrast

            field = _alone(contrasts, components, self.centre)
        pace = self._pace(Twist(field, components, 1.0))

        def twist(time: float, _: int) -> Map:
            return Twist(field, components, time, scale=self.scale, pace=pace)

        yield from self._timed(twist, "flow" if hamiltonian else "twist", components)

    def _alone(self, components: tuple[int, ...]) -> tuple[bool, bool]:
        """Whether a subset is independent of the rest, and its components of one another."""
        z = self.few.flatten(0, -2)
        here = self._slopes(self.few)[..., components]
        size = here.square().mean().sqrt()

        def same(kept: tuple[int, ...]) -> bool:
            still = self.centre.expand_as(z).clone()
            still[:, kept] = z[:, kept]
            there = self._slopes(still.unsqueeze(1))[..., kept]
            where = [components.index(k) for k in kept]
            return bool((there - here[..., where]).abs().max() < 10 * self.null * size)

        return same(components), all(same((k,)) for k in components)

    def _leading(self, slopes: Tensor, rank: int) -> list[int]:
        """The warmest condition, and as many whose contrasts are as different as can be."""
        order, rows = self.order, [0]
        columns = slopes[:, 1:].transpose(1, 2).flatten(0, 1)  # (N m, L - 1)
        for _ in range(rank):
            best = int(columns.square().sum(0).argmax())
            rows.append(best + 1)
            unit = columns[:, best] / columns[:, best].norm()
            columns = columns - unit.unsqueeze(-1) * (unit @ columns)
        return [order[row] for row in rows]

    def _levels(self, laws: Laws, components: tuple[int, ...], rank: int) -> tuple[Tensor, bool]:
        """Slopes of ln p in the contrasts, `(rank,)`, and whether nothing is left over."""
        z = self.few[:, self.warmest]
        still = self.centre.expand_as(z).clone()
        still[:, components] = z[:, components]
        if rank == 0:
            return z.new_zeros(0), True
        value = laws.log_prob(still)
        contrast = value[:, 1:] - value[:, :1]
        design = torch.cat([contrast, torch.ones_like(contrast[:, :1])], dim=1)
        solved = torch.linalg.lstsq(design, value[:, 0], driver="gelsd").solution
        left = (value[:, 0] - design @ solved).std() / value[:, 0].std()
        return solved[:-1], rank == 1 and bool(left < 10 * self.null)

    def _pace(self, flow: Twist) -> float:
        """Typical radians by which its direction turns."""
        z, kept = self.few.flatten(0, -2), flow.components
        speed = (flow.direction(z)[0] / self.scale[kept]).norm(dim=-1)
        radius = ((z - self.centre) / self.scale)[:, kept].norm(dim=-1).clamp_min(0.1)
        return float((speed / radius).median())

    def _timed(
        self, make: Callable[[float, int], Map], kind: str, components: tuple[int, ...]
    ) -> Iterator[Automorphism]:
        """A flow for the shortest time that mixes well, with as many steps as it takes."""
        name, kept = named(components), list(components)
        z = self.few if len(kept) == 2 else self.few[::3]
        unit, fine = self._radian(make, kept), COARSE
        best, at, moved, before, whole = TRIVIAL, None, z, 0.0, False
        for time in TIMES:
            start = moved
            while True:
                more = time - before
                h = make(more * unit, round(more * fine))
                moved = h.roughly(start) if isinstance(h, Twist) else h(start)
                whole = bool(torch.isfinite(self.laws.own(moved)).all())
                if whole or isinstance(h, Twist) or fine >= 16 * COARSE:
                    break
                fine *= 2
            if not whole:
                break
            mixing, before = float(self.mcc(z, moved, kept)[self.warmest]), time
            if mixing < best:
                best, at = mixing, time
            if mixing < MIXED:
                break
        if at is None:
            self.tried.append(f"{name}: {why(whole)}")
            return
        steps = round(at * fine)
        h = make(at * unit, steps)
        while isinstance(h, HamiltonianFlow) and steps < MOST and not self._accurate(h, z):
            steps *= 2
            h = make(at * unit, steps)
        yield from self.checked(h, kind, components)

    def _accurate(self, h: Map, z: Tensor) -> bool:
        """Whether the steps are short enough."""
        moved = h(z)
        worst = self.change(h, z, moved).abs().max()
        if torch.isinf(worst):  # shorter steps do not bring it back
            return True
        return bool(worst < TOLERANCE / 4) and bool(
            ((h.inverse(moved) - z).abs() / self.scale).max() < SLACK
        )

    def _radian(self, make: Callable[[float, int], Map], kept: list[int]) -> float:
        """The time in which a flow typically turns points by as much as they are off-centre."""
        z, short = self.few, 1e-6
        speed = (make(short, 1)(z) - z)[..., kept] / short / self.scale[kept]
        radius = ((z - self.centre) / self.scale)[..., kept].norm(dim=-1).clamp_min(0.1)
        return float(1 / (speed.norm(dim=-1) / radius).median())

    def _kinked(self, k: int) -> bool:
        """Whether the slope of ln p along a component jumps."""
        column = self.z[..., k].flatten()
        low, high = column.min(), column.max()

        def jump(low: Tensor, high: Tensor) -> tuple[float, float, Tensor, Tensor]:
            """The largest jump of the slope, the largest slope, and where it jumps."""
            grid = torch.linspace(float(low), float(high), 1001, dtype=column.dtype)
            z = self.centre.repeat(len(grid), 1)
            z[:, k] = grid
            slopes = gradient(lambda x: self.laws.log_prob(x).sum(-1), z)[:, k]
            jumps = slopes.diff().abs()
            at = int(jumps.argmax())
            return float(jumps[at]), float(slopes.abs().max()), grid[at], grid[at + 1]

        coarse, slope, left, right = jump(low, high)
        fine, *_ = jump(left, right)  # a thousand times finer: of smooth laws a thousandth
        return fine > 0.3 * coarse > 1e-6 * slope


def _alone(
    function: Callable[[Tensor], Any], components: tuple[int, ...], centre: Tensor
) -> Callable[[Tensor], Any]:
    """The function with the other components at the centre."""

    def held(z: Tensor) -> Any:
        columns = list(centre.to(z).expand_as(z).unbind(-1))
        for k in components:
            columns[k] = z[..., k]
        return function(torch.stack(columns, dim=-1))

    return held
