"""How many of the latents carry anything, and how wide their posteriors are beside the prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["Dimensions", "dimensions"]

COLLAPSED = 0.01  # variance of means, of 1 where widths are given and else of the largest
KNOWN = 0.5  # share of the variance of a latent's draws that is in the means
NEAR_PRIOR = (0.5, 2.0)  # variance of draws over all particles, beside the prior's 1


@dataclass(frozen=True)
class Dimensions:
    r"""Arrays `(K,)`, one number a latent.

    Attributes:
        variance: Of the posterior means over particles.
        active: Which latents vary: variance of at least .01, of a prior of unit variance where
            posterior widths are given, and else of the largest.
        effective: Number of principal directions that hold the variance as evenly as these,
            :math:`\exp(-\sum_i p_i \ln p_i)` with their shares `p`.
        width: Mean posterior standard deviation; None without.
        known: Share of the variance of posterior draws that is in the means: 1 for a latent read
            exactly, 0 for one that is not read at all. None without widths.
        kl: Mean KL divergence from a standard normal prior, nats a particle. None without widths.
        aggregate: Variance of draws of all particles, 1 under a standard normal prior. None
            without widths.
        sentence: In words.
    """

    variance: np.ndarray
    active: np.ndarray
    effective: float
    width: np.ndarray | None
    known: np.ndarray | None
    kl: np.ndarray | None
    aggregate: np.ndarray | None
    sentence: str


def dimensions(z: np.ndarray, sd: np.ndarray | None = None) -> Dimensions:
    r"""Which latents are active, and their posterior widths against a standard normal prior.

    .. math:: KL_k = \tfrac12 E[\mu_k^2 + \sigma_k^2 - 1 - \ln \sigma_k^2]

    A latent has collapsed where its posterior is the prior: means that do not vary, a width of 1,
    no KL. Where draws of all particles spread far more than the prior does, the prior does not say
    what is likely.

    Args:
        z: `(N, K)` posterior means.
        sd: `(N, K)` posterior standard deviations.

    Raises:
        InputError: If they are not finite, not of one shape, or of fewer than two particles.
    """
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or len(z) < 2 or not z.shape[1]:
        raise InputError(f"z: expected (N, K) of two particles or more, got {z.shape}")
    if not np.isfinite(z).all():
        raise InputError("z: expected finite numbers, got NaN or infinity")
    if sd is not None:
        sd = np.asarray(sd, dtype=np.float64)
        if sd.shape != z.shape or not (np.isfinite(sd).all() and (sd > 0).all()):
            raise InputError(f"sd: expected finite numbers above 0, {z.shape}, got {sd.shape}")
    variance = z.var(axis=0)
    active = variance >= COLLAPSED * (1.0 if sd is not None else max(variance.max(), 1e-300))
    values = np.linalg.eigvalsh(np.atleast_2d(np.cov(z.T)))
    share = np.maximum(values, 1e-300) / max(values.sum(), 1e-300)
    effective = float(np.exp(-(share * np.log(share)).sum())) if variance.max() > 0 else 0.0
    width = known = kl = aggregate = None
    if sd is not None:
        width, within = sd.mean(axis=0), (sd**2).mean(axis=0)
        aggregate = variance + within
        known = variance / aggregate
        kl = 0.5 * (z**2 + sd**2 - 1 - 2 * np.log(sd)).mean(axis=0)
    reading = _reading(active, effective, width, known, kl, aggregate)
    return Dimensions(variance, active, effective, width, known, kl, aggregate, reading)


def _reading(
    active: np.ndarray,
    effective: float,
    width: np.ndarray | None,
    known: np.ndarray | None,
    kl: np.ndarray | None,
    aggregate: np.ndarray | None,
) -> str:
    count, k = int(active.sum()), len(active)
    told = f"{count} of {k} latents vary" if count < k else f"all {k} latents vary"
    if count < k:
        told += f" (collapsed: {_named(~active)})"
    told += f"; their variance is spread as over {effective:.1f} directions"
    if width is None or known is None or kl is None or aggregate is None:
        return told + "; no posterior widths are given, so nothing is said of the prior"
    blind = active & (known < KNOWN)
    if blind.any():
        told += f"; more noise than particle in {_named(blind)}"
    told += f"; {kl.sum():.1f} nats a particle from a standard normal prior"
    if count:
        low, high = aggregate[active].min(), aggregate[active].max()
        if high > NEAR_PRIOR[1]:
            told += (
                f", whose variance draws exceed up to {high:.1f} times: conformations drawn from "
                "the prior are not those of the particles"
            )
        elif low < NEAR_PRIOR[0]:
            told += f", of whose variance draws fill only {low:.2f} in the narrowest latent"
        else:
            told += ", which draws of all particles fill as they should"
    return told


def _named(which: np.ndarray) -> str:
    return ", ".join(f"z{i + 1}" for i in np.flatnonzero(which))
