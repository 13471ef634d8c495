"""Which particles a condition such as ``z1 > 1 and sd1 < 0.3`` is true of: read, never run."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["true_of"]

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
    for term in re.split(r"\band\b", where):
        found = TERM.fullmatch(term)
        if not found or not NUMBER.fullmatch(found[3]):
            raise InputError(
                f"where: expected comparisons like 'z1 > 1.5', joined by 'and', got {term!r}"
            )
        if found[1] not in columns:
            raise InputError(f"where: there is no {found[1]}, only {', '.join(columns)}")
        masks.append(COMPARE[found[2]](columns[found[1]], float(found[3])))
    return np.logical_and.reduce(masks)
