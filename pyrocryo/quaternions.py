"""Unit quaternions `(w, x, y, z)` as tensors; see :mod:`pyrocryo.rotations` for the convention.

`q` and `-q` are one rotation: what is returned as a rotation does not depend on the sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["conjugate", "exponential", "from_matrix", "logarithm", "matrix", "product", "unit"]


def unit(q: Tensor) -> Tensor:
    """`q` `(..., 4)` at length 1."""
    return q / q.norm(dim=-1, keepdim=True)


def conjugate(q: Tensor) -> Tensor:
    """The turn back, `(..., 4)`."""
    return torch.cat([q[..., :1], -q[..., 1:]], dim=-1)


def product(p: Tensor, q: Tensor) -> Tensor:
    r""":math:`p \otimes q` `(..., 4)`: first `q`, then `p`."""
    a, u = p[..., :1], p[..., 1:]
    b, v = q[..., :1], q[..., 1:]
    scalar = a * b - (u * v).sum(-1, keepdim=True)
    u, v = torch.broadcast_tensors(u, v)
    return torch.cat([scalar, a * v + b * u + torch.linalg.cross(u, v)], dim=-1)


def exponential(vector: Tensor) -> Tensor:
    """The turn `(..., 4)` by |v| (rad) about `v` `(..., 3)`, smooth at 0."""
    half = 0.5 * vector.square().sum(-1, keepdim=True).add(1e-20).sqrt()
    return torch.cat([half.cos(), 0.5 * torch.sinc(half / torch.pi) * vector], dim=-1)


def logarithm(q: Tensor) -> Tensor:
    """Rotation vectors `(..., 3)` (rad, at most π long) of unit quaternions `(..., 4)`."""
    imaginary = torch.where(q[..., :1] < 0, -q[..., 1:], q[..., 1:])
    sine = imaginary.square().sum(-1, keepdim=True).add(1e-20).sqrt()
    return imaginary * (2 * torch.atan2(sine, q[..., :1].abs()) / sine)


def matrix(q: Tensor) -> Tensor:
    """Rotations `(..., 3, 3)` of unit quaternions `(..., 4)`: a point `p` is seen at `A p`."""
    w, x, y, z = q.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def from_matrix(m: Tensor) -> Tensor:
    r"""Unit quaternions `(..., 4)` of rotations `(..., 3, 3)`, of either sign.

    The column of :math:`4 q q^\top` with the largest diagonal: no angle is a bad one.
    """
    a, b, c = (m[..., k, k] for k in range(3))
    x, y, z = (m[..., j, i] - m[..., i, j] for i, j in ((1, 2), (2, 0), (0, 1)))
    xy, xz, yz = (m[..., j, i] + m[..., i, j] for i, j in ((0, 1), (0, 2), (1, 2)))
    rows = (
        (1 + a + b + c, x, y, z),
        (x, 1 + a - b - c, xy, xz),
        (y, xy, 1 - a + b - c, yz),
        (z, xz, yz, 1 - a - b + c),
    )
    square = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    best = square.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*a.shape, 1, 4)
    return unit(square.gather(-2, best).squeeze(-2))
