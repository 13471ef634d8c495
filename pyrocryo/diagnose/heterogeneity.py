"""Is there heterogeneity, and along how many axes? Asked of particles that were held out."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pyrocryo.diagnose.common import models, recast
from pyrocryo.diagnose.dimensions import Dimensions, dimensions
from pyrocryo.diagnose.weighted import log_evidence, log_weights, sampled
from pyrocryo.errors import InputError
from pyrocryo.guides import GaussNewton
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles, evenly
from pyrocryo.precision import applied
from pyrocryo.svi import Fit, fit

__all__ = ["Heterogeneity", "heterogeneity"]

log = logging.getLogger("pyrocryo")

FEWEST = 20  # particles held out
SURE = 3.0  # standard errors
SHARE = 0.02  # of all that z brings, below which one more latent is not called an axis
PRIOR_DRAWS = 20_000


@dataclass(frozen=True)
class Heterogeneity:
    """Whether `z` explains particles that were not trained on.

    Attributes:
        seeds: Seeds.
        gain: `(seeds, n)` log-likelihood of each held-out particle in nats, of the fit less that
            of the homogeneous fit of the same seed.
        error: `(seeds,)` standard error of the mean gain: over particles, and over trainings.
        training: Standard deviation, over seeds, of what two homogeneous fits differ by in the
            mean: a gain of this size is chance.
        steps: `(seeds, K)` mean gain of 1, 2, ..., K latents over one less, in nats; None where
            they were not asked for.
        steps_error: Standard errors of the same.
        directions: Of each seed, the latents by principal directions of the posterior means,
            in units of the prior's spread: KL, variance, what is active.
        axes: How many, as the median seed has it; 0 without heterogeneity.
        verdict: 'heterogeneous' or 'homogeneous' (none found).
        sentence: The same with its numbers.
    """

    seeds: tuple[int, ...]
    gain: np.ndarray
    error: np.ndarray
    training: float
    steps: np.ndarray | None
    steps_error: np.ndarray | None
    directions: tuple[Dimensions, ...]
    axes: int
    verdict: str
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: means in place of particles."""
        return {
            "sentence": self.sentence,
            "verdict": self.verdict,
            "axes": self.axes,
            "seeds": list(self.seeds),
            "held_out": self.gain.shape[1],
            "gain_nats": self.gain.mean(axis=1),
            "gain_se": self.error,
            "training_sd": self.training,
            "step_nats": self.steps,
            "step_se": self.steps_error,
            "kl_nats": [found.kl for found in self.directions],
            "variance": [found.variance for found in self.directions],
            "active": [int(found.active.sum()) for found in self.directions],
        }


