"""Poses as unit vectors: `(..., 2)` of angles in the plane, `(..., 4)` quaternions in space."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrocryo import quaternions

__all__ = ["angles", "between", "mean", "one_side"]


def between(p: Tensor, q: Tensor) -> Tensor:
    """The turn from pose `p` to pose `q`, as a unit vector too."""
    if p.shape[-1] == 4:
        return quaternions.product(q, quaternions.conjugate(p))
    (a, b), (c, d) = p.unbind(-1), q.unbind(-1)
    return torch.stack([a * c + b * d, a * d - b * c], dim=-1)


def angles(p: Tensor, q: Tensor) -> Tensor:
    """The turn from `p` to `q` in rad: `(..., 1)` in the plane, else `(..., 3)` about the axes.

    The axes are those of the image. The same for `q` and `-q` where they are one rotation.
    """
    turn = between(p, q)
    if turn.shape[-1] == 4:
        return quaternions.logarithm(turn)
    return torch.atan2(turn[..., 1:], turn[..., :1])


def mean(poses: Tensor) -> Tensor:
    r"""The mean pose `(...)` of poses `(S, ...)`, of rotations whatever their signs.

    Of angles the direction of the mean, of quaternions the first eigenvector of
    :math:`\sum_s q_s q_s^\top` (Markley et al. 2007). Where angles cancel, the first of them.
    """
    if poses.shape[-1] == 4:
        return torch.linalg.eigh(torch.einsum("s...i,s...j->...ij", poses, poses))[1][..., -1]
    total = poses.sum(0)
    size = total.norm(dim=-1, keepdim=True)
    return torch.where(size > 1e-6, total / size.clamp_min(1e-6), poses[0])


def one_side(poses: Tensor, of: Tensor) -> Tensor:
    """The same poses, quaternions with the sign that brings them nearer to `of` `(..., 4)`."""
    if poses.shape[-1] != 4:
        return poses
    return torch.where((poses * of).sum(-1, keepdim=True) < 0, -poses, poses)
