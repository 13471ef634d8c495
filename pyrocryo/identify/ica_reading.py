"""What the numbers of a linear ICA come to, in words."""

from __future__ import annotations

import numpy as np

__all__ = ["ALPHA", "STABLE", "reading"]

ALPHA = 0.01  # of all components together, to call any of them not Gaussian
STABLE = 0.95  # |correlation| with what halves of the particles give


def reading(
    share: float,
    gaussian: tuple[int, ...],
    stability: np.ndarray,
    groups: tuple[tuple[int, ...], ...],
    method: str,
) -> tuple[tuple[bool, ...], str]:
    """Which components are told apart, and the sentences that say so.

    Args:
        share: Of the variance, in the components.
        gaussian: Components that are Gaussian within error.
        stability: `(k,)`.
        groups: Independent subspaces.
        method: "fastica" or "pca".
    """
    k = len(stability)
    mixed = gaussian if len(gaussian) > 1 else ()
    joint = {i for group in groups if len(group) > 1 for i in group}
    # components that no rotation among themselves excuses
    loose = [i for i in np.flatnonzero(stability < STABLE) if i not in mixed and i not in joint]
    apart = tuple(
        method == "fastica" and i not in mixed and i not in loose and i not in joint
        for i in range(k)
    )
    said = [f"{k} component{'s' * (k > 1)} hold{'s' * (k == 1)} {100 * share:.3g} % of variance."]
    if method == "pca":
        said.append("Principal components are uncorrelated, and need not be independent.")
    elif k == 1:
        said.append("There is nothing to separate it from.")
    elif len(mixed) == k:
        said.append(
            "All are Gaussian within error, so linear ICA cannot separate them: any rotation of "
            "them fits as well."
        )
    elif mixed:
        said.append(
            f"Linear ICA cannot separate components {_named(mixed)}: they are Gaussian within "
            "error and known only up to a rotation among themselves."
        )
    elif not loose and not joint:
        lone = f"only component {_named(gaussian)} is" if gaussian else "none is"
        said.append(
            f"All are told apart, if the mixture is linear: {lone} Gaussian within error, and "
            f"halves of the particles agree on each (|r| >= {stability.min():.3f})."
        )
    if method == "fastica" and k > 1:
        said += [
            f"Components {_named(group)} depend on each other: together they are one subspace, "
            "its axes alone mean little."
            for group in groups
            if len(group) > 1
        ]
        if loose:
            least = stability[loose].min()
            said.append(
                f"Halves of the particles do not agree on component{'s' * (len(loose) > 1)} "
                f"{_named(loose)} (|r| = {least:.2f}); do not read meaning into it."
            )
        told = [i for i in range(k) if apart[i]]
        if told and len(told) < k:
            said.append(f"Told apart: {_named(told)}.")
    return apart, " ".join(said)


def _named(which: tuple[int, ...] | list[int]) -> str:
    return ", ".join(str(i + 1) for i in which)
