"""Where to compute, as one types it."""

from __future__ import annotations

import contextlib

from pyrocryo.errors import InputError

__all__ = ["there"]


def there(name: str) -> str:
    """The device, if it is to be had."""
    import torch

    with contextlib.suppress(RuntimeError, AssertionError):
        torch.empty(0, device=name)
        return name
    raise InputError(f"device: {name!r} is not to be had on this machine")
