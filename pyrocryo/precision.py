"""Where float32 is kept while networks run in lower precision: coordinates, splines, filters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["applied", "exact"]

Call = TypeVar("Call", bound=Callable[..., Any])


def exact(call: Call) -> Call:
    """A function of tensors that does not take part in autocast.

    bfloat16 has 8 bits of mantissa: a pixel coordinate of 100 would be off by up to half a pixel.
    """

    @functools.wraps(call)
    def kept(*args: Any, **kwargs: Any) -> Any:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return call(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return call(*map(_raised, args), **{k: _raised(v) for k, v in kwargs.items()})

    return kept


def applied(matrix: Tensor, vector: Tensor) -> Tensor:
    """Small matrices `(..., n, k)` times vectors `(..., k)`, always in the precision they have.

    A GPU's matrix products may be in TF32 (10 bits of mantissa), sums of products never are.
    """
    return (matrix * vector.unsqueeze(-2)).sum(-1)


def _raised(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if low else value
