r"""Priors on frames: how much two frames tell of each other beyond a Gaussian.

Permutation-contrastive learning (Hyvärinen & Morioka 2017) identifies independent stationary
sources whose :math:`q_{xy} = \partial_x \partial_y \ln p(z_t = x, z_{t+1} = y)` is not zero
(uniformly dependent) and not of the form :math:`c \, a(x) a(y)` (not quasi-Gaussian). On a grid
the latter has rank 1, so the second over the first singular value of :math:`|q_{xy}|` is what
counts. The grid spans three standard deviations of the first frame to both sides.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocryo.identify.laws import Laws

__all__ = ["Transitions", "transitions"]

NODES = 41
WIDE = 3.0  # standard deviations that the grid covers
NOTHING = 1e-9  # of the curvature of the log-density
SAME = 1e-6
SOMEWHERE = 0.01  # share of the grid where it must be more


@dataclass(frozen=True)
class Transitions:
    r"""Of each component.

    Attributes:
        ratio: Second over first singular value of :math:`|q_{xy}|`; 0 where that vanishes.
        dependent: Whether :math:`q_{xy}` is other than 0 to double precision.
        cornered: Whether frames depend on each other without, as the density has corners between
            straight pieces.
        independent: Whether no component depends on another.
        laplace: Whether steps are Laplace: :math:`|\partial_y \ln p|` of the last frame is
            the same whatever the step, and its sign that of the step.
    """

    ratio: tuple[float, ...]
    dependent: tuple[bool, ...]
    cornered: tuple[bool, ...]
    independent: bool
    laplace: tuple[bool, ...]


def transitions(laws: Laws, z: Tensor) -> Transitions:
    """The rank test on the first two frames, at the first condition.

    Args:
        laws: The prior.
        z: `(N, T, K)` draws.
    """
    middle, scale = z[:, 0].median(dim=0).values, z[:, 0].std(dim=0)  # of the first frame
    grid = torch.linspace(-WIDE, WIDE, NODES)
    centre = middle.expand(laws.event).clone()
    ratio, dependent, cornered = [], [], []
    for k in range(laws.dim):
        points = centre.expand(NODES, NODES, *laws.event).clone()
        points[..., 0, k] = (middle[k] + scale[k] * grid).unsqueeze(1)
        # off the diagonal, where the density may have corners
        points[..., 1, k] = middle[k] + scale[k] * (grid + 1e-3)
        flat = points.flatten(0, 1)
        q = laws.mixed(flat, (0, k), (1, k))[:, 0].unflatten(0, (NODES, NODES))
        q = q.abs() * scale[k].square()
        slope = laws.gradients(flat)[:, 0, 1, k].unflatten(0, (NODES, NODES)) * scale[k]
        bend = slope.abs().max()
        values = torch.linalg.svdvals(q)
        dependent.append((q > NOTHING * bend).double().mean().item() > SOMEWHERE)
        moved = slope.amax(0) - slope.amin(0) > SAME * bend  # with the first frame
        cornered.append(not dependent[-1] and moved.double().mean().item() > SOMEWHERE)
        ratio.append((values[1] / values[0]).item() if values[0] > NOTHING * bend else 0.0)
    back = z.clone()
    back[:, -2] = 2 * z[:, -1] - z[:, -2]  # the last step, turned round
    slope, turned = (laws.gradients(x)[:, 0, -1] for x in (z, back))
    steep = slope.abs()
    constant = (steep.amax(0) - steep.amin(0)) < SAME * steep.amax(0)
    odd = (slope + turned).abs().amax(0) < SAME * steep.amax(0)
    laplace = [bool(c and o) and not d for c, o, d in zip(constant, odd, dependent, strict=True)]
    return Transitions(
        tuple(ratio), tuple(dependent), tuple(cornered), _independent(laws, z, scale),
        tuple(laplace),
    )  # fmt: skip


def _independent(laws: Laws, z: Tensor, scale: Tensor) -> bool:
    few = z[:200]
    entries = [(t, k) for t in range(min(2, laws.event[0])) for k in range(laws.dim)]
    own = max(
        (laws.mixed(few, (t, k), (t, k)).abs().mean() * scale[k].square()).item()
        for t, k in entries
    )
    return all(
        (laws.mixed(few, a, b).abs().max() * scale[a[1]] * scale[b[1]]).item()
        <= 1e-6 * (own + 1e-3)
        for a, b in itertools.combinations(entries, 2)
        if a[1] != b[1]
    )