def heterogeneity(
    fit: Fit,
    particles: Particles,
    *,
    axes: bool = False,
    draws: int = 64,
    most: int = 2000,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Heterogeneity:
    r"""Compares a fit with a homogeneous one of the same pair, on held-out particles.

    .. math:: \Delta_i = \ln \frac1S \sum_s \frac{p(x_i | z_s) p(z_s)}{q(z_s | x_i)}
              - \ln p_0(x_i), \quad z_s \sim q

    :math:`p_0` is the same pair trained by the same steps on the same particles with every `z`
    decoded as 0 and its KL left out: the consensus, with the noise level (and poses) that suit it.
    The first term is in expectation no more than the log-likelihood, so chance and a poor guide
    speak against heterogeneity. It is found where the mean gain of the median seed exceeds three
    standard errors, which count particles and, from homogeneous fits of several seeds (one is
    added where the fit has one), how much trainings differ.

    Axes are counted by active directions: principal directions of the posterior means, of a
    variance of at least .01 of the prior's (Burda et al. 2016's active units). A motion that bends
    through the latents can take more than one, so that is an upper bound. With ``axes``, pairs
    that see only the first 1, 2, ... latents are trained too, and a latent counts where it gains
    three standard errors, and 2 % of the whole gain, over one less.

    On flat arms (24², grid, 800 steps, poses known, one image a molecule): without motion, SNR .1,
    2000 or 3000 particles, 7 seeds, none was called heterogeneous (-.05 ± .05 nats), though the
    means of `z` had .03 to .29 of the prior's variance. With two arms moving (4000 particles,
    ``axes``) two axes in 3 of 3 seeds at SNR .3 (5.9 and 4.9 ± 1.4 nats); at SNR .1, where an
    image tells 1 to 2 nats, two in one seed of two and one in the other, whose fit had lost an
    arm: what is counted is what the fit found.

    Example::

        print(pc.diagnose.heterogeneity(fit, particles).sentence)

    Args:
        fit: A fit.
        particles: What it was fitted to, some of it held out.
        axes: Train with fewer latents as well: K - 1 more fits of each seed.
        draws: Draws S a particle.
        most: At most so many of the held-out particles.
        seed: Of the draws.
        device: Where to train.

    Raises:
        InputError: If the particles are others, fewer than 20 are held out, or there are axes to
            count in a guide that asks the volume and so cannot be kept from a latent.
    """
    if not isinstance(fit, Fit):
        raise InputError(f"fit: expected a Fit, got {type(fit).__name__}")
    if not particles.has_test:
        raise InputError(f"particles: no particle is held out of these {len(particles)}")
    if fit.key["data"] != particles.digest():
        raise InputError("particles: the fit was trained on others than these")
    held = particles.test.spread(most)
    pairs = list(models(fit, held, FEWEST).values())
    if axes and isinstance(pairs[0].encoder, GaussNewton):
        raise InputError("axes: a guide that asks the volume sees all latents; count without")
    found = [sampled(pair, held, draws, seed=seed) for pair in pairs]
    full = _evidence(found)
    directions = tuple(
        _directions(pair, held, one["z"]) for pair, one in zip(pairs, found, strict=True)
    )
    once = draws if pairs[0].pose.latent else 1
    rivals = _trained(fit, particles, 0, device)
    rigid = _evidence([sampled(p, held, once, seed=seed, rigid=True) for p in rivals])
    training = float(np.std(rigid.mean(axis=1), ddof=1)) * np.sqrt(2)
    gain = full - rigid[: len(full)]
    error = np.hypot(_error(gain), training)
    steps = steps_error = None
    if axes:
        rungs = [rigid[: len(full)]]
        for kept in range(1, pairs[0].dim):
            fewer = _trained(fit, particles, kept, device)
            rungs.append(_evidence([sampled(p, held, draws, seed=seed) for p in fewer]))
        rise = np.diff(np.stack([*rungs, full]), axis=0)  # (K, seeds, n)
        steps = rise.mean(axis=-1).T
        steps_error = np.hypot(_error(rise), training).T
    count, verdict, sentence = _verdict(gain, error, steps, steps_error, directions)
    return Heterogeneity(
        fit.seeds, gain, error, training, steps, steps_error, directions, count, verdict, sentence
    )


class _Pinned(Pair):
    """A pair whose volume sees only the first latents; the others are 0 to it."""

    kept: int

    def seen(self, z: torch.Tensor, *where: Any) -> torch.Tensor:
        turn = self.rotation()
        shown = (torch.arange(self.dim, device=z.device) < self.kept).to(z.dtype)
        return super().seen(applied(turn, shown * applied(turn.T, z)), *where)


def _trained(made: Fit, particles: Particles, kept: int, device: Any) -> list[Pair]:
    """The pair of each seed, trained again with only some of its latents."""
    pair, settings, seeds = made.pairs[0], made.settings, made.seeds
    if not kept:
        # all but the last step, whose rate is the smallest; penalties are of motions
        still = {"rigid_steps": settings.steps - 1, "kl_warmup": 0}
        settings = replace(settings, **still, interventions=None, penalties=())
        seeds = seeds if len(seeds) > 1 else (*seeds, seeds[0] + 1)
        log.info("training a homogeneous molecule")
    else:
        pair = recast(pair, _Pinned)
        pair.kept = kept
        log.info("training with %d of %d latents", kept, pair.dim)
    return fit(pair, particles, seeds=seeds, device=device, **vars(settings)).pairs


def _directions(pair: Pair, particles: Particles, z: np.ndarray) -> Dimensions:
    """Draws `(S, N, [T,] K)` along principal directions of their means, the prior's spread 1."""
    pair = copy.deepcopy(pair).cpu()  # where every prior can be sampled
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        batch = pair.moved(particles.batch(evenly(len(particles), 64)))
        prior = pair.prior_of(batch)
        own = prior.sample((1 + PRIOR_DRAWS // max(1, prior.batch_shape.numel()),))
    own = own.reshape(-1, pair.dim).double().cpu().numpy()
    z = z.reshape(len(z), -1, pair.dim).astype(float)
    # whitened by the prior, so that directions compare
    root = np.linalg.cholesky(np.atleast_2d(np.cov(own.T)))
    white = np.linalg.solve(root, (z - own.mean(axis=0)).reshape(-1, pair.dim).T).T
    white = white.reshape(z.shape)
    mean = white.mean(axis=0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(mean.T)))
    along = white @ vectors[:, np.argsort(-values)]
    return dimensions(along.mean(axis=0), np.maximum(along.std(axis=0), 1e-12))


def _evidence(found: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Of each seed and particle, `(seeds, n)`."""
    return np.array([log_evidence(log_weights(one)) for one in found])


def _error(gain: np.ndarray) -> np.ndarray:
    """Standard errors of means over the last axis."""
    return gain.std(axis=-1, ddof=1) / np.sqrt(gain.shape[-1])


def _verdict(
    gain: np.ndarray,
    error: np.ndarray,
    steps: np.ndarray | None,
    steps_error: np.ndarray | None,
    directions: tuple[Dimensions, ...],
) -> tuple[int, str, str]:
    mean = gain.mean(axis=1)
    middle = int(np.argsort(mean / error)[(len(mean) - 1) // 2])
    told = (
        f"on {gain.shape[1]} held-out particles z gains {mean[middle]:.3g} ± {error[middle]:.2g} "
        "nats a particle over a homogeneous fit"
    )
    if len(mean) > 1:
        told += f" (median of {len(mean)} seeds: {mean.min():.3g} to {mean.max():.3g})"
    if not mean[middle] > SURE * error[middle]:
        most = mean[middle] + 2 * error[middle]
        bound = f"; more than {most:.2g} is excluded" if most > 0 else ""
        return 0, "homogeneous", f"No heterogeneity found: {told}{bound}."
    k = len(directions[0].active)
    if steps is None:
        count = int(np.median([found.active.sum() for found in directions]))
        how = "at most " if count > 1 else ""
        kl = ", ".join(f"{v:.2g}" for v in directions[middle].kl)
        more = f"{how}{_axes(count)} of {k} latents (KL along principal directions: {kl} nats)"
    else:
        enough = np.maximum(SURE * steps_error, SHARE * mean[:, None])
        counts = [int(np.argmin([*row, False])) for row in steps > enough]
        count = max(1, int(np.median(counts)))
        each = ", ".join(
            f"{a:.3g} ± {b:.2g}" for a, b in zip(steps[middle], steps_error[middle], strict=True)
        )
        more = f"{_axes(count)}: latents one after another gain {each} nats"
    more += "; all are used, so there may be more: fit with more latents" if count == k else ""
    return count, "heterogeneous", f"Heterogeneous, {more}; {told}."


def _axes(count: int) -> str:
    words = {1: "one axis", 2: "two axes", 3: "three axes", 4: "four axes"}
    return words.get(count, f"{count} axes")
