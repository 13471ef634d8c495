"""Before any data: what a prior can identify, from ``log_prob``, ``sample`` and autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyrocryo.identify.prior_check import PriorCheck

__all__ = ["check_prior"]


def check_prior(
    prior: Any,
    conditions: Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    *,
    dim: int | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> PriorCheck:
    """Says what a prior can identify, and up to which symmetry.

    Args:
        prior: What :class:`pyrocryo.Pair` takes: a Pyro distribution, or a function or module.
        conditions: Values by name of the fields that the prior wants, all of length L (row l of
            all lists is condition l); the values alone where it wants one field; None for none.
        dim: Expected size K of `z`.
        samples: Draws of `z`.
        seed: Of all draws.
    """
    raise NotImplementedError
