"""How many nats the encoder's answers are short of the best ones of their kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from pyrocryo.diagnose.common import MOST_NUMBERS, batches, drawn, models, recast
from pyrocryo.diagnose.weighted import log_evidence, log_weights
from pyrocryo.draws import weighted
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Gap", "amortisation_gap"]

SMALL, LARGE = 0.125, 0.5  # nats a latent: means off by half a standard deviation, and by one
FEWEST = 2
EVIDENCE = 300  # draws


@dataclass(frozen=True)
class Gap:
    r"""ELBO(own numbers for each particle) − ELBO(guide), in nats; 0 or more but for noise.

    Attributes:
        seeds: Seeds.
        train: `(seeds, n)`: the gap of each particle trained on.
        held_out: `(seeds, m)`: of each held-out one.
        in_sd: `(seeds, 2)`: the mean gap as an error of the posterior means, in standard
            deviations a latent, :math:`\sqrt{2 \, gap / K}`, angles of inferred poses counted
            among the K; trained on, held out.
        approximation: `(seeds, m)`: of each held-out particle, what its best posterior of the
            guide's kind is still short of ln p(x), by importance sampling from it (IWAE).
        verdict: 'small' (held-out gap below .125 nats a latent), 'large' (above .5) or 'moderate'.
        sentence: The same with its numbers.
    """

    seeds: tuple[int, ...]
    train: np.ndarray
    held_out: np.ndarray
    in_sd: np.ndarray
    approximation: np.ndarray
    verdict: str
    sentence: str

    def rows(self) -> list[dict[str, float]]:
        """One flat row for each seed: means and their standard errors."""
        return [
            {
                "seed": seed,
                **{
                    f"{name}{suffix}": float(value)
                    for name, gap in (
                        ("train", self.train[s]),
                        ("held_out", self.held_out[s]),
                        ("approximation", self.approximation[s]),
                    )
                    for suffix, value in (("", gap.mean()), ("_se", _error(gap)))
                },
            }
            for s, seed in enumerate(self.seeds)
        ]


def amortisation_gap(
    fit: Fit | Pair,
    particles: Particles,
    *,
    steps: int = 300,
    lr: float = 0.1,
    draws: int = 64,
    most: int = 256,
    seed: int = 0,
) -> Gap:
    r"""Optimises the posterior of each particle alone, from the guide's answer on.

    .. math:: q_i(u) = N(\mu + L a_i, L M_i M_i^\top L^\top)

    with μ, `L` the guide's answer and :math:`a_i` (from 0) and the lower triangular :math:`M_i`
    (from 1) the particle's own numbers: the row it would have in a lookup table under this very
    model, which is frozen. Poses that are inferred get numbers of their own in the same way:
    :math:`c_i = (c + b_i) e^{s_i}` for the concentration vector `c`; as in training, no gradient
    goes from `z` to them through the encoder. What the ELBO gains is what the encoder lost by
    answering all particles with one network (Cremer, Li & Duvenaud 2018; Edelberg & Lederman 2023,
    who train a table from scratch: :class:`pyrocryo.guides.LookupTable`). What such a law cannot
    say at all is the approximation gap, told beside it. A guide whose law is no such normal is
    optimised in its own kind: over all frames together (:class:`pyrocryo.guides.Joint`), or bent
    as the encoder says (:class:`pyrocryo.guides.Flow`).

    Particles are optimised a batch after another by Adam, whose rate falls to 0 along a cosine:
    means may move by half of ``lr steps`` posterior standard deviations. Both ELBOs are evaluated
    with the same noise, which the optimiser has not seen.

    Example::

        gap = pc.diagnose.amortisation_gap(fit, particles)
        print(gap.sentence)

    Args:
        fit: A fit, or one trained pair.
        particles: The data it was trained on, some of it held out.
        steps: Steps of the optimiser.
        lr: Its first rate, in posterior standard deviations.
        draws: Draws of the latents that the ELBOs are averaged over in the end.
        most: At most so many particles, of those trained on and of those held out.
        seed: Seed of the draws.

    Raises:
        InputError: If no particle is held out, the pair does not fit the particles, or it infers
            rotations in space, whose laws have no such correction.
    """
    for name, value in (("steps", steps), ("lr", lr), ("draws", draws), ("most", most)):
        if not value > 0:
            raise InputError(f"{name}: expected a positive number, got {value}")
    if not particles.has_test:
        raise InputError(
            f"particles: no particle is held out of these {len(particles)}; the gap is wanted of "
            "some that were trained on and of some that were not"
        )
    pairs = models(fit, particles, FEWEST)
    pose = next(iter(pairs.values())).pose
    if pose.latent and pose.spatial != 2:
        raise InputError(
            "pose: the gap is measured for poses that are known or turn in the plane, and not for "
            "rotations in space; pyrocryo.diagnose.importance tells what the whole guide loses"
        )
    gaps: list[list[np.ndarray]] = []
    left: list[np.ndarray] = []
    for pair in pairs.values():
        tuned = recast(pair, _Tuned)
        for parameter in tuned.parameters():
            parameter.requires_grad_(False)
        parts = (part.spread(most) for part in (particles.train, particles.test))
        found = [_gaps(tuned, part, steps, lr, draws, seed) for part in parts]
        gaps.append([gap for gap, _ in found])
        left.append(found[1][1])
    train, held_out = (np.stack(part) for part in zip(*gaps, strict=True))
    angles = tuned.own[2].shape[-1] - 1 if pair.pose.latent else 0
    latents = (pair.dim + angles) * (particles.frames or 1)
    means = np.stack([train.mean(1), held_out.mean(1)], axis=1)
    in_sd = np.sqrt(2 * np.maximum(means, 0.0) / latents)
    told = _verdict(train, held_out, in_sd, latents)
    return Gap(tuple(pairs), train, held_out, in_sd, np.stack(left), *told)


class _Tuned(Pair):
    """A pair whose guide's answer is corrected by numbers of each particle's own."""

    own: list[Tensor]

    def start(self, batch: Any) -> list[Tensor]:
        """Corrections that change nothing yet, for the particles in ``batch``."""
        lead, like = batch.images.shape[:-2], batch.images
        with torch.no_grad():
            where = (self.pose_of_guide(batch).mean,) if self.pose.latent else ()
            law = super().posterior_of(batch, *where)
            one = law.base_dist if isinstance(law, Independent) else law
            each, n = one.batch_shape, one.scale_tril.shape[-1]
            zeros = [like.new_zeros(*each, n), like.new_zeros(*each, n, n)]
            if self.pose.latent:
                size = where[0].shape[-1]
                zeros += [like.new_zeros(*lead, size), like.new_zeros(*lead, 1)]
        self.own = [value.requires_grad_() for value in zeros]
        return self.own

    def pose_of_guide(self, batch: Any) -> Any:
        """The guide's answer."""
        return super().pose_of(batch)

    def pose_of(self, batch: Any) -> Any:
        law = super().pose_of(batch)
        _, _, offset, log_size = self.own
        frames = batch.images.dim() == 4
        one = law.base_dist if frames else law
        one = type(one)((one.concentration + offset) * log_size.exp(), validate_args=False)
        return one.to_event(1) if frames else one

    def posterior_of(self, batch: Any, *where: Any) -> Any:
        law = super().posterior_of(batch, *where)
        offset, square, *_ = self.own
        factor = square.tril(-1) + torch.diag_embed(square.diagonal(dim1=-2, dim2=-1).exp())
        if isinstance(law, Independent):
            return law.base_dist.corrected(offset, factor).to_event(1)
        return law.corrected(offset, factor)


