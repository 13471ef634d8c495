r"""What the decoder does with each latent: dead, redundant, folded, entangled or sparse.

All of it from :math:`J = \Sigma^{-1/2} \, \partial g(z, \phi) / \partial z \; S`, the change of a
particle's clean image in its own pose, in standard deviations of the noise, for one standard
deviation of each latent (`S`, over the posterior of all particles).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo import quaternions
from pyrocryo.diagnose.common import models
from pyrocryo.errors import InputError
from pyrocryo.identify.collisions import Collisions, collisions
from pyrocryo.identify.slopes import STEP, Latents, latents_of, slopes, whitened
from pyrocryo.identify.supports import Supports, supports
from pyrocryo.jacobians import gram, ima_contrast, isometry_contrast, rows, spread
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.poses import turned
from pyrocryo.svi import Fit

__all__ = ["Jacobian", "ima_contrast", "jacobian"]

FEWEST = 8  # particles
MOST = 512  # images looked at
NUMBERS = 1e9  # held in turn, over all images made
DIM = 10  # latents; every one costs two images a particle
DEAD = 0.05  # nats an image can tell of a direction at most: .32 sd of the noise for one sd
ALIKE = 0.95  # |cosine| of two latents' changes above which they are named as the same motion
FAINT = 1.0  # sd of the noise for an sd of z: an image tells a third of a nat
TURNING = 0.5
TANGLED = 0.1  # nats of IMA contrast: two latents at 65° rather than 90°
SMALL = 1e-12  # share of a change that is none


@dataclass(frozen=True)
class Jacobian:
    r"""The decoder's Jacobian over the posterior, a row for each of S seeds.

    Attributes:
        strength: `(S, K)` signal of each latent: change of the image for one standard deviation
            of it, in standard deviations of the noise (median over particles).
        singular_values: `(S, K)` of J, descending (medians).
        condition: `(S, 2)` ratio of the largest to the least, median and worst 5 %.
        rank: `(S,)` directions of z that an image tells more than .05 nats of: :math:`\tfrac12
            \ln (1 + \sigma^2)`, σ a singular value (median over particles).
        global_rank: `(S,)` the same of :math:`E[J^T J]`: directions that move any particle.
        dead: `(S, K)` latents that images tell less than .05 nats of, on average.
        redundant: `(S,)` live latents less the rank.
        cosine: `(S, K, K)` median |cosine| between the changes with two latents.
        ima: `(S,)` contrast of independent mechanism analysis of the live latents, in nats: 0 if
            and only if they change the image at right angles (:func:`ima_contrast`).
        isometry: `(S,)` :math:`E |J^T J - c 1|_F / (c \sqrt K)`, `c` the mean of the diagonal: 0
            if one standard deviation, of any direction of z and anywhere, changes images equally.
        spread: `(S, K)` of each latent's change over the pixels (median): 1 if all change by as
            much, less where it is sparse (:func:`pyrocryo.jacobians.spread`).
        turning: `(S, K)` share of the square of each latent's change that turning the particle
            makes as well (median): a latent that is a pose. NaN where poses are known.
        collisions: For each seed, :class:`~pyrocryo.identify.collisions.Collisions`.
        supports: For each seed, :class:`~pyrocryo.identify.supports.Supports`.
        seeds: Their names.
        sentences: One for each seed.
        sentence: What holds for all of them.
    """

    strength: np.ndarray
    singular_values: np.ndarray
    condition: np.ndarray
    rank: np.ndarray
    global_rank: np.ndarray
    dead: np.ndarray
    redundant: np.ndarray
    cosine: np.ndarray
    ima: np.ndarray
    isometry: np.ndarray
    spread: np.ndarray
    turning: np.ndarray
    collisions: tuple[Collisions, ...]
    supports: tuple[Supports, ...]
    seeds: tuple[int, ...]
    sentences: tuple[str, ...]
    sentence: str


def jacobian(
    fit: Fit | Pair, particles: Particles, *, most: int | None = None, seed: int = 0
) -> Jacobian:
    """Looks at the decoder where the posterior of some particles is.

    Whether the decoder can be inverted there at all (dead or redundant latents, two conformations
    with one volume), how far its motions are from orthogonal (IMA; Gresele et al. 2021) and from
    an isometry (Horan et al. 2021), and whether they are sparse enough to identify the axes
    (:mod:`pyrocryo.identify.supports`). Unknown poses are held at their posterior means: a latent
    that turns the molecule counts as one that changes the image, and is named. Where the frame
    is free, maps turn as they move, and supports are wide: fix it first
    (:func:`pyrocryo.frames.reference_body`). A rotation of z leaves rank, singular values of
    equally scaled latents and collisions as they are; strengths, IMA and supports belong to the
    axes as reported.

        >>> print(pc.identify.jacobian(fit, particles.test).sentence)  # doctest: +SKIP

    Args:
        fit: A fit, or a trained pair.
        particles: Particles that need not have been trained on.
        most: Images to look at; by default up to 512, and fewer of volumes that are slow.
        seed: Draws z from the posterior.

    Raises:
        InputError: If there are fewer than 8 particles, or more than 10 latents.
    """
    pairs = models(fit, particles, FEWEST)
    first = next(iter(pairs.values()))
    if first.dim > DIM:
        raise InputError(f"fit: expected at most {DIM} latents, got {first.dim}")
    if most is None:
        a_particle = first.volume.numbers_an_image * 2 * first.dim
        most = int(np.clip(NUMBERS / a_particle, 32, MOST))
    if most < FEWEST:
        raise InputError(f"most: expected at least {FEWEST}, got {most}")
    some = particles.spread(max(FEWEST, most // (particles.frames or 1)))
    found = [_of(pair, some, seed) for pair in pairs.values()]
    numbers = {name: np.stack([f[0][name] for f in found]) for name in found[0][0]}
    folds, parts = tuple(f[1] for f in found), tuple(f[2] for f in found)
    clauses = [_clauses(*f) for f in found]
    sentences = tuple("; ".join(c.values()) for c in clauses)
    reading = sentences[0] if len(pairs) == 1 else _together(clauses, tuple(pairs))
    return Jacobian(
        **numbers,
        collisions=folds,
        supports=parts,
        seeds=tuple(pairs),
        sentences=sentences,
        sentence=reading,
    )


def _of(
    pair: Pair, particles: Particles, seed: int
) -> tuple[dict[str, np.ndarray], Collisions, Supports]:
    latents = latents_of(pair, particles, seed)
    grams, spreads, turning = _grams(pair, latents)
    strength = grams.diagonal(dim1=-2, dim2=-1).sqrt()
    values = torch.linalg.eigvalsh(grams).clamp_min(0).flip(-1).sqrt()
    told = _told(strength).mean(dim=0)
    dead = told < DEAD
    live = (~dead).nonzero().squeeze(1)
    rank = int((_told(values) >= DEAD).sum(dim=-1).double().quantile(0.5))
    overall = torch.linalg.eigvalsh(grams.mean(dim=0)).clamp_min(0).sqrt()
    size = strength.clamp_min(1e-12)
    cosine = (grams.abs() / (size[:, :, None] * size[:, None, :])).median(dim=0).values
    condition = values[:, 0] / values[:, -1].clamp_min(1e-6)
    contrast = (
        ima_contrast(grams[:, live][:, :, live]).mean() if len(live) else grams.new_zeros(())
    )
    numbers = {
        "strength": strength.median(dim=0).values,
        "singular_values": values.median(dim=0).values,
        "condition": condition.quantile(torch.tensor([0.5, 0.95]).to(condition)),
        "rank": torch.tensor(rank),
        "global_rank": (_told(overall) >= DEAD).sum(),
        "dead": dead,
        "redundant": torch.tensor(max(0, len(live) - rank)),
        "cosine": cosine,
        "ima": contrast,
        "isometry": isometry_contrast(grams).mean(),
        "spread": spreads.median(dim=0).values,
        "turning": (
            torch.full((pair.dim,), torch.nan) if turning is None else turning.median(dim=0).values
        ),
    }
    arrays = {name: value.cpu().numpy() for name, value in numbers.items()}
    renders = int(np.clip(NUMBERS / pair.volume.numbers_an_image, 500, 50_000))
    folds = collisions(pair, particles, latents, renders=renders)
    return arrays, folds, supports(pair, latents)


def _grams(pair: Pair, latents: Latents) -> tuple[Tensor, Tensor, Tensor | None]:
    """:math:`J^T J` `(n, K, K)` of every image in its own pose; spreads and turns `(n, K)`.

    The latter, shares that turning makes too, None where poses are known.
    """
    grams, spreads, turning = [], [], []
    with torch.no_grad():
        for batch, z, direction in latents.parts:

            def seen(z: Tensor, direction: Tensor | None, batch: Any = batch) -> Tensor:
                return whitened(pair, pair.seen(z, batch, direction))

            slope = rows(slopes(lambda z, d=direction: seen(z, d), z, latents.scale)).double()
            grams.append(gram(slope))
            spreads.append(spread(slope).T)
            if direction is None:
                continue
            turns = _turns(direction)
            off = rows(
                torch.stack([(seen(z, d) - seen(z, e)) / (2 * STEP) for d, e in turns])
            ).double()
            own = gram(off)
            cross = torch.einsum("kbp,lbp->bkl", off, slope)
            own = own + SMALL * own.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] * (
                torch.eye(len(off)).to(own)
            )
            made = (cross * torch.linalg.solve(own, cross)).sum(1)
            turning.append(made / grams[-1].diagonal(dim1=-2, dim2=-1).clamp_min(1e-12))
    return torch.cat(grams), torch.cat(spreads), torch.cat(turning) if turning else None


def _turns(direction: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Poses turned by a little one way and the other, about the beam or each of three axes."""
    step = torch.tensor(STEP).to(direction)
    if direction.shape[-1] == 2:
        return [(turned(direction, step), turned(direction, -step))]
    axes = torch.eye(3).to(direction) * step
    ways = [(quaternions.exponential(v), quaternions.exponential(-v)) for v in axes]
    return [tuple(quaternions.product(q, direction) for q in way) for way in ways]


