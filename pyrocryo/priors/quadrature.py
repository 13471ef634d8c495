"""Quadrature: means of functions under normal laws."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["hermite", "resolved"]

NODES = 64
REACH = 7.0  # standard deviations


@lru_cache
def hermite(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights of the mean over N(0, 1), `(count,)` each.

    Exact for polynomials up to degree 2 count - 1.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / math.sqrt(2 * math.pi)
    with torch.inference_mode(False):  # what is kept must serve autograd later
        like = {"dtype": dtype, "device": device}
        return torch.tensor(nodes, **like), torch.tensor(weights, **like)


def resolved(mean: Tensor, sd: Tensor, knee: Tensor) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights of the mean over :math:`N(m, s^2)` of what has a feature at 0.

    .. math:: E f = \int f(x) N(x; m, s^2) dx, \quad x = \delta \sinh t

    by the trapezoid rule in `t` over :math:`m \pm 7 s`, 64 nodes: even in `x` within the width δ
    of the feature, and ever wider outside, so that posteriors much wider than a typical step are
    integrated as well as narrow ones. (Student-t, ν = 3, posterior ten scales wide: 2e-12 nats
    off, where Gauss-Hermite of as many nodes is .04 off.) The nodes stay fixed: mean and spread
    are differentiated in the weights.

    Args:
        mean: `m`, `(...)`.
        sd: `s`, shaped alike.
        knee: δ, broadcastable to them.

    Returns:
        Nodes `(64, ...)`, weights `(64, ...)` that add up to 1.
    """
    with torch.no_grad():
        low = ((mean - REACH * sd) / knee).asinh()
        high = ((mean + REACH * sd) / knee).asinh()
        share = _even(mean.dtype, mean.device).view(-1, *[1] * low.dim())
        t = low + (high - low) * share
        x = knee * t.sinh()
        stretch = t.cosh()
    density = stretch * (-0.5 * ((x - mean) / sd).square()).exp()
    return x, density / density.sum(0)


@lru_cache
def _even(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.linspace(0, 1, NODES, dtype=dtype, device=device)
