"""Is the encoder reading the images, or recognising them?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pyrocryo.diagnose.common import batches, drawn, models, recast
from pyrocryo.diagnose.noise import noise_of
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit, Settings, fit

__all__ = ["Twins", "evil_twin"]

log = logging.getLogger("pyrocryo")

MEMORISING = 0.5  # share of the gain that the twin must reach
LEAST_GAIN = 0.1  # nats a particle below which z brings nothing that could be shared
FEWEST = 20
EVALUATED = 2000  # particles, of those trained on and of those held out


@dataclass(frozen=True)
class Twins:
    """Losses of a pair, of its twin that sees noise, and of a rigid molecule.

    Losses are negative ELBOs in nats a particle, `(seeds, 2)`: of particles trained on, and held
    out.

    Attributes:
        seeds: Seeds.
        honest: The pair as it is.
        twin: The same, but the guide sees one fixed image of pure noise for each particle.
        rigid: The same pair with every `z` decoded as 0 and its KL left out: what there is to
            be gained from.
        share: :math:`(rigid - twin) / (rigid - honest)`, the share of what `z` brings on the
            particles trained on that needs no images, `(seeds,)`; NaN where `z` brings less than
            .1 nats, negative where the twin is worse than a rigid molecule (it has no poses to go
            by where they are inferred).
        verdict: 'memorising' (mean share over .5), 'inferring', 'leaking' (the twin gains half
            as much on held-out particles: it learns of them from something other than the
            images), or 'undecided' (`z` brings less than .1 nats in every seed).
        sentence: The same with its numbers.
    """

    seeds: tuple[int, ...]
    honest: np.ndarray
    twin: np.ndarray
    rigid: np.ndarray
    share: np.ndarray
    verdict: str
    sentence: str

    def rows(self) -> list[dict[str, float]]:
        """One flat row of numbers for each seed."""
        losses = {"honest": self.honest, "twin": self.twin, "rigid": self.rigid}
        return [
            {
                "seed": seed,
                **{
                    f"{name}_{part}": float(loss[s, p])
                    for name, loss in losses.items()
                    for p, part in enumerate(("train", "held_out"))
                },
                "share": float(self.share[s]),
            }
            for s, seed in enumerate(self.seeds)
        ]


def evil_twin(
    pair: Pair | Fit,
    particles: Particles,
    *,
    seeds: int | Sequence[int] = 3,
    device: str | torch.device = "cpu",
    draws: int = 4,
    noise_seed: int = 0,
    **settings: Any,
) -> Twins:
    r"""Trains a pair beside its evil twin, whose encoders see noise in place of the images.

    One image of white noise belongs to each particle, the same in every epoch; what is to be
    explained stays the particle's own image, and known poses stay known. Such an encoder has
    nothing to infer from and can only recognise particles. If its loss on the particles it was
    trained on comes close all the same, so could the honest encoder's have done, and low training
    losses or tidy latents are no evidence that images were read (Edelberg & Lederman 2023). On
    held-out particles the twin must fail: its recognising is worth nothing there.

    Close is measured against a third pair that has no `z` at all. All three see the same
    particles in the same order, from the same seeds.

    Example::

        twins = pc.diagnose.evil_twin(pair, particles, steps=1500)
        print(twins.sentence)

    Args:
        pair: Model and guide to train; or a fit, which is then taken as the honest one, and its
            seeds and settings for the others.
        particles: The data; some must be held out.
        seeds: How many seeds, or which.
        device: Where to train.
        draws: Draws of the latents a particle when losses are evaluated.
        noise_seed: Seed of the noise images.
        **settings: Of the training, see :class:`pyrocryo.svi.Settings`.

    Raises:
        InputError: If no particle is held out, there are fewer than 20, or pair, particles and
            settings do not go together.
    """
    if not particles.has_test:
        raise InputError(
            f"particles: no particle is held out of these {len(particles)}, and the twin is known "
            "by how it fails on them"
        )
    if draws < 1:
        raise InputError(f"draws: expected at least 1, got {draws}")
    models(pair, particles, FEWEST)
    honest, chosen = None, Settings.of(settings)
    if isinstance(pair, Fit):
        honest = _agreeing(pair, particles, settings)
        pair, seeds, chosen = honest.pairs[0], honest.seeds, honest.settings

    def trained(pair: Pair, name: str, chosen: Settings = chosen) -> Fit:
        log.info("evil twin: training %s", name)
        return fit(pair, particles, seeds=seeds, device=device, **vars(chosen))

    honest = honest or trained(pair, "the honest pair")
    blind = recast(pair, _Twin)
    blind.noise_seed = noise_seed
    blind.noise_level = particles.statistics().sd / particles.scale
    # all but the last step, whose rate is the smallest; what it does to z does not count below
    still = replace(chosen, rigid_steps=chosen.steps - 1, kl_warmup=0)
    fits = honest, trained(blind, "the twin"), trained(pair, "the rigid molecule", still)
    parts = [part.spread(EVALUATED) for part in (particles.train, particles.test)]
    losses = [
        np.array([[_loss(p, part, draws, n == 2) for part in parts] for p in one.pairs])
        for n, one in enumerate(fits)
    ]
    gain, shared = losses[2] - losses[0], losses[2] - losses[1]
    worth = np.where(gain[:, 0] > LEAST_GAIN, gain[:, 0], np.nan)
    share = shared[:, 0] / worth
    verdict, sentence = _verdict(gain, shared, share)
    return Twins(honest.seeds, *losses, share, verdict, sentence)


def _agreeing(fit: Fit, particles: Particles, settings: Mapping[str, Any]) -> Fit:
    """The fit, if nothing is said against it."""
    if settings:
        raise InputError(f"{next(iter(settings))}: a fit brings its settings along")
    if fit.key["data"] != particles.digest():
        raise InputError("particles: the fit was trained on others than these")
    return fit


class _Twin(Pair):
    """A pair whose guide sees noise that belongs to the particle, and never its image."""

    noise_seed: int
    noise_level: float

    def pose_of(self, batch: Any) -> Any:
        return super().pose_of(self._blind(batch))

    def posterior_of(self, batch: Any, *where: Any) -> Any:
        return super().posterior_of(self._blind(batch), *where)

    def _blind(self, batch: Any) -> Any:
        noise = noise_of(batch.index, batch.images.shape[1:], self.noise_seed)
        return batch._replace(images=self.noise_level * noise.to(batch.images.dtype))


def _loss(pair: Pair, particles: Particles, draws: int, rigid: bool) -> float:
    """Negative ELBO a particle in nats, with the same noise for every pair."""
    parts = [
        drawn(pair, batch, draws, seed=n, rigid=rigid)
        for n, batch in enumerate(batches(pair, particles))
    ]
    return -float(torch.cat(parts).double().mean())


def _verdict(gain: np.ndarray, shared: np.ndarray, share: np.ndarray) -> tuple[str, str]:
    (seen, unseen), (twin, twin_unseen) = gain.mean(0), shared.mean(0)
    numbers = (
        f"z gains {seen:.3g} nats a particle on those trained on and {unseen:.3g} on held-out "
        f"ones; an encoder that sees noise gains {twin:.3g} and {twin_unseen:.3g}"
    )
    if np.isnan(share).all():
        return "undecided", f"Undecided: z brings too little to compare ({numbers})."
    if twin_unseen > MEMORISING * seen:
        return "leaking", (
            f"The guide learns of particles from something other than their images: {numbers}. "
            "Look at the fields it is given."
        )
    share = share[~np.isnan(share)]
    each = ", ".join(f"{round(100 * s)} %" for s in share)
    many = f"{round(100 * share.mean())} % of it (seeds: {each})" if twin > 0 else "none of it"
    if share.mean() > MEMORISING:
        return "memorising", (
            f"The encoder can memorise these particles: {numbers}, {many}. Training losses and "
            "latents of the particles trained on show nothing; use more particles, fewer steps or "
            "a smaller encoder, and judge by held-out ones."
        )
    return "inferring", f"The encoder reads the images: {numbers}, {many}."
