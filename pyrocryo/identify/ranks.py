r"""Ranks of a prior's contrasts: how many separate things the conditions tell of `z`.

With :math:`S_l = \ln p(z | u_l) - \ln p(z | u_0)` and :math:`q_k` the log-density of component k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrocryo.identify.laws import Laws

__all__ = ["Ranks", "corners", "dependent", "rank_of", "ranks"]

TOLERANCE = 1e-7  # singular values below, of the largest, are 0
ROUNDED = 1e-6  # of the scores: the numbers of priors are mostly kept in single precision
TYPICAL = 0.05  # share of z where a rank must be found
WHOLE = 0.95  # share from which it counts as everywhere
NODES = 200  # of each component's grid
TAILS = 0.005  # left out at each end of it
CORNER = 1e-3  # jump of a slope, of its range
HALVINGS = 40


@dataclass(frozen=True)
class Ranks:
    r"""Ranks of J, F and W with their singular values, relative to the largest.

    Attributes:
        j: Rank of J, :math:`[\partial_k S_l]`, found in at least 5 % of `z`.
        f: Rank of F, the contrasts as functions of `z`; None where components are dependent.
        each: The same, component by component, :math:`d_k`.
        w: Rank of W, :math:`[\partial_k S_l, \partial_k^2 S_l]`.
        share: Share of `z` where J and W have their ranks, by ``j``, ``w``.
        singular: By ``j``, ``f``, ``w``.
        monotone: Of components with one statistic, whether that is monotone.
    """

    j: int
    f: int | None
    each: tuple[int, ...] | None
    w: int | None
    share: dict[str, float]
    singular: dict[str, np.ndarray]
    monotone: tuple[bool | None, ...]

    @property
    def independent(self) -> bool:
        """Whether components are independent at each condition."""
        return self.each is not None

    def where(self, name: str) -> str:
        """Of ``j`` or ``w``, in words: nothing where it is everywhere."""
        share = self.share.get(name, 1.0)
        return f", at {100 * share:.0f} % of z" if share < WHOLE else ""

    def condition(self, dim: int) -> dict[str, float]:
        """Largest over smallest of the singular values that are asked for."""
        asked = {"j": (self.j, dim), "f": (self.f, sum(self.each or ())), "w": (self.w, 2 * dim)}
        found = {}
        for name, (rank, least) in asked.items():
            values = self.singular.get(name, np.zeros(0))
            enough = rank == least <= len(values) and least > 0
            found[name] = float(values[0] / values[least - 1]) if enough else float("inf")
        return found


def dependent(hessian: Tensor, scale: Tensor) -> Tensor:
    r"""Pairs `(K, K)`, i ≠ j, with :math:`\partial_i \partial_j \ln p \ne 0` anywhere."""
    white = hessian * scale * scale.unsqueeze(-1)
    diagonal = white.diagonal(dim1=-2, dim2=-1)
    apart = (white - torch.diag_embed(diagonal)).abs().flatten(0, -3).amax(0)
    return ~(apart <= 1e-6 * (diagonal.abs().mean() + 1e-3))


def rank_of(first: Tensor, components: Sequence[int]) -> int:
    """Rank of J among some components, from whitened gradients `(N, L, K)`."""
    if first.shape[1] == 1:
        return 0
    j = (first[:, 1:] - first[:, :1])[..., list(components)]
    return _typical(j, ROUNDED * first.square().mean().sqrt().item())[0]


def ranks(laws: Laws, z: Tensor, scale: Tensor, slope: Tensor, hessian: Tensor) -> Ranks:
    """Ranks at points `z` `(N, K)` from their ``derivatives``.

    Args:
        laws: The prior.
        z: Draws from the mixture of conditions.
        scale: `(K,)` standard deviations of the components.
        slope: `(N, L, K)`.
        hessian: `(N, L, K, K)`.
    """
    first = slope * scale
    second = hessian.diagonal(dim1=-2, dim2=-1) * scale.square()
    independent = not dependent(hessian, scale).any()
    j = first[:, 1:] - first[:, :1]
    size = first.square().mean().sqrt().item()
    singular: dict[str, np.ndarray] = {}
    if not j.square().mean().sqrt() > ROUNDED * size:
        none = (0,) * laws.dim if independent else None
        zero = 0 if independent else None
        return Ranks(0, zero, none, zero, {}, singular, (None,) * laws.dim)
    share: dict[str, float] = {}
    rank_j, share["j"], singular["j"] = _typical(j, ROUNDED * size)
    if not independent:
        return Ranks(rank_j, None, None, None, share, singular, (None,) * laws.dim)
    w = torch.cat([j, second[:, 1:] - second[:, :1]], dim=-1)
    bend = second.square().mean().sqrt().item()
    rank_w, share["w"], singular["w"] = _typical(w, ROUNDED * max(size, bend))
    q = _profiles(laws, z)
    least = ROUNDED * q.square().sum((1, 2)).sqrt().max()
    blocks = q[1:] - q[:1]
    whole = torch.linalg.svdvals(blocks.flatten(1))
    limit = torch.maximum(TOLERANCE * whole[0], least)
    each, monotone = [], []
    for k in range(laws.dim):
        _, values, right = torch.linalg.svd(blocks[:, k], full_matrices=False)
        each.append(int((values > limit).sum()))
        monotone.append(_monotone(right[0]) if each[-1] == 1 else None)
    singular["f"] = (whole / whole[0]).numpy()
    rank_f = int((whole > limit).sum())
    return Ranks(rank_j, rank_f, tuple(each), rank_w, share, singular, tuple(monotone))


def _typical(rows: Tensor, least: float) -> tuple[int, float, np.ndarray]:
    """Rank at typical points, the share of points that have it, median singular values."""
    values = torch.linalg.svdvals(rows)
    found = (values > (TOLERANCE * values[:, :1]).clamp_min(least)).sum(-1)
    shares = [(found >= r).double().mean().item() for r in range(values.shape[1] + 1)]
    rank = max(r for r, share in enumerate(shares) if share >= TYPICAL)
    relative = values / values[:, :1].clamp_min(1e-300)
    return rank, shares[rank], relative.median(dim=0).values.numpy()


def _lines(laws: Laws, z: Tensor, grids: Tensor) -> Tensor:
    """Points `(K, G, K)`: a typical one, with one component moved along ``grids`` `(K, G)`."""
    points = z.median(dim=0).values.expand(*grids.shape, laws.dim).clone()
    for k in range(laws.dim):
        points[k, :, k] = grids[k]
    return points


def _profiles(laws: Laws, z: Tensor) -> Tensor:
    """Log-densities `(L, K, G)` of components on grids of quantiles, less their means."""
    levels = torch.linspace(TAILS, 1 - TAILS, NODES)
    grids = z.quantile(levels, dim=0).T
    with torch.no_grad():
        q = laws.log_prob(_lines(laws, z, grids).flatten(0, 1))
    q = q.unflatten(0, grids.shape).permute(2, 0, 1)
    return q - q.mean(-1, keepdim=True)


def _monotone(statistic: Tensor) -> bool:
    steps = statistic.diff()
    slack = 1e-6 * (statistic.max() - statistic.min())
    return bool((steps >= -slack).all() or (steps <= slack).all())


def corners(laws: Laws, z: Tensor) -> list[float | None]:
    """Where the slope of each component's log-density jumps; None where it nowhere does."""
    low, high = z.quantile(torch.tensor([TAILS, 1 - TAILS]), dim=0)
    grids = torch.stack([torch.linspace(a, b, 2 * NODES) for a, b in zip(low, high, strict=True)])
    slopes = _slopes(laws, z, grids)  # (K, G, L)
    width = (slopes.amax(1) - slopes.amin(1)).clamp_min(1e-12)  # (K, L)
    jump = (slopes.diff(dim=1).abs() / width.unsqueeze(1)).amax(-1)  # (K, G - 1)
    at = jump.argmax(-1, keepdim=True)
    left, right = grids.gather(1, at), grids.gather(1, at + 1)
    for _ in range(HALVINGS):
        ends = torch.cat([left, (left + right) / 2, right], dim=1)
        jump = (_slopes(laws, z, ends).diff(dim=1).abs() / width.unsqueeze(1)).amax(-1)
        upper = jump[:, 1:] > jump[:, :1]
        middle = ends[:, 1:2]
        left, right = torch.where(upper, middle, left), torch.where(upper, right, middle)
    return [
        at.item() if size > CORNER else None
        for at, size in zip(left[:, 0], jump.amax(-1), strict=True)
    ]


def _slopes(laws: Laws, z: Tensor, grids: Tensor) -> Tensor:
    """Slope in its own component along each line, `(K, G, L)`."""
    found = laws.gradients(_lines(laws, z, grids).flatten(0, 1)).unflatten(0, grids.shape)
    return torch.stack([found[k, :, :, k] for k in range(laws.dim)])
