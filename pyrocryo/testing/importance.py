"""Importance sampling of a prior around its own samples: its integral, and whether they fit."""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import kolmogorov
from torch import Tensor

from pyrocryo.testing.checks import Fault

__all__ = ["Draws"]

SAMPLES, KEPT, CHUNK = 100_000, 150_000, 50_000
MOST, LEAST, NUMBERS = 400_000, 100_000, 4_000_000  # proposals, by the numbers that they take
T_SCALE, C_SCALE = 0.85, 0.75  # waste least on normal and Laplace laws of unit quartiles
QUARTILES = 1.349  # quartiles of N(0, 1) lie this far apart
PAIRS, RANDOM, LEVELS = 12, 6, 256
LEVEL = 1e-4


class Draws:
    r"""Samples of a law and weighted draws around them, both as `(n, rows, d)` doubles.

    Proposals are half Student-t (2 degrees of freedom), half Cauchy, independent in coordinates
    that whiten the samples. No moment of the law need exist: its shape is Tyler's (1987)
    M-estimator, its scales are interquartile ranges.

    Args:
        law: Any distribution; ``rows`` runs over its batch, `d` over its event.
    """

    def __init__(self, law: Any) -> None:
        self.law = law
        self.rows = max(1, law.batch_shape.numel())
        self.dim = law.event_shape.numel()
        with torch.no_grad():
            sample = law.sample((max(SAMPLES // self.rows, 10_000),))
        self.dtype = sample.dtype
        self.x = sample.reshape(len(sample), self.rows, self.dim).double()
        self.centre = self.x.median(0).values  # (rows, d)
        self.scale = _scale(self.x)
        if not (self.scale > 0).all():
            raise Fault("samples do not vary, or not in every coordinate")
        y = (self.x[:20_000] - self.centre) / self.scale
        shape = torch.linalg.cholesky(_tyler(y))
        white = torch.linalg.solve_triangular(shape, y.permute(1, 2, 0), upper=False)
        spread = _scale(white.permute(2, 0, 1))
        self.factor = self.scale.unsqueeze(-1) * shape * spread.unsqueeze(-2)  # (rows, d, d)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density `(n, rows)` of `z` `(n, rows, d)`."""
        shape = (len(z), *self.law.batch_shape, *self.law.event_shape)
        with torch.no_grad():
            return self.law.log_prob(z.to(self.dtype).reshape(shape)).double().reshape(len(z), -1)

    @cached_property
    def proposals(self) -> tuple[Tensor, Tensor]:
        """Draws `(n, rows, d)` and the log weights `(m, rows)` of these and more, m >= n."""
        kept, weights = [], []
        total = min(MOST, max(LEAST, NUMBERS // self.dim))
        left, keep = (max(n // self.rows, 10_000) for n in (total, KEPT))
        while left > 0:
            n = min(left, max(CHUNK // self.rows, 1))
            y, log_q = _heavy(n, self.rows, self.dim)
            log_q = log_q - self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            z = self.centre + (self.factor @ y.unsqueeze(-1)).squeeze(-1)
            weights.append((self.log_prob(z) - log_q).nan_to_num(nan=-math.inf, posinf=math.inf))
            if keep > 0:
                kept.append(z)
            left, keep = left - n, keep - n
        return torch.cat(kept), torch.cat(weights)

    def normalisation(self) -> str:
        r"""Whether :math:`\int e^{\log p} = 1` in every row."""
        weight = self.proposals[1].exp()
        mean, error = weight.mean(0), weight.std(0) / math.sqrt(len(weight))
        known = error <= 0.1 * mean  # else a few weights decide
        off = (mean - 1).abs() / (5 * error).clamp_min(0.02)
        worst = int(off.where(known, 0.0).argmax())
        said = f"{mean[worst]:.3f} ± {error[worst]:.3f}"
        if not mean.isfinite().all() or (off > 1)[known].any():
            raise Fault(f"exp(log_prob) integrates to {said}, not to 1")
        if not known.all():
            return f"cannot tell: integrates to {mean[~known][0]:.2f} ± {error[~known][0]:.2f}"
        return f"integrates to {said}"

    def samples(self) -> str:
        """Whether samples follow the density, up to its normaliser (Kolmogorov-Smirnov)."""
        z, log_weight = self.proposals
        weight = log_weight[: len(z)].softmax(0)  # (n, rows)
        size = 1 / weight.square().sum(0)
        if size.min() < 100:
            return f"cannot tell: {size.min():.0f} effective draws of log_prob"
        names, directions = self._directions()
        found = []
        for row, direction in enumerate(directions):
            a, b = (direction @ draws[:, row].T for draws in (self.x, z))
            w = weight[:, row].contiguous()
            found += [(_ks(a[n], b[n], w), name) for n, name in enumerate(names)]
        p, name = min(found)
        p = min(1.0, p * len(found))
        if p < LEVEL:
            raise Fault(f"samples do not follow log_prob, seen best in {name} (p = {p:.1g})")
        return f"follow log_prob in {len(found)} directions (smallest p, corrected: {p:.2g})"

    def _directions(self) -> tuple[list[str], Tensor]:
        """Directions `(rows, m, d)` in which to compare, with their names."""
        one = torch.eye(self.dim, dtype=torch.double)
        event = self.law.event_shape
        label = [
            f"z{[*map(int, i)] if len(event) > 1 else [int(i[0])]}" for i in np.ndindex(*event)
        ]
        rows = {label[i]: one[i] / self.scale[:, i, None] for i in range(self.dim)}
        if len(event) == 2:
            for i in range(self.dim - event[1]):
                rows[f"{label[i + event[1]]} - {label[i]}"] = (one[i + event[1]] - one[i]).expand(
                    self.rows, -1
                )
        pairs = list(itertools.combinations(range(self.dim), 2))
        for n in torch.randperm(len(pairs))[:PAIRS].tolist():
            i, j = pairs[n]
            for sign, word in ((1, "+"), (-1, "-")):
                rows[f"{label[i]} {word} {label[j]}, standardised"] = (
                    rows[label[i]] + sign * rows[label[j]]
                )
        inverse = torch.linalg.inv(self.factor)
        for n in range(RANDOM if self.dim > 1 else 0):
            rows[f"random direction {n}"] = torch.randn(self.dim, dtype=torch.double) @ inverse
        return list(rows), torch.stack(list(rows.values()), dim=1)


def _scale(x: Tensor) -> Tensor:
    """Interquartile range in units of a normal's standard deviation, over the first axis."""
    low, high = (x.kthvalue(max(1, round(q * len(x))), dim=0).values for q in (0.25, 0.75))
    return (high - low) / QUARTILES


def _tyler(y: Tensor, iterations: int = 20) -> Tensor:
    """Scatter matrices `(rows, d, d)` of centred `y` `(n, rows, d)`, up to scale."""
    y = y.permute(1, 0, 2)
    d = y.shape[-1]
    scatter = torch.eye(d, dtype=y.dtype).expand(len(y), d, d)
    for _ in range(iterations):
        white = torch.linalg.solve_triangular(
            torch.linalg.cholesky(scatter), y.transpose(-1, -2), upper=False
        )
        unit = y / white.norm(dim=-2).clamp_min(1e-12).unsqueeze(-1)
        scatter = unit.transpose(-1, -2) @ unit
        scatter = scatter * d / scatter.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    return scatter


def _heavy(n: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Draws `(n, rows, dim)` of the standard proposal and their log-density `(n, rows)`."""
    u = torch.rand(n, rows, dim, dtype=torch.double).clamp(1e-12, 1 - 1e-12)
    student = T_SCALE * (2 * u - 1) / (2 * u * (1 - u)).sqrt()
    cauchy = C_SCALE * (math.pi * (u - 0.5)).tan()
    y = torch.where(torch.rand(n, rows, 1) < 0.5, student, cauchy)
    t, c = (y / T_SCALE).square(), (y / C_SCALE).square()
    log_t = -(1.5 * torch.log1p(t / 2) + math.log(2 * math.sqrt(2) * T_SCALE)).sum(-1)
    log_c = -(torch.log1p(c) + math.log(math.pi * C_SCALE)).sum(-1)
    return y, torch.logaddexp(log_t, log_c) - math.log(2)


def _ks(a: Tensor, b: Tensor, weight: Tensor) -> float:
    """p-value that `a` and the weighted `b` have one distribution.

    The difference of their distribution functions is measured at quantiles of `a`, and scaled by
    its own largest standard error: weights are no mere loss of sample size.
    """
    edges = a[:: max(1, len(a) // 16_384)].sort().values
    edges = edges[:: max(1, len(edges) // LEVELS)].contiguous()
    count = torch.bincount(torch.bucketize(a, edges), minlength=len(edges) + 1)
    at = torch.bucketize(b, edges)
    mass, square = (
        torch.bincount(at, weights=w, minlength=len(edges) + 1).cumsum(0)[:-1]
        for w in (weight, weight.square())
    )
    first = count.cumsum(0)[:-1] / len(a)
    total = weight.square().sum()
    variance = (1 - 2 * mass) * square + mass.square() * total + first * (1 - first) / len(a)
    distance = (first - mass).abs().max() / variance.max().sqrt() / 2
    return float(kolmogorov(float(distance)))