def _gaps(
    pair: _Tuned, particles: Particles, steps: int, lr: float, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    found = [
        _gap(pair, batch, steps, lr, draws, seed + n)
        for n, batch in enumerate(batches(pair, particles))
    ]
    gap, left = zip(*found, strict=True)
    return np.concatenate(gap), np.concatenate(left)


def _gap(
    pair: _Tuned, batch: Any, steps: int, lr: float, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each particle in ``batch``, what is gained and what is left, `(B,)` each."""
    own = pair.start(batch)
    before = drawn(pair, batch, draws, seed)
    optimiser = torch.optim.Adam(own, lr=lr)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed + 1_000_003)  # draws that the evaluation does not use
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / steps))
            loss = -_sticking(pair, batch).sum()
            for value, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
                value.grad = gradient
            optimiser.step()
    after = drawn(pair, batch, draws, seed)
    left = _evidence(pair, batch, seed) - after.double().cpu().numpy()
    return (after - before).double().cpu().numpy(), left


def _evidence(pair: _Tuned, batch: Any, seed: int) -> np.ndarray:
    """Logarithm of p(x) of each particle by importance sampling, `(B,)`."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed + 2_000_003)
        found = weighted(pair, batch, EVIDENCE, 0, MOST_NUMBERS)
    return log_evidence(log_weights(found))


def _sticking(pair: _Tuned, batch: Any) -> Tensor:
    """The ELBO of each particle, `(B,)`, whose gradient has no noise where q is the posterior.

    One draw of ln p(x, z) − ln q(z), `q` taken as it is and only `z` moved (Roeder, Wu & Duvenaud
    2017): the expected gradient is that of the ELBO.
    """
    own = pair.own
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        guide = poutine.trace(pair.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(batch)
        pair.own = [value.detach() for value in own]
        still = poutine.trace(poutine.replay(pair.guide, guide)).get_trace(batch)
        pair.own = own
        parts = []
        for trace, sign in ((model, 1), (still, -1)):
            trace.compute_log_prob()
            sites = (
                s for s in trace.nodes.values() if "log_prob" in s and not site_is_subsample(s)
            )
            parts += [sign * site["log_prob"] for site in sites]
    return sum(parts)


def _error(gap: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(gap.std(ddof=1) / math.sqrt(len(gap))) if len(gap) > 1 else math.nan


def _verdict(
    train: np.ndarray, held_out: np.ndarray, in_sd: np.ndarray, latents: int
) -> tuple[str, str]:
    each = held_out.mean() / latents
    numbers = (
        f"a posterior of its own would gain a particle {train.mean():.2g} ± "
        f"{_error(train.mean(0)):.1g} nats where it was trained on and {held_out.mean():.2g} ± "
        f"{_error(held_out.mean(0)):.1g} where it was held out, as if each latent were off by "
        f"{in_sd[:, 1].mean():.2g} posterior standard deviations"
    )
    if each < SMALL:
        return "small", f"The encoder answers nearly as well as can be: {numbers}."
    if each > LARGE:
        return "large", (
            f"The encoder falls short: {numbers}. Train longer, on more particles, or with a "
            "larger encoder; do not read its error bars as they are."
        )
    return "moderate", f"The encoder loses something: {numbers}."
