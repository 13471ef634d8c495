"""Results as JSON has them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """A result's fields by name, arrays as nested lists; what is in a result alike.

    >>> plain(pc.identify.jacobian(fit, particles))["rank"]  # doctest: +SKIP
    [2, 2]
    """
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value
