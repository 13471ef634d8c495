"""Which components move independently of each other, and which only as a group."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from pyrocryo.errors import InputError

__all__ = ["dependence", "grouped"]

LEAST = 0.1  # rank correlation of squares below which a dependence is of no account
SIGMAS = 4.0  # and that it must exceed what chance gives


def dependence(sources: np.ndarray) -> np.ndarray:
    """Rank correlation of the squares of uncorrelated components, `(k, k)`, ones on the diagonal.

    Zero for independent ones. Components of a ring, or of a common scale, have none of their
    values correlated and yet large squares together, or never (Hyvärinen & Hoyer 2000).
    """
    ranks = rankdata(np.abs(sources), axis=0)
    return np.atleast_2d(np.corrcoef(ranks, rowvar=False))


def grouped(links: np.ndarray, count: int, subspaces: int | None) -> tuple[tuple[int, ...], ...]:
    """Groups of components.

    After ICA on all, components of one independent subspace are left dependent and those of
    different ones are not (Cardoso 1998; Theis 2006).

    Args:
        links: :func:`dependence`, `(k, k)`.
        count: Particles behind it.
        subspaces: How many groups; by default those that chains of dependences hold together,
            each of at least .1 and of four standard errors.
    """
    k = len(links)
    if subspaces is not None and not 1 <= subspaces <= k:
        raise InputError(f"subspaces: expected 1 to {k} for {k} components, got {subspaces}")
    if k == 1:
        return ((0,),)
    far = 1 - np.abs(links)
    far = squareform(0.5 * (far + far.T), checks=False)
    if subspaces is None:
        near = 1 - max(LEAST, SIGMAS / np.sqrt(count))
        label = fcluster(linkage(far, "single"), near, criterion="distance")
    else:
        label = fcluster(linkage(far, "average"), subspaces, criterion="maxclust")
    groups = [tuple(np.flatnonzero(label == n).tolist()) for n in np.unique(label)]
    return tuple(sorted(groups))
