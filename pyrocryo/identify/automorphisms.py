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
from functools import cached_property
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
from pyrocryo.identify.flows import HamiltonianFlow, Rotation, Twist
from pyrocryo.identify.laws import Laws, in_double, made_double, values_of
from pyrocryo.identify.ranks import ROUNDED, corners, dependent, rank_of
from pyrocryo.identify.symmetry import Flow, group

__all__ = ["Automorphism", "automorphism"]

ANGLE = np.pi / 4  # where a rotation mixes two components most
TIMES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # of a flow, in typical radians
MIXED = 0.75  # MCC at which it has gone on for long enough
COARSE, MOST = 32, 1024  # steps of a flow: a radian while exploring; at most in all
LARGEST = 5  # components that a flow moves together
PROBE = 12  # points that show whether curves are open, before others follow them
SLACK = 1e-4  # standard deviations by which h's inverse may miss


def automorphism(prior: Any, conditions: Any = None, *, seed: int = 0) -> Automorphism:
    """Looks for a map of `z` that leaves a prior as it is at all of its conditions.

    Continuous maps only: permutations, signs and other mirror images do not count. Laws of several
    frames `(T, K)` are searched for rotations alone, the same for all frames. The prior is taken
    with the values that it has now; one that is learned may have more freedom. Failure to find a
    map is no proof that there is none: where fewer than K - 1 contrasts are independent, but no
    few components have closed level curves, :func:`pyrocryo.identify.check_prior` knows more.
    Seconds for two components, about ten for five and a condition too few.

    Args:
        prior: What :class:`pyrocryo.Pair` takes.
        conditions: As of :func:`pyrocryo.identify.check_prior`.
        seed: Of the points.

    Raises:
        InputError: If ``prior`` is no prior, or ``conditions`` are not what it asks for.
    """
    values = values_of(prior, conditions)
    with in_double(seed):
        return _Search(Laws(made_double(prior), values)).run()


