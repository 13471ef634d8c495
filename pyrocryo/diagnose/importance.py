"""Importance weights of a guide's draws: k-hat, effective draws and the gap of each particle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp

from pyrocryo import unit_vectors
from pyrocryo.agreement import apart, columns, differ
from pyrocryo.diagnose.common import models
from pyrocryo.diagnose.joint import angles
from pyrocryo.diagnose.psis import FEWEST, psis
from pyrocryo.diagnose.weighted import log_evidence, log_weights, sampled
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit
from pyrocryo.to_arviz import to_arviz

__all__ = ["Importance", "importance"]

BAD, MOST_BAD = 0.7, 0.1  # k-hat, and the share of particles that may have a larger one
FARTHEST = 9.0  # k-hat on file, and in words
WORTH = 0.9  # of the draws: where weights differ less, their tail carries nothing, whatever k-hat
WIDE = 0.05  # nats a latent: standard deviations off by a fifth, or means by a third of one


@dataclass(frozen=True)
class Importance:
    r"""Weights :math:`w_s = p(x, z_s) / q(z_s | x)`, S draws of n particles for each seed.

    Attributes:
        seeds: Seeds.
        particles: `(n,)` rows in the stack.
        latents: Numbers inferred of each particle: conformation, angles and shifts, all frames.
        z: `(seeds, S, n, [T,] K)` draws.
        log_prior: `(seeds, S, n)`, of all latents.
        log_likelihood: `(seeds, S, n)`.
        log_weight: `(seeds, S, n)`, no site scaled.
        khat: `(seeds, n)` tail index (:func:`pyrocryo.diagnose.psis`).
        ess: `(seeds, n)` effective draws as a share of S, :math:`1 / S \sum_s \bar w_s^2`.
        elbo: `(seeds, n)` nats.
        iwae: `(seeds, n)` nats, :math:`\ln \frac1S \sum_s w_s` (Burda, Grosse & Salakhutdinov
            2016), a lower bound of ln p(x) in expectation that S draws bring close.
        khat_share: `(seeds,)` share of particles whose k-hat is above .7, and whose draws are
            worth less than .9 of their number.
        gap: `(seeds,)` mean of IWAE − ELBO, which tends to KL(q ‖ p) as S grows.
        gap_se: `(seeds,)` its standard error.
        khat_passed: ``khat_share`` is at most a tenth, whatever the seed.
        gap_passed: Gap of at most .05 nats a latent.
        names: C numbers inferred of a particle: components of `z`, angles and shifts.
        off: `(seeds, n, C)` the guide's mean less the weighted one, in weighted standard
            deviations.
        ratio: `(seeds, n, C)` the guide's standard deviation over the weighted one.
        sentence: In words.
    """

    seeds: tuple[int, ...]
    particles: np.ndarray
    latents: int
    z: np.ndarray
    log_prior: np.ndarray
    log_likelihood: np.ndarray
    log_weight: np.ndarray
    khat: np.ndarray
    ess: np.ndarray
    elbo: np.ndarray
    iwae: np.ndarray
    khat_share: np.ndarray
    gap: np.ndarray
    gap_se: np.ndarray
    khat_passed: bool
    gap_passed: bool
    names: tuple[str, ...]
    off: np.ndarray
    ratio: np.ndarray
    sentence: str

    @property
    def passed(self) -> bool:
        """Whether draws of the guide may be used as they are."""
        return self.khat_passed and self.gap_passed

    @property
    def doubtful(self) -> np.ndarray:
        """`(seeds, n)` particles whose own posterior may be off by what NUTS would notice.

        Weighing the draws moves a mean by more than .2 standard deviations or takes a width out of
        .8 to 1.25 times (the limits of :func:`pyrocryo.nuts`), or weights do not hold: k-hat
        counts. How often that is right: ``docs/calibrate_and_trust.md``.
        """
        return differ(self.off, self.ratio) | _counts(self.khat, self.ess)

    def as_dict(self) -> dict[str, Any]:
        """What a file keeps: numbers of particles, without the draws.

        k-hat as far as 9 either way: a file has no infinity, which is what the worst have.
        """
        names = ("ess", "elbo", "iwae", "doubtful", "khat_share", "gap", "gap_se")
        told = {"sentence": self.sentence, "passed": self.passed, "draws": self.z.shape[1]}
        told["khat"] = np.clip(self.khat, -FARTHEST, FARTHEST)
        return told | {name: getattr(self, name) for name in names}

    def arviz(self) -> Any:
        """The draws as an ArviZ object, one chain a seed, with their weights.

        ``posterior`` (``z``), ``log_likelihood`` (``x``), and in ``sample_stats`` ``log_prior``
        and the normalised, smoothed ``log_weight``.
        """
        frame = ["frame"] if self.z.ndim == 5 else []
        smooth = psis(np.moveaxis(self.log_weight, 1, -1))[0]
        groups = {
            "posterior": {"z": self.z},
            "log_likelihood": {"x": self.log_likelihood},
            "sample_stats": {
                "log_prior": self.log_prior,
                "log_weight": np.moveaxis(smooth, -1, 1),
            },
        }
        names = {name: ["particle"] for name in ("x", "log_prior", "log_weight")}
        dims = {"z": ["particle", *frame, "latent"], **names}
        coords = {"particle": self.particles, "chain": list(self.seeds)}
        return to_arviz(groups, dims=dims, coords=coords)


def importance(
    fit: Fit | Pair, particles: Particles, *, draws: int = 200, most: int = 256, seed: int = 0
) -> Importance:
    """Whether the guide's draws can stand for the posterior, and how many they are worth.

    One particle at a time: joint weights of all particles would say that every guide fails. k-hat
    sees tails that the guide lacks, not a guide that is too wide, and hardly a bias; the gap sees
    all three, and measures nothing where draws have missed the posterior altogether: then k-hat
    is large. Neither sees a wrong model (:func:`pyrocryo.diagnose.predictive` does).

    k-hat is the shape of a tail, whatever the tail weighs. Where a guide is nearly exact and the
    posterior has longer tails than a normal, it says nothing (:func:`pyrocryo.refined`, two arms:
    at gaps of .0006 nats 65 % of the particles were above .7; of 60 that NUTS agreed with, 30),
    so it counts only where the draws are worth less than .9 of their number.

    Example::

        weights = pc.diagnose.importance(fit, particles.test)
        print(weights.sentence)
        weights.arviz()  # the draws with their weights

    Args:
        fit: A fit, or one trained pair.
        particles: Particles that it fits, whether trained on or not.
        draws: Draws a particle, S. The gap is short of KL(q ‖ p) by about the variance of the
            weights over 2 S.
        most: At most so many particles.
        seed: Seed of the draws.

    Raises:
        InputError: If there are fewer than 25 draws, or the pair does not fit the particles.
    """
    if draws < FEWEST:
        raise InputError(f"draws: expected at least {FEWEST}, got {draws}")
    if most < 1:
        raise InputError(f"most: expected at least one particle, got {most}")
    pairs = models(fit, particles, 1)
    some = particles.spread(most)
    found = [sampled(pair, some, draws, seed=seed) for pair in pairs.values()]
    stacked = {name: np.stack([part[name] for part in found]) for name in found[0]}
    log_weight = log_weights(stacked)
    if not np.isfinite(log_weight.max(axis=1)).all() or np.isnan(log_weight).any():
        raise InputError("fit: densities of its draws are not finite numbers")
    smooth, khat = psis(np.moveaxis(log_weight, 1, -1))
    ess = np.exp(-logsumexp(2 * smooth, axis=-1)) / draws
    elbo = log_weight.mean(axis=1)
    iwae = log_evidence(log_weight, axis=1)
    gap, share = (iwae - elbo).mean(axis=1), _counts(khat, ess).mean(axis=1)
    error = (iwae - elbo).std(axis=1, ddof=1 if len(some) > 1 else 0) / math.sqrt(len(some))
    told = [
        _apart(part, np.exp(own).T, particles.frames is not None)
        for part, own in zip(found, smooth, strict=True)
    ]
    names, latents = told[0][0], len(told[0][0])
    off, ratio = (np.stack([part[k] for part in told]) for k in (1, 2))
    good = bool((share <= MOST_BAD).all()), bool((gap <= WIDE * latents).all())
    worst = int(gap.argmax())
    moved = float(differ(off, ratio).mean(axis=1).max())
    sentence = _sentence(khat, ess, share, moved, gap[worst], error[worst], latents, draws, good)
    kept = (stacked[name].astype(float) for name in ("z", "log_prior", "log_likelihood"))
    numbers = (khat, ess, elbo, iwae, share, gap, error)
    return Importance(
        tuple(pairs), some.index, latents, *kept, log_weight, *numbers, *good, tuple(names),
        off, ratio, sentence,
    )  # fmt: skip


def _counts(khat: np.ndarray, ess: np.ndarray) -> np.ndarray:
    """Where a tail is missing that weighs anything."""
    return (khat > BAD) & (ess < WORTH)


def _apart(
    draws: dict[str, np.ndarray], weight: np.ndarray, frames: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, and how far a guide's draws are from the same ones, weighed `(S, n)`."""
    sites = {name: draws[name].astype(float) for name in ("z", "pose", "shift") if name in draws}
    if "pose" in sites:
        centre = unit_vectors.mean(torch.as_tensor(sites["pose"])).numpy()
        sites["pose"] = angles(sites["pose"], centre)
    names, numbers = columns(sites, frames=frames)
    return names, *apart(numbers, numbers, weight)


def _sentence(
    khat: np.ndarray,
    ess: np.ndarray,
    share: np.ndarray,
    moved: float,
    gap: float,
    error: float,
    latents: int,
    draws: int,
    good: tuple[bool, bool],
) -> str:
    said = (
        f"k-hat is above {BAD}, and weights differ, for {100 * share.max():.0f} % of "
        f"{khat.shape[1]} particles (median k-hat {max(np.median(khat), -FARTHEST):.2f}), {draws} "
        f"draws are worth {draws * np.median(ess):.0f}, weighing them moves means or widths of "
        f"{100 * moved:.0f} % by a fifth, and the guide loses {gap:.3f} ± {error:.3f} nats a "
        f"particle ({gap / latents:.3f} a latent; IWAE − ELBO)"
    )
    if all(good):
        return f"{said}: its draws can be used as they are."
    if good[0]:
        return f"{said}: it is too wide, too narrow or off; weigh its draws by their weights."
    return f"{said}: it lacks tails of the posterior; neither its draws nor their weights hold."
