"""Rotations that leave a map as it is: the point group that poses cannot be told beyond."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from pyrocryo.imaging import polar

__all__ = ["FOLDS", "SYMMETRIC", "axes_of", "folds", "folds_about", "highest"]

FOLDS = tuple(range(2, 9))
SYMMETRIC = 0.9  # correlation of a map with itself, turned, above which it counts as the same
ANGLES = 840  # which every n up to 8 divides
ROUND = 1e-3  # share of a map's power that depends on the angle, below which it is round


def folds(image: Tensor) -> np.ndarray:
    r"""Correlation `(7,)` of a flat map with itself turned by 360°/n about its centre, n = 2..8.

    .. math:: c_n = \frac{\sum_\rho \rho \int m(\rho, \theta) \, m(\rho, \theta + 2 \pi / n)}
              {\sum_\rho \rho \int m(\rho, \theta)^2}

    of the map `m` less its mean on every ring, which no turn changes. The centre is that of the
    box (pixel ``side // 2``), about which poses turn. 1 for all n where the map is round.

    Args:
        image: `(side, side)`, indexed `[y, x]`.
    """
    radii = image.shape[-1] // 2 - 1
    rings = polar(image[None].double(), image.new_zeros(1, 2).double(), radii=radii, angles=ANGLES)
    rings = rings[0].cpu()
    area = torch.arange(1, radii + 1, dtype=torch.float64)[:, None]
    left = rings - rings.mean(dim=1, keepdim=True)
    power = (area * left.square()).sum()
    if power <= ROUND * (area * (rings - rings.mean()).square()).sum():
        return np.ones(len(FOLDS))
    turned = [(area * left * left.roll(ANGLES // n, dims=1)).sum() / power for n in FOLDS]
    return torch.stack(turned).numpy()


def axes_of(density: np.ndarray) -> np.ndarray:
    """Principal axes `(3, 3)` (rows, x y z) of the denser parts of a solid map, about its centre.

    An axis of symmetry is one of them, but in cubic groups, whose axes these are not.
    """
    side = density.shape[0]
    r = np.arange(side) - side // 2
    weight = np.clip(density - np.median(density), 0, None)
    weight = np.where(weight > 0.1 * weight.max(), weight, 0.0)
    z, y, x = np.meshgrid(r, r, r, indexing="ij")
    place = np.stack([x, y, z]).reshape(3, -1)
    moment = (weight.ravel() * place) @ place.T
    return np.linalg.eigh(moment)[1].T


def folds_about(density: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """As :func:`folds`, `(7,)`, of a solid map `[z, y, x]` about an axis through its centre.

    Of the map within the ball that fits, less its mean over 13 turns (which no such n divides),
    and of that and its turned self as Pearson's correlation.
    """
    side = density.shape[0]
    centre = side // 2
    r = np.arange(side) - centre
    z, y, x = np.meshgrid(r, r, r, indexing="ij")
    inside = x**2 + y**2 + z**2 <= (side / 2 - 1) ** 2
    place = np.stack([x[inside], y[inside], z[inside]]).astype(np.float64)

    def turned(angle: float) -> np.ndarray:
        back = _rotation(axis, -angle) @ place
        return map_coordinates(density, back[::-1] + centre, order=1, mode="constant")

    # interpolated like the rest, so that a turn by nothing is no better than another
    here = turned(1e-9)
    mean = np.mean([turned(2 * math.pi * n / 13) for n in range(13)], axis=0)
    left = here - mean
    power = np.square(left).sum()
    if power <= ROUND * np.square(here - here.mean()).sum():
        return np.ones(len(FOLDS))
    found = []
    for n in FOLDS:
        other = turned(2 * math.pi / n) - mean
        found.append((left * other).sum() / math.sqrt(power * np.square(other).sum()))
    return np.array(found)


def highest(scores: np.ndarray) -> int:
    """The largest n up to 8 whose turn leaves the map as it is; 1 for none, 0 for all (round)."""
    same = np.asarray(scores) >= SYMMETRIC
    if same.all():
        return 0
    return max((n for n, is_same in zip(FOLDS, same, strict=True) if is_same), default=1)


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
