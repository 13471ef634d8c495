r"""Which maps of `z` leave a prior as it is at every condition: linear ones, and permutations.

A flow :math:`\dot z = B z + c` preserves :math:`p(z | u_l)` if and only if
:math:`(B z + c) \cdot \nabla \ln p(z | u_l) + \mathrm{tr} B = 0` for all z: linear equations for B
and c, so all such flows are the null space of one matrix, without any search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocryo.identify.laws import Laws
from pyrocryo.identify.power import BLIND, turn_of
from pyrocryo.identify.prior_check import Gap
from pyrocryo.identify.ranks import ROUNDED

__all__ = ["Flow", "Group", "gaps", "group", "permutations", "scales"]

POINTS = 500  # of z for the linear equations
ANGLES = (10.0, 22.5, 45.0)
NEAR = 4.0  # standard errors within which a centre counts as 0, or is sought
WORTH = 0.3  # nats within which it is
FEW = 1000  # draws for that
SECTIONS = 16
EQUAL = 1e-4  # by which two rates of turning may differ


@dataclass(frozen=True)
class Flow:
    r"""A linear flow :math:`\dot z = A (z - m)` that leaves a prior as it is.

    Attributes:
        matrix: `(K, K)` A.
        centre: `(K,)` m.
    """

    matrix: Tensor
    centre: Tensor


@dataclass(frozen=True)
class Group:
    """Linear maps that leave a prior as it is.

    Attributes:
        size: Dimension of the group.
        planes: Pairs of components (from 1) whose turns belong to it.
        round: Those of them that are turns of `z` itself, not only of whitened `z`.
        loose: Pairs that a linear decoder leaves open if the prior is learned: whose turns
            preserve each condition's law up to a shift.
        loose_round: Those of them that are turns of `z` itself.
        flows: One for each of ``planes``, then as many as ``size``, which together generate all.
        least: How little the gentlest linear flow changes ln p, of what the harshest does.
    """

    size: int
    planes: tuple[tuple[int, int], ...]
    round: tuple[tuple[int, int], ...]
    loose: tuple[tuple[int, int], ...]
    loose_round: tuple[tuple[int, int], ...]
    flows: tuple[Flow, ...] = ()
    least: float = 0.0


def scales(z: Tensor) -> Tensor:
    """Standard deviations `(K,)` of draws `(..., K)`; of heavy tails, those of the middle."""
    flat = z.flatten(0, -2)
    quartiles = flat.quantile(torch.tensor([0.25, 0.75]), dim=0)
    return torch.minimum(flat.std(dim=0), 5 * (quartiles[1] - quartiles[0]).clamp_min(1e-12))


def group(laws: Laws, z: Tensor, scale: Tensor) -> Group:
    """The linear maps that leave the prior as it is, the same in every frame.

    Args:
        laws: The prior.
        z: Draws `(N, [T,] K)` from the mixture of conditions.
        scale: `(K,)`.
    """
    z = z[torch.randperm(len(z))[:POINTS]]
    slope = laws.gradients(z) * scale  # (N, L, [T,] K)
    centre = z.flatten(0, -2).median(dim=0).values
    white = (z - centre) / scale
    if len(laws.event) == 1:
        slope, white = slope.unsqueeze(-2), white.unsqueeze(-2)
    frames, n = white.shape[-2:]
    products = torch.einsum("nlti,ntj->nlij", slope, white)
    shifts = slope.sum(2)  # (N, L, K)
    trace = frames * torch.eye(n).flatten()
    every = torch.cat([products.flatten(2) + trace, shifts], dim=-1).flatten(0, 1)
    null, least = _null(every)
    size, flows = len(null), []

    def flow(i: Sequence[int], j: Sequence[int], rates: Tensor, at: Sequence[int]) -> Flow:
        """Of z, from entries `(i, j)` of the matrix of whitened z, and shifts of some of it."""
        matrix, shift = torch.zeros(n, n), torch.zeros(n)
        matrix[i, j], shift[at] = rates[: len(i)], rates[len(i) :]
        fixed = torch.linalg.lstsq(matrix, -shift.unsqueeze(-1), driver="gelsd").solution
        unit = scale.unsqueeze(-1)
        return Flow(matrix * unit / scale, centre + scale * fixed.squeeze(-1))

    found: dict[str, list[tuple[int, int]]] = {"": [], "round": [], "loose": [], "loose round": []}
    for i, j in itertools.combinations(range(n), 2):
        pair, moves = products[..., [i, j], [j, i]], shifts[..., [i, j]]
        # with a shift of its own at every condition
        free = torch.cat([_without(pair[:, k], moves[:, k]) for k in range(laws.count)])
        for kind, rows, like in (
            ("", torch.cat([pair, moves], dim=-1).flatten(0, 1), None),
            ("loose", free, pair.flatten(0, 1)),
        ):
            turns = _null(rows, like)[0]
            turns = [v for v in turns if v[:2].abs().min() > EQUAL * v.abs().max()]
            if not turns:
                continue
            found[kind].append((i + 1, j + 1))
            if kind == "":
                flows.append(flow([i, j], [j, i], turns[0], [i, j]))
            # rates of turning back in units of z, b_ij s_i / s_j and b_ji s_j / s_i
            ratio = (turns[0][0] / turns[0][1]).abs().sqrt() * scale[i] / scale[j]
            if abs(ratio - 1) < EQUAL:
                found[f"{kind} round".strip()].append((i + 1, j + 1))
    if laws.bounded:  # which flows across the ends need not keep
        size = len(found[""])
    entries = list(itertools.product(range(n), repeat=2))
    flows += [flow(*zip(*entries, strict=True), v, range(n)) for v in null]
    return Group(size, *(tuple(planes) for planes in found.values()), tuple(flows), least)


def _null(rows: Tensor, like: Tensor | None = None) -> tuple[list[Tensor], float]:
    """Null vectors of ``rows``, columns first made of one length; least over largest value."""
    length = (rows if like is None else like).square().mean(0).sqrt().clamp_min(1e-300)
    triangle = torch.linalg.qr(rows / length / math.sqrt(len(rows)), mode="r").R
    _, values, right = torch.linalg.svd(triangle)
    kept = values <= ROUNDED * values[0]
    return [v / length for v in right[kept]], (values[-1] / values[0].clamp_min(1e-300)).item()


def _without(rows: Tensor, moves: Tensor) -> Tensor:
    basis = torch.linalg.qr(moves).Q
    return rows - basis @ (basis.T @ rows)


def permutations(laws: Laws, z: Tensor, scale: Tensor) -> tuple[tuple[int, ...], ...]:
    """Signs and exchanges of (whitened) components that leave every condition's law as it is.

    Within 1e-3 nats a particle at each. Generators: single signs, the sign of all, exchanges of
    two. Centres and ratios of scales that draws give only nearly are sought within their errors.

    Args:
        laws: The prior.
        z: `(N, L, [T,] K)` draws at each condition.
        scale: `(K,)`.
    """
    n = laws.dim
    flat = z.flatten(0, -2)
    error = flat.std(0) / math.sqrt(len(flat))
    centre = flat.mean(0)
    centre = torch.where(centre.abs() < NEAR * error, torch.zeros(n), centre)
    few = z[: max(1, FEW // laws.count)]
    found: list[tuple[int, ...]] = []

    def cost(move: Sequence[int], unit: Tensor, middle: Tensor, some: Tensor = z) -> float:
        order, signs = [abs(k) - 1 for k in move], torch.tensor(move).sign()
        moved = middle + unit * signs * ((some - middle) / unit)[..., order]
        return (laws.own(some) - laws.own(moved)).mean(0).max().item()

    def kept(
        move: tuple[int, ...],
        unit: Tensor,
        middle: Tensor,
        change: Callable[[float], tuple[Tensor, Tensor]] | None = None,
    ) -> bool:
        """Whether a move does, or can by a ``change`` of between -1 and 1 of unit and centre."""
        least = cost(move, unit, middle)
        if change and BLIND <= least < WORTH:
            best = _least(lambda x: cost(move, *change(x), few))
            least = cost(move, *change(best))
            if least < BLIND:
                centre.copy_(change(best)[1])
        if least < BLIND:
            found.append(move)
        return least < BLIND

    one, plain = torch.ones(n), tuple(range(1, n + 1))
    for k in range(n):
        wide = NEAR * error * (torch.arange(n) == k)
        sign = tuple(-i if i == k + 1 else i for i in plain)
        kept(sign, one, centre, lambda x, wide=wide: (one, centre + x * wide))
    if not found and n > 1:
        kept(tuple(-i for i in plain), one, centre)
    for i, j in itertools.combinations(range(n), 2):
        wide = NEAR / math.sqrt(len(flat)) * (torch.arange(n) == i)
        for first, second in ((1, 1), (-1, -1), (1, -1)):
            move = list(plain)
            move[i], move[j] = first * (j + 1), second * (i + 1)
            if kept(tuple(move), one, torch.zeros(n)) or kept(
                tuple(move), scale, centre, lambda x, w=wide: (scale * (x * w).exp(), centre)
            ):
                break
    return tuple(found)


def _least(cost: Callable[[float], float], low: float = -1.0, high: float = 1.0) -> float:
    """Where ``cost`` is least, by golden sections."""
    part = (math.sqrt(5) - 1) / 2
    inner = [high - part * (high - low), low + part * (high - low)]
    costs = [cost(x) for x in inner]
    for _ in range(SECTIONS):
        if costs[0] < costs[1]:
            high, inner[1], costs[1] = inner[1], inner[0], costs[0]
            inner[0] = high - part * (high - low)
            costs[0] = cost(inner[0])
        else:
            low, inner[0], costs[0] = inner[0], inner[1], costs[1]
            inner[1] = low + part * (high - low)
            costs[1] = cost(inner[1])
    return (low + high) / 2


def gaps(laws: Laws, z: Tensor) -> tuple[Gap, ...]:
    r"""What turns of each plane cost, :math:`E[\ln p(z | u) - \ln p(R z | u)]`.

    Args:
        laws: The prior.
        z: `(N, L, [T,] K)` draws at each condition.
    """
    own = laws.own(z)
    pairs = max(1, laws.event[0] - 1) if len(laws.event) == 2 else 1
    units = torch.ones(laws.dim), z.flatten(0, -2).std(dim=0)
    found = []
    for i, j in itertools.combinations(range(laws.dim), 2):
        cost: dict[float, list[tuple[float, float]]] = {}
        for angle, unit in itertools.product(ANGLES, units):
            each = []
            for sense in (angle, -angle):
                lost = (own - laws.own(turn_of(sense, i, j, unit)(z))) / pairs
                error = lost.std() / math.sqrt(lost.numel())
                each.append((lost.mean().item(), error.item()))
            cost.setdefault(angle, []).append(min(each))
        whole = cost[45.0]
        best = min(whole)
        turns = {angle: min(values)[0] for angle, values in cost.items()}
        found.append(Gap((i + 1, j + 1), whole[0][0], whole[1][0], *best, turns))
    return tuple(found)
