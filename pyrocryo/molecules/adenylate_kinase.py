"""Adenylate kinase: the paper's two arms in a real protein."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.molecules.domains import superposition
from pyrocryo.molecules.gaussians import Gaussians

__all__ = ["AdenylateKinase"]

DATA = Path(__file__).with_name("adenylate_kinase.npz")
DOMAINS = {"NMP": np.arange(30, 60), "LID": np.arange(122, 160)}  # residues, counted from 1
LEAST, MOST = -0.25, 1.0  # fractions of closure between which domains stay 3.5 Å apart


class AdenylateKinase(Gaussians):
    r"""E. coli adenylate kinase: the NMP and LID domains close over the CORE, each on its hinge.

    The 214 Cα of the open form (PDB 4AKE), with domain `k` turned about an axis :math:`a_k`
    through a pivot :math:`p_k`,

    .. math:: r \mapsto R(a_k, \theta_k h_k) (r - p_k) + p_k

    where `h` = 0 is open and `h` = 1 as closed as in 1AKE (:math:`\theta` = 45° for NMP, 52° for
    LID, axes 56° apart). The conformation `z` is in units of a standard normal:
    :math:`h_k = .375 + .208 z_k`, so that `z` in ± 3 spans `h` in [-.25, 1], where no two domains
    come closer than 3.5 Å. Unlike on the transition path, where both close together (correlation
    .91), simulated `z` are independent.

    Args:
        width: Standard deviation (Å) of the Gaussian that stands for each Cα.

    Attributes:
        dim: 2: `z` = (NMP, LID).
        spatial: 3: the molecule turns in space.
        axis: Unit hinge axes `(2, 3)`.
        pivot: Points `(2, 3)` on them, Å.
        angle: Angles of full closure `(2,)`, rad.
    """

    dim = 2
    spatial = 3

    def __init__(self, *, width: float = 4.0) -> None:
        if not width > 0:
            raise InputError(f"width: expected a positive length in Å, got {width}")
        with np.load(DATA) as data:
            self.ca_open, self.ca_closed = (
                data[name].astype(np.float64) for name in ("ca_open", "ca_closed")
            )
        residues = np.arange(1, len(self.ca_open) + 1)
        members = [np.isin(residues, domain) for domain in DOMAINS.values()]
        hinges = [_hinge(self.ca_open[m], self.ca_closed[m]) for m in members]
        self.axis, self.pivot, self.angle = (np.stack(part) for part in zip(*hinges, strict=True))
        self.domain = np.select(members, [1, 2])  # 0 CORE, 1 NMP, 2 LID
        self.width = torch.full((len(residues),), float(width))
        self.weight = torch.ones(len(residues))
        self._moved: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def closure(self, z: Tensor) -> Tensor:
        """Fractions of closure `h` of conformations `z`."""
        return 0.5 * (LEAST + MOST) + (MOST - LEAST) / 6 * z

    def centres(self, z: Tensor) -> Tensor:
        """Positions (Å) of all Cα, `(..., 214, 3)`, of conformations `z` `(..., 2)`."""
        if z.shape[-1] != self.dim:
            raise InputError(f"z: expected 2 hinges on the last axis, got {z.shape[-1]}")
        still, angles, crosses, pivots, members = self._constants(z)
        seen = still.expand(*z.shape[:-1], *still.shape)
        angle = self.closure(z) * angles
        for k in range(self.dim):
            turn = _about(crosses[k], angle[..., k])
            turned = (seen - pivots[k]) @ turn.transpose(-1, -2) + pivots[k]
            seen = torch.where(members[k], turned, seen)
        return seen

    def _constants(self, z: Tensor) -> tuple[Tensor, ...]:
        """What the motion needs, of the dtype and on the device of `z`; kept once moved."""
        place = z.dtype, z.device
        if place not in self._moved:
            with torch.inference_mode(False):  # what is kept must serve autograd later
                cross = np.cross(self.axis[:, None, :], np.eye(3)).transpose(0, 2, 1)  # a ×
                numbers = (self.ca_open, self.angle, cross, self.pivot)
                member = np.stack([self.domain == k + 1 for k in range(self.dim)])[..., None]
                self._moved[place] = (
                    *(torch.as_tensor(a).to(z) for a in numbers),
                    torch.as_tensor(member, device=z.device),
                )
        return self._moved[place]


def _hinge(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Axis, pivot and angle of the rotation closest to what takes one domain to another place.

    The pivot is the point of the screw axis nearest to the origin: the slide along the axis is
    dropped.
    """
    turn, move = superposition(start, end)
    angle = float(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    skew = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    axis = skew / np.linalg.norm(skew)
    across = move - axis * (axis @ move)
    pivot = np.linalg.lstsq(np.eye(3) - turn, across, rcond=None)[0]
    return axis, pivot - axis * (axis @ pivot), angle


def _about(cross: Tensor, angle: Tensor) -> Tensor:
    """Rodrigues' rotations `(..., 3, 3)` by ``angle`` `(...,)`; ``cross`` is the matrix of a ×."""
    angle = angle[..., None, None]
    identity = torch.eye(3, dtype=cross.dtype, device=cross.device)
    return identity + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)
