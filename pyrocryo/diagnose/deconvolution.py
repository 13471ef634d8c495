r"""The law of a latent over all particles, from what each image tells of it (numpy alone)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["Deconvolved", "deconvolved", "resampled"]

STIFFNESS = tuple(10.0**k for k in np.arange(-2.0, 4.1, 0.5))  # λ tried
FREE = 1e-4  # penalty of what λ leaves free (a tilt), so that f has a law: sd 100 nats
PERTURBED = 0.5  # h
NEWTON = 100  # steps at most
SETTLED = 1e-6  # nats in all
TINY = 1e-300


@dataclass(frozen=True)
class Deconvolved:
    """A law over B bins.

    Attributes:
        population: `(B,)`, sums to 1.
        stiffness: λ, as the evidence chose it.
        f: `(B,)` the log of the law over the prior, up to a constant.
        start: `(B,)` log populations of the prior.
    """

    population: np.ndarray
    stiffness: float
    f: np.ndarray
    start: np.ndarray


def deconvolved(likelihood: np.ndarray, prior: np.ndarray) -> Deconvolved:
    r"""Populations of bins by maximum likelihood, smooth relative to a prior.

    .. math:: \hat f = \arg\max_f \sum_i \ln \sum_b \pi_b L_{ib}
              - \frac\lambda2 \sum_b (f_{b-1} - 2 f_b + f_{b+1})^2, \quad
              \pi_b \propto P_b e^{f_b}

    Without the second term this is the NPMLE of the mixing law (Kiefer & Wolfowitz 1956, by
    Newton's steps in place of EM), which turns noise into spikes; with it, an empirical Bayes
    deconvolution as Efron's (2016, Biometrika 103, 1-20), whose λ is the one of the largest
    evidence by Laplace's approximation. For λ without bounds the law is the prior, tilted.
    A histogram of posterior means is narrower than the truth (shrinkage towards the prior), one of
    draws is biased towards the prior where posteriors are wide; this is neither.

    Args:
        likelihood: `(N, B)`, of each row given each bin, up to a factor a row: its posterior mass
            in the bin over the prior mass.
        prior: `(B,)` prior mass of the bins, in order, which must be positive.

    Raises:
        InputError: If shapes differ, or a row's likelihood is nowhere positive.
    """
    likelihood, prior = np.asarray(likelihood, float), np.asarray(prior, float)
    if likelihood.ndim != 2 or likelihood.shape[1:] != prior.shape or len(prior) < 4:
        raise InputError(
            f"likelihood: expected (N, B) for the {prior.shape} bins of the prior, four or more, "
            f"got {likelihood.shape}"
        )
    if not (prior > 0).all() or not (likelihood >= 0).all():
        raise InputError("likelihood: expected masses of 0 or more, and above 0 in the prior")
    if not (likelihood.max(axis=1, initial=0.0) > 0).all():
        raise InputError("likelihood: a row is possible in no bin")
    likelihood = likelihood / likelihood.max(axis=1, keepdims=True)
    start = np.log(prior / prior.sum())
    weight, f = np.ones(len(likelihood)), np.zeros(len(prior))
    best, most = None, -np.inf
    for stiffness in reversed(STIFFNESS):
        penalty = _penalty(len(prior), stiffness)
        f, value, information = _fitted(likelihood, start, penalty, weight, f, np.zeros_like(f))
        evidence = value + 0.5 * (_log_det(penalty) - _log_det(information))
        if evidence > most:
            law = np.exp(_log_law(start, f))
            best, most = Deconvolved(law, stiffness, f, start), evidence
    return best


def resampled(
    likelihood: np.ndarray, found: Deconvolved, *, count: int, groups: int = 1, seed: int = 0
) -> np.ndarray:
    r"""Populations `(count, B)` that data and smoothness could as well have given.

    Each is fitted to a bootstrap sample of the particles, with :math:`f - h \xi`,
    :math:`\xi \sim N(0, (\lambda D^\top D)^{-1})`, in place of `f` in the penalty, as a bootstrap
    alone does not know by how much the penalty is off. With `h` = 1 these would be draws from the
    posterior of `f`, were the problem linear (randomise, then optimise: Bardsley et al. 2014);
    with it 95 % intervals cover 99 %, with 0 they cover 88 to 91 %, with the `h` = .5 used here 95
    to 97 % (three double wells with barriers of 1 to 3 k_B T, posteriors of .3 to .4 of their
    half-distance, 1000 or 2000 particles, 30 seeds each).

    Args:
        likelihood: As it was given.
        found: What it gave.
        count: How many samples.
        groups: Consecutive rows that are drawn together, such as frames of a molecule.
        seed: Of the draws.
    """
    likelihood = likelihood / likelihood.max(axis=1, keepdims=True)
    rng, n = np.random.default_rng(seed), len(likelihood) // groups
    penalty = _penalty(len(found.f), found.stiffness)
    values, vectors = np.linalg.eigh(penalty)
    # what is free anyway is not drawn: the data decide it
    size = np.where(values > 2 * FREE, 1 / np.sqrt(np.maximum(values, TINY)), 0.0)
    laws = []
    for _ in range(count):
        weight = np.bincount(rng.integers(n, size=n), minlength=n).astype(float).repeat(groups)
        xi = PERTURBED * vectors @ (size * rng.standard_normal(len(size)))
        f, *_ = _fitted(likelihood, found.start, penalty, weight, found.f, xi)
        laws.append(np.exp(_log_law(found.start, f)))
    return np.array(laws)


def _penalty(bins: int, stiffness: float) -> np.ndarray:
    """Quadratic form `(B, B)` of f; the constant, which the law does not see, is held too."""
    second = np.diff(np.eye(bins), 2, axis=0)
    return stiffness * second.T @ second + FREE * np.eye(bins)


def _log_det(matrix: np.ndarray) -> float:
    return float(np.linalg.slogdet(matrix)[1])


def _log_law(start: np.ndarray, f: np.ndarray) -> np.ndarray:
    law = start + f
    law = law - law.max()
    return law - np.log(np.exp(law).sum())


def _fitted(
    likelihood: np.ndarray,
    start: np.ndarray,
    penalty: np.ndarray,
    weight: np.ndarray,
    f: np.ndarray,
    xi: np.ndarray,
) -> tuple[np.ndarray, float, np.ndarray]:
    """f, what it reaches, and the information there; by Newton's steps that never lose.

    Where the likelihood is not concave, a step goes by the information of known latents, as EM's
    do.
    """
    total, eye = weight.sum(), np.eye(len(f))

    def value(f: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        law = np.exp(_log_law(start, f))
        sums = np.maximum(likelihood @ law, TINY)
        return weight @ np.log(sums) - 0.5 * (f - xi) @ penalty @ (f - xi), law, sums

    now, law, sums = value(f)
    for _ in range(NEWTON):
        own = likelihood * (law / sums[:, None])  # posteriors of the rows
        mass = weight @ own
        gradient = mass - total * law - penalty @ (f - xi)
        known = total * (np.diag(law) - np.outer(law, law)) + penalty
        missing = np.diag(mass) - own.T @ (weight[:, None] * own)
        step = _solved(known - missing, gradient)
        if step is None:
            step = np.linalg.solve(known + 1e-9 * eye, gradient)
        size = 1.0
        new, new_law, new_sums = value(f + step)
        while new < now and size > 1e-6:
            size *= 0.5
            new, new_law, new_sums = value(f + size * step)
        if new < now:
            break
        gained = new - now
        f, now, law, sums = f + size * step, new, new_law, new_sums
        if gained < SETTLED:
            break
    own = likelihood * (law / sums[:, None])
    known = total * (np.diag(law) - np.outer(law, law)) + penalty
    missing = np.diag(weight @ own) - own.T @ (weight[:, None] * own)
    positive = _solved(known - missing, f) is not None
    return f, float(now), known - missing if positive else known


def _solved(information: np.ndarray, gradient: np.ndarray) -> np.ndarray | None:
    """A Newton step, or None where the information is not positive."""
    try:
        factor = np.linalg.cholesky(information)
    except np.linalg.LinAlgError:
        return None
    return np.linalg.solve(factor.T, np.linalg.solve(factor, gradient))