def _told(snr: Tensor) -> Tensor:
    """Nats that an image tells of a standard normal direction it shows with this strength."""
    return 0.5 * snr.square().log1p()


def _clauses(numbers: dict[str, np.ndarray], folds: Collisions, parts: Supports) -> dict[str, str]:
    """What to say, by kind."""
    said: dict[str, str] = {}
    dead = numbers["dead"]
    live = np.flatnonzero(~dead)
    if dead.any():
        told = ", ".join(f"{s:.2g}" for s in numbers["strength"][dead])
        dim = _named(np.flatnonzero(dead), "is", "are")
        said["dead"] = f"{dim} dead (one sd changes an image by {told} sd of the noise)"
    if not len(live):
        return said
    faint = live[numbers["strength"][live] < FAINT]
    if len(faint):
        told = ", ".join(f"{s:.2g}" for s in numbers["strength"][faint])
        said["faint"] = f"one image hardly tells {_named(faint)} ({told} sd of the noise)"
    elif (least := numbers["singular_values"][numbers["rank"] - 1]) < FAINT:
        said["faint"] = f"one image hardly tells some direction of z ({least:.2g} sd of the noise)"
    posed = live[numbers["turning"][live] > TURNING]
    if len(posed):
        said["turning"] = (
            f"{_named(posed, 'mostly turns', 'mostly turn')} the molecule, as poses do"
        )
    if numbers["redundant"]:
        close = np.triu(numbers["cosine"] > ALIKE, 1) & ~dead & ~dead[:, None]
        same = [f"z{i + 1} and z{j + 1}" for i, j in np.argwhere(close)]
        told = f" ({', '.join(same)} are one motion)" if same else ""
        what = "a direction" if numbers["redundant"] == 1 else f"{numbers['redundant']} directions"
        said["redundant"] = f"{what} of z can be moved without changing the image{told}"
    if folds.share > 0.01:
        example = ""
        if folds.pair is not None:
            example = (
                f" (particles {folds.pair[0]} and {folds.pair[1]} are {folds.apart:.1f} sd of z "
                f"apart, and their images {folds.differ:.2g} sd of the noise)"
            )
        said["collisions"] = (
            f"{100 * folds.share:.0f} % of particles have a double, another z with the same "
            f"volume{example}: the decoder cannot be inverted there"
        )
    if not said.keys() & {"dead", "redundant", "collisions"}:
        said["invertible"] = (
            "every latent changes the images in its own way, and no two conformations give the "
            "same volume: the decoder can be inverted where the particles are"
        )
    if len(live) > 1 and not numbers["redundant"]:
        if numbers["ima"] < TANGLED:
            said["orthogonal"] = (
                f"motions at right angles (IMA contrast {numbers['ima']:.2f} nats), as no known "
                "counterexample has them, though no theorem says that this is enough"
            )
        else:
            said["oblique"] = (
                f"motions overlap (IMA contrast {numbers['ima']:.2f} nats), so axes may be mixed"
            )
        if parts.anchored[live].all():
            said["anchored"] = (
                f"every latent moves {parts.what} that each other one leaves alone: sparse enough "
                "to tell axes apart, if this is the sparsest decoder"
            )
        else:
            dense = _named(live[~parts.anchored[live]], "moves", "move")
            said["dense"] = (
                f"{dense} little that another does not move too: sparsity does not tell axes apart"
            )
    return said


def _named(latents: np.ndarray, one: str = "", many: str = "") -> str:
    """Latents by name, with the verb that goes with so many."""
    *names, last = (f"z{k + 1}" for k in latents)
    told = f"{', '.join(names)} and {last}" if names else last
    return f"{told} {many if names else one}".rstrip()


def _together(clauses: list[dict[str, str]], seeds: tuple[int, ...]) -> str:
    """What several seeds have in common first, and of each kind the first seed's words."""
    shared, some, count = [], [], len(clauses)
    for kind in dict.fromkeys(kind for c in clauses for kind in c):
        told = {seed: c[kind] for seed, c in zip(seeds, clauses, strict=True) if kind in c}
        first, words = next(iter(told.items()))
        words += "" if len(set(told.values())) == 1 else f" [seed {first}]"
        if len(told) == count:
            shared.append(words)
        else:
            some.append(f"in {len(told)} of {count} seeds {words}")
    return "; ".join([f"in all {count} seeds " + "; ".join(shared)] * bool(shared) + some)
