"""Which particles a condition such as ``z1 > 1 and sd1 < 0.3`` is true of: read, never run."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["terms", "true_of"]

COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
TERM = re.compile(r"\s*([A-Za-z]\w*)\s*(<=|>=|==|<|>)\s*(\S+)\s*", re.ASCII)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def true_of(where: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mask `(N,)` of the rows where a condition is true; NaN fulfils none.

    Args:
        where: Comparisons ``NAME < NUMBER`` (or ``<=``, ``>``, ``>=``, ``==``), joined by ``and``.
        columns: Numbers `(N,)` by name.

    Raises:
        InputError: If it is not of that form, or a name is not known.
    """
    masks = []
    for name, compare, number in terms(where):
        if name not in columns:
            raise InputError(f"where: there is no {name}, only {', '.join(columns)}")
        masks.append(compare(columns[name], number))
    return np.logical_and.reduce(masks)


def terms(where: str) -> list[tuple[str, Callable[..., np.ndarray], float]]:
    """The comparisons of a condition; InputError where it is none."""
    found = []
    for term in re.split(r"\band\b", where):
        parts = TERM.fullmatch(term)
        if not parts or not NUMBER.fullmatch(parts[3]):
            raise InputError(
                f"where: expected comparisons like 'z1 > 1.5', joined by 'and', got {term!r}"
            )
        found.append((parts[1], COMPARE[parts[2]], float(parts[3])))
    return found