class _Search(Candidates):
    """Rotations first, then flows."""

    def run(self) -> Automorphism:
        """The first that is found."""
        if self.laws.dim == 1:
            self.tried.append("there is one component, and nothing to mix it with")
        for found in itertools.chain(self.rotations(), self.flows()):
            return replace(found, tried=tuple(self.tried))
        none = np.full(self.laws.count, np.nan)
        return Automorphism(
            None, None, (), self.laws.names, self.warmest, none, none, none, tuple(self.tried)
        )

    # rotations

    def rotations(self) -> Iterator[Automorphism]:
        """Along linear flows, of two components first."""
        found = group(self.laws, self.z.flatten(0, 1), self.scale)
        for flow in found.flows:
            yield from self._rotation(flow)
        if self.laws.dim > 1:
            share = f" (the gentlest changes ln p by {found.least:.2g} of what the harshest does)"
            self.tried.append(f"rotations: none{share if found.least > ROUNDED else ''}")

    def _rotation(self, flow: Flow) -> Iterator[Automorphism]:
        white = flow.matrix * self.scale / self.scale.unsqueeze(-1)
        rate = torch.linalg.eigvals(white).imag.abs().max()
        if rate < 1e-6 * white.norm():
            return
        large = white.abs() > 1e-6 * white.abs().max()
        moved = torch.where(large.any(0) | large.any(1))[0].tolist()
        h = Rotation(torch.linalg.matrix_exp(ANGLE / rate * flow.matrix), flow.centre)
        yield from self.checked(h, "rotation", tuple(moved))

    # flows

    def flows(self) -> Iterator[Automorphism]:
        """Curved maps, in subsets of components of least size."""
        if len(self.laws.event) == 2:
            self.tried.append("flows: not looked for in laws of several frames")
            return
        lacking: list[tuple[int, ...]] = []
        for size in range(2, min(self.laws.dim, LARGEST) + 1):
            for components in itertools.combinations(range(self.laws.dim), size):
                if any(set(smaller) <= set(components) for smaller in lacking):
                    continue
                rank = rank_of(self.slopes, components)
                if rank == size:
                    self.tried.append(
                        f"{named(components)}: {rank} independent contrasts pin down every point"
                    )
                    continue
                if self._tied(components):
                    self.tried.append(
                        f"{named(components)}: not independent of the others, so not moved alone"
                    )
                    continue
                lacking.append(components)
                yield from self._flow(components, rank)

    @cached_property
    def derivatives(self) -> tuple[Tensor, Tensor]:
        """Gradients `(N, L, K)` and Hessians at all points and conditions."""
        return self.laws.derivatives(self.few.flatten(0, 1))

    @cached_property
    def slopes(self) -> Tensor:
        """Gradients `(N, L, K)` in whitened `z`, the warmest condition first."""
        return self.derivatives[0][:, self.order] * self.scale

    @cached_property
    def ties(self) -> Tensor:
        """Pairs of components that depend on one another, `(K, K)`."""
        return dependent(self.derivatives[1], self.scale)

    @cached_property
    def corners(self) -> list[float | None]:
        """Where ln p has a corner in each component."""
        return corners(self.laws, self.z.flatten(0, 1))

    def _tied(self, components: tuple[int, ...]) -> bool:
        """Whether some components depend on the others."""
        others = [k for k in range(self.laws.dim) if k not in components]
        return bool(self.ties[list(components)][:, others].any())

    @property
    def order(self) -> list[int]:
        """Conditions, the warmest first."""
        rest = [row for row in range(self.laws.count) if row != self.warmest]
        return [self.warmest, *rest]

    def _flow(self, components: tuple[int, ...], rank: int) -> Iterator[Automorphism]:
        name = named(components)
        if rank not in (0, len(components) - 1) or (rank == 0 and len(components) > 2):
            return
        if any(self.corners[k] is not None for k in components):
            self.tried.append(
                f"{name}: ln p has a kink, and so have flows along its level curves; decoders "
                "with a derivative are not mistaken for one another"
            )
            return
        laws = self.laws
        if laws.count > 1:
            laws = laws.only(self._leading(components, rank))
        slope, hamiltonian = self._levels(laws, components, rank)
        if hamiltonian:
            energy = _alone(lambda x: -laws.log_prob(x)[..., 0], components, self.centre)
            if not self.ties[list(components)][:, list(components)].any():

                def shears(time: float, steps: int) -> Map:
                    return HamiltonianFlow(energy, components, time, steps=steps)

                yield from self._timed(shears, "flow", components)
                return

            def field(z: Tensor) -> tuple[Tensor, Tensor]:
                value = energy(z)
                return torch.zeros_like(value), value.unsqueeze(-1)

        else:

            def contrasts(z: Tensor) -> tuple[Tensor, Tensor]:
                value = laws.log_prob(z)
                contrast = value[..., 1:] - value[..., :1]
                return value[..., 0] - contrast @ slope, contrast

            field = _alone(contrasts, components, self.centre)
        pace = self._pace(Twist(field, components, 1.0))

        def twist(time: float, _: int) -> Map:
            return Twist(field, components, time, scale=self.scale, pace=pace)

        yield from self._timed(twist, "flow" if hamiltonian else "twist", components)

    def _leading(self, components: tuple[int, ...], rank: int) -> list[int]:
        """The warmest condition, and as many whose contrasts are as different as can be."""
        order, rows = self.order, [0]
        contrasts = (self.slopes[:, 1:] - self.slopes[:, :1])[..., components]
        columns = contrasts.transpose(1, 2).flatten(0, 1)  # (N m, L - 1)
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
        return solved[:-1], rank == 1 and bool(left < 10 * ROUNDED)

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
                follow = h.roughly if isinstance(h, Twist) else h
                whole = self._whole(follow(start[: -(-PROBE // self.laws.count)]))
                if whole:
                    moved = follow(start)
                    whole = self._whole(moved)
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

    def _whole(self, moved: Tensor) -> bool:
        """Whether no point got lost."""
        return bool(torch.isfinite(self.laws.own(moved)).all())

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
        h = make(short, 1)
        if isinstance(h, Twist):
            ahead, base = h.direction(z)
            speed = ahead / base.exp().unsqueeze(-1) / self.scale[kept]
        else:
            speed = (h(z) - z)[..., kept] / short / self.scale[kept]
        radius = ((z - self.centre) / self.scale)[..., kept].norm(dim=-1).clamp_min(0.1)
        return float(1 / (speed.norm(dim=-1) / radius).median())


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
