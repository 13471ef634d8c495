"""The paper's cartoon molecule: a body with arms that swing independently."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.molecules.gaussians import Gaussians

__all__ = ["Arms", "TwoArms"]

BLOBS_AN_ARM = 3


class Arms(Gaussians):
    r"""A flat molecule with an asymmetric body and `k` arms (Klindt et al. 2024, Fig. 1).

    Arm `i` turns about its hinge by :math:`s z_i`, `s` = ``swing``: the conformation `z` is the
    vector of its `k` independent angles, in units in which a standard normal `z` swings each arm
    by 0.35 rad (20°) rms (less where more than four arms share the circle). The arms have
    different lengths and the body no symmetry, so pose and arms can be told apart. All parts are
    Gaussians, rendered exactly.

    Args:
        k: Number of arms, at least 1. A random rotation of a perfect `z` still scores an MCC of
            .90 at `k` = 2 and .77 at `k` = 4.
        radius: Half the edge (Å) of the square the molecule fits into.

    Attributes:
        dim: Number of conformational coordinates, `k`.
        spatial: 2: the molecule is flat, and turns in the plane only.
        swing: Radians per unit of `z`.
    """

    spatial = 2

    def __init__(self, k: int, *, radius: float = 48.0) -> None:
        if k < 1:
            raise InputError(f"k: expected at least one arm, got {k}")
        if not radius > 0:
            raise InputError(f"radius: expected a positive length in Å, got {radius}")
        self.dim = k
        self.radius = float(radius)
        self.swing = 0.35 * min(1.0, 4.0 / k)
        body = torch.tensor([[0.0, 0.0], [0.0, -0.30], [0.18, -0.45]])
        # the arms share the circle evenly; the body's tail, pointing down, lies between two
        self._base = (torch.arange(k) + 0.5) * (2 * math.pi / k) - math.pi / 2
        self._hinge = 0.22 * torch.stack([self._base.cos(), self._base.sin()], dim=-1)
        self._length = torch.linspace(1.0, 0.65, k) if k != 2 else torch.tensor([1.0, 0.75])
        self._reach = torch.tensor([0.18, 0.33, 0.48])
        self._body = body
        self.width = self.radius * torch.tensor([0.15, 0.12, 0.10] + [0.08] * (BLOBS_AN_ARM * k))
        self.weight = torch.ones(len(self.width))
        self._moved: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def centres(self, z: Tensor) -> Tensor:
        """Positions (Å) of all Gaussians in the molecule's frame.

        Args:
            z: `(..., k)` conformations.

        Returns:
            `(..., 3 + 3 k, 3)`; the third coordinate is 0.
        """
        if z.shape[-1] != self.dim:
            raise InputError(f"z: expected {self.dim} angles on the last axis, got {z.shape[-1]}")
        base, hinge, length, arm_reach, still = self._constants(z)
        angle = base + self.swing * z
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)  # (..., k, 2)
        reach = length[:, None] * arm_reach  # (k, 3)
        arms = hinge[:, None, :] + reach[..., None] * direction.unsqueeze(-2)
        arms = arms.flatten(-3, -2)
        body = still.expand(*arms.shape[:-2], -1, -1)
        flat = self.radius * torch.cat([body, arms], dim=-2)
        return torch.cat([flat, torch.zeros_like(flat[..., :1])], dim=-1)

    def _constants(self, z: Tensor) -> tuple[Tensor, ...]:
        """The molecule's shape, of the dtype and on the device of `z`; kept once moved."""
        place = z.dtype, z.device
        if place not in self._moved:
            with torch.inference_mode(False):  # what is kept must serve autograd later
                shape = (self._base, self._hinge, self._length, self._reach, self._body)
                self._moved[place] = tuple(part.to(z) for part in shape)
        return self._moved[place]


def TwoArms(*, radius: float = 48.0) -> Arms:  # noqa: N802 - reads as the molecule's name
    """The molecule of the paper's Fig. 1: :class:`Arms` with two arms."""
    return Arms(2, radius=radius)
