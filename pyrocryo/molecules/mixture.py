"""A map as a sum of Gaussians: atoms where no structure is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging import splat_map

__all__ = ["Mixture", "cubic", "mixture"]

FAINT = 0.05  # of the brightest voxels: what is fainter is not density
NOISE = 3.0  # standard deviations of the voxels outside of the ball that fits the box
SPECK = 0.02  # of the brightest part: what is fainter, and not joined to others, is noise
RATE = 0.03  # of Adam, in units of the widths


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians that make up a map, from :func:`mixture`.

    Attributes:
        positions: `(A, 3)` Å from the box centre.
        width: `(A,)` standard deviations, Å.
        weight: `(A,)` heights of their projections, as :func:`pyrocryo.imaging.splat` takes them.
        correlation: With the map, over its voxels.
    """

    positions: np.ndarray
    width: np.ndarray
    weight: np.ndarray
    correlation: float

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return (
            f"Mixture({len(self)} Gaussians of {self.width.min():.3g} to {self.width.max():.3g} "
            f"Å, correlation {self.correlation:.4f})"
        )


def mixture(
    map: Any,
    voxel_size: float,
    *,
    count: int = 100,
    threshold: float | None = None,
    steps: int = 200,
    seed: int = 0,
) -> Mixture:
    r"""``count`` Gaussians whose sum is a map, for volumes that have no structure to start from.

    .. math:: v(r) \approx b + \sum_a w_a \frac{h}{\sqrt{2 \pi} s_a} e^{-|r - r_a|^2 / 2 s_a^2}

    Voxels above ``threshold``, but for specks, are clustered by k-means, each weighing what it is
    bright; then places, widths and heights follow the squared error (Adam), with `b` what is left
    over. A start for ``Atoms(m.positions, width=m.width, weight=m.weight, free=True, ...)``
    (:class:`pyrocryo.volumes.Atoms`). Gaussians that are wider than the map is sharp overlap, and
    one map has many mixtures: they are places to hang motions on, not atoms.

    Args:
        map: `(D, D, D)`, indexed `[z, y, x]`, such as that of
            :func:`pyrocryo.imaging.backproject`.
        voxel_size: Å.
        count: Number of Gaussians.
        threshold: Voxels below are not density; by default 3 standard deviations of those outside
            of the ball that fits the box, and at least .05 of the brightest.
        steps: Of Adam; 0 leaves what the clusters say.
        seed: Of k-means: the same call gives the same Gaussians.

    Raises:
        InputError: If the map is no cube of finite numbers, or has fewer voxels above the
            threshold than there are to be Gaussians.
    """
    from sklearn.cluster import KMeans

    values = cubic(map, voxel_size)
    if count < 1 or steps < 0:
        raise InputError(f"count, steps: expected at least 1, and 0, got {count}, {steps}")
    side = len(values)
    r = (np.arange(side) - side // 2) * voxel_size
    if threshold is None:
        outside = np.sqrt(r[:, None, None] ** 2 + r[:, None] ** 2 + r**2) > side // 2 * voxel_size
        empty = values[outside]
        threshold = max(
            empty.mean() + NOISE * empty.std(), FAINT * float(np.quantile(values, 0.999))
        )
    chosen = np.argwhere(_joined(values, threshold))
    if len(chosen) < count:
        raise InputError(
            f"threshold: {len(chosen)} voxels are above {threshold:.3g}, too few for {count} "
            "Gaussians; lower it, or take fewer (count)"
        )
    places, bright = r[chosen[:, ::-1]], values[tuple(chosen.T)] - min(0.0, threshold)
    found = KMeans(count, n_init=1, random_state=seed).fit(places, sample_weight=bright)
    label, total = found.labels_, np.bincount(found.labels_, bright, minlength=count)
    spread = np.square(places - found.cluster_centers_[label]).sum(axis=1)
    spread = np.bincount(label, bright * spread, minlength=count) / (3 * total)
    width = np.sqrt(spread + voxel_size**2 / 4)
    weight = total * (voxel_size**2 / (2 * math.pi * width**2))
    target = torch.as_tensor(values, dtype=torch.float32)
    start = [torch.as_tensor(part).float() for part in (found.cluster_centers_, width, weight)]
    centres, width, weight, shown = _fitted(target, start, voxel_size, steps)
    correlation = np.corrcoef(shown.ravel(), target.ravel())[0, 1]
    return Mixture(centres.numpy(), width.numpy(), weight.numpy(), float(correlation))


def _joined(values: np.ndarray, threshold: float) -> np.ndarray:
    """Which voxels are above the threshold, but for specks: noise that is by itself."""
    above = values > threshold
    label, parts = ndimage.label(above)
    if parts < 2:
        return above
    total = ndimage.sum_labels(values, label, np.arange(parts + 1))
    total[0] = -np.inf
    return (total > SPECK * total[1:].max())[label]


def cubic(map: Any, voxel_size: float) -> np.ndarray:
    """The map as finite numbers `(D, D, D)` that are not all alike."""
    values = map.detach().cpu().numpy() if hasattr(map, "detach") else map
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or len(set(values.shape)) != 1 or not np.isfinite(values).all():
        raise InputError(f"map: expected a cube of finite numbers, got shape {values.shape}")
    if values.std() == 0:
        raise InputError("map: all voxels are alike")
    if not (voxel_size > 0 and math.isfinite(voxel_size)):
        raise InputError(f"voxel_size: expected a positive number of Å, got {voxel_size}")
    return values


def _fitted(
    target: Tensor, start: list[Tensor], voxel_size: float, steps: int
) -> tuple[Tensor, ...]:
    """Places, widths, heights by least squares, and the map that they make."""
    centres, width, weight = start
    told = {"side": len(target), "voxel_size": voxel_size}
    shown = splat_map(centres, width, weight, **told)
    level = shown - shown.mean()
    weight = weight * ((level * target).sum() / level.square().sum()).clamp_min(1e-6)
    typical = width.mean()
    free = [torch.zeros_like(part).requires_grad_() for part in (centres, width, weight)]
    optimiser = torch.optim.Adam(free, lr=RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))

    def now() -> list[Tensor]:
        moved, wider, higher = free
        return [centres + typical * moved, width * wider.exp(), weight * higher.exp()]

    for _ in range(steps):
        optimiser.zero_grad()
        error = splat_map(*now(), **told) - target
        ((error - error.mean()).square().sum() / target.var() / target.numel()).backward()
        optimiser.step()
        falling.step()
    with torch.no_grad():
        return *now(), splat_map(*now(), **told)
