"""IRS: how little a latent moves when all factors but one do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyrocryo.metrics.factors import Factors, pair_up
from pyrocryo.metrics.score import Score, active, with_floor

__all__ = ["irs", "irs_value"]

QUANTILE = 0.99


def irs(
    factors: np.ndarray | Sequence[np.ndarray] | Factors,
    z: np.ndarray,
    *,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
) -> Score:
    r"""Interventional robustness score (Suter et al. 2019), from samples.

    .. math:: IRS_l = \max_k 1 - \frac{E_c\, Q_{99\%}[\,|z_l - E[z_l | f_k = c]|\,]}
        {\max |z_l - E z_l|}

    the mean over latents weighted by their largest deviations, so it depends on the latents'
    relative scales. Continuous factors are cut into 20 bins of equal counts, discrete ones taken
    as they are; what a latent varies within a bin costs perfect ones .05. It depends on tails, and
    is not near 0 without any information: about .36 for independent normal latents (those of
    bounded ones .0), .49 after 45°.

    Args:
        factors: `(N, K)` numbers, or blocks of any kind.
        z: `(N, L)` latents.
        kinds: "linear", "circular" or "so3", one a factor.
        seed: Draws the floor.
    """
    factors, z = pair_up(factors, z, kinds)
    return with_floor(lambda z: irs_value(factors, z), z, seed, permutations=2)


def irs_value(factors: Factors, z: np.ndarray) -> float:
    """The IRS alone."""
    z = z[:, active(z, 0.0)]
    largest = np.abs(z - z.mean(axis=0)).max(axis=0)
    robust = np.empty((factors.count, z.shape[1]))
    for k, classes in enumerate(factors.classes.T):
        order = np.argsort(classes, kind="stable")
        groups = np.split(z[order], np.flatnonzero(np.diff(classes[order])) + 1)
        deviations = [
            np.quantile(np.abs(group - group.mean(axis=0)), QUANTILE, axis=0) for group in groups
        ]
        robust[k] = 1 - np.mean(deviations, axis=0) / largest
    return float(np.average(robust.max(axis=0), weights=largest))
