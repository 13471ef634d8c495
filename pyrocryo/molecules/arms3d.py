"""Arms in space: the paper's cartoon molecule, which can be seen from all sides."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.molecules.gaussians import Gaussians

__all__ = ["Arms3D"]

BODY = ((0.0, 0.0, 0.0), (0.0, -0.30, 0.08), (0.20, -0.45, -0.12), (-0.12, 0.10, 0.36))
REACH = (0.18, 0.33, 0.48)
GOLDEN = math.pi * (3 - math.sqrt(5))


class Arms3D(Gaussians):
    r"""A body with `k` arms that stand out to all sides and swing independently.

    Arm `i` points along :math:`d_i`, evenly spread over the sphere, and swings towards an
    :math:`e_i` at a right angle to it, by .25 :math:`z_i` rad (14° rms for a standard normal `z`):
    :math:`\cos(.25 z_i) d_i + \sin(.25 z_i) e_i`. Arms have different lengths and the body has no
    symmetry and no mirror image, so poses are unique. All parts are Gaussians, rendered exactly.

    Args:
        k: Number of arms, at least 1.
        radius: Half the edge (Å) of the cube the molecule fits into.

    Attributes:
        dim: Number of conformational coordinates, `k`.
        spatial: 3: the molecule turns in space.
        swing: Radians per unit of `z`.
    """

    spatial = 3
    swing = 0.25

    def __init__(self, k: int = 2, *, radius: float = 48.0) -> None:
        if k < 1:
            raise InputError(f"k: expected at least one arm, got {k}")
        if not radius > 0:
            raise InputError(f"radius: expected a positive length in Å, got {radius}")
        self.dim = k
        self.radius = float(radius)
        height = 1 - (2 * np.arange(k) + 1) / k
        across, turn = np.sqrt(1 - height**2), GOLDEN * np.arange(k)
        along = np.stack([across * np.cos(turn), across * np.sin(turn), height], axis=-1)
        side = np.cross(along, np.roll(along, 1, axis=-1))
        self._along = along
        self._side = side / np.linalg.norm(side, axis=-1, keepdims=True)
        self._length = np.linspace(1.0, 0.7, k)
        self.width = self.radius * torch.tensor([0.15, 0.13, 0.11, 0.10] + [0.10] * (3 * k))
        self.weight = torch.ones(len(self.width))
        self._moved: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def centres(self, z: Tensor) -> Tensor:
        """Positions (Å) of all Gaussians, `(..., 4 + 3 k, 3)`, of conformations `z` `(..., k)`."""
        if z.shape[-1] != self.dim:
            raise InputError(f"z: expected {self.dim} angles on the last axis, got {z.shape[-1]}")
        along, side, reach, body = self._constants(z)
        angle = (self.swing * z).unsqueeze(-1)
        direction = angle.cos() * along + angle.sin() * side  # (..., k, 3)
        arms = 0.22 * along.unsqueeze(-2) + reach.unsqueeze(-1) * direction.unsqueeze(-2)
        arms = arms.flatten(-3, -2)
        return self.radius * torch.cat([body.expand(*arms.shape[:-2], -1, -1), arms], dim=-2)

    def _constants(self, z: Tensor) -> tuple[Tensor, ...]:
        """The molecule's shape, of the dtype and on the device of `z`; kept once moved."""
        place = z.dtype, z.device
        if place not in self._moved:
            with torch.inference_mode(False):  # what is kept must serve autograd later
                reach = self._length[:, None] * np.array(REACH)
                shape = (self._along, self._side, reach, np.array(BODY))
                self._moved[place] = tuple(torch.as_tensor(part).to(z) for part in shape)
        return self._moved[place]
