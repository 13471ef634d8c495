"""Cholesky factors of small matrices, of kernels alone: a CUDA graph can record them.

``torch.linalg.cholesky`` asks the host whether it has gone well, and ``torch.cholesky_solve`` and
``torch.cholesky_inverse`` go through MAGMA where there is a batch, which waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["factor", "inverse", "solve"]


def factor(matrix: Tensor) -> Tensor:
    """The lower factor `(..., n, n)` of positive definite matrices; NaN of others."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0)[..., None, None], lower, torch.nan)


def solve(right: Tensor, lower: Tensor) -> Tensor:
    """:math:`(L L^T)^{-1} B` of B `(..., n, m)`, L `(..., n, n)`."""
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    return torch.linalg.solve_triangular(lower.mT, half, upper=True)


def inverse(lower: Tensor) -> Tensor:
    """:math:`(L L^T)^{-1}`, `(..., n, n)`."""
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return solve(eye.expand_as(lower), lower)
