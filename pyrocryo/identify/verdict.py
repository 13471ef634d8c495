"""The verdict on a fit, before anyone looks at an axis."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from pyrocryo.context import wanted
from pyrocryo.errors import InputError
from pyrocryo.identify.check_prior import check_prior
from pyrocryo.identify.consistency import FEWEST, consistency
from pyrocryo.identify.frame import frame
from pyrocryo.identify.increments import SPARSE, Increments, increments, inferred
from pyrocryo.identify.jacobian import jacobian
from pyrocryo.identify.plain import plain
from pyrocryo.identify.power import BLIND, turn_of
from pyrocryo.identify.prior_check import PriorCheck
from pyrocryo.identify.sentence import objection, sentence
from pyrocryo.pair import Pair
from pyrocryo.particles import PER_IMAGE, Particles
from pyrocryo.priors import Boltzmann
from pyrocryo.svi import Fit

__all__ = ["report", "rotation_gap"]

log = logging.getLogger("pyrocryo")

DRAWS = 20_000
SEEN = 3  # seeds whose decoders are looked at
SOLID = 64  # images looked at where each is a projection of a map
MOVES = 4_000  # molecules drawn from a prior, to see whether its steps are sparse
BLUNTER = 0.25  # α by which inferred steps may differ from the prior's


def rotation_gap(pair: Pair, batch: Any, *, draws: int = DRAWS, seed: int = 0) -> float:
    r"""Nats a particle that turning `z` by 45° costs under the prior; the cheapest turn counts.

    .. math:: \min_{i < j} E_{p(z | c)} [\ln p(z | c) - \ln p(S R_{ij}(45°) S^{-1} z | c)]

    over the planes of two components, with `S` = 1 and with `S` the standard deviations pooled
    over contexts (rotations of whitened `z`), from samples and ``log_prob`` alone, averaged over
    the contexts in ``batch``. 0 means that the prior cannot see such a turn, so no axis of `z` has
    a meaning of its own. More than 0 is necessary for identified axes, not sufficient: it says
    nothing of curved maps.

    Args:
        pair: Whose prior it is.
        batch: Particles, for their contexts.
        draws: Samples of `z` in all.
        seed: Of the samples.
    """
    pair = copy.deepcopy(pair).cpu()  # where every prior can be sampled
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        prior = pair.prior_of(pair.moved(batch))
        count = max(1, math.ceil(draws / max(1, prior.batch_shape.numel())))
        z = prior.sample((count,))
        here = prior.log_prob(z)
        pooled = z.flatten(0, -2).std(dim=0)
        gaps = [
            (here - prior.log_prob(turn_of(45.0, i, j, scale)(z))).mean().item()
            for scale in (torch.ones_like(pooled), pooled)
            for i, j in itertools.combinations(range(pair.dim), 2)
        ]
    return min(gaps, default=math.inf)


def report(fit: Fit, post: Any, particles: Particles | None = None) -> dict[str, Any]:
    """Verdicts on prior, decoder and seeds, the numbers behind them, and one sentence.

    Args:
        fit: A fit.
        post: Its posterior over some particles.
        particles: What to look at the decoder with; without them it is not looked at.

    Returns:
        ``prior`` (name, ``rotation_gap_nats``, ``sees_rotations``, ``check``:
        :meth:`PriorCheck.as_dict` in the contexts of ``fit.example``, None where the prior cannot
        be asked; ``profiles``: of a Boltzmann law, wells and barriers at the highest temperature,
        in words, a row for each of the first seeds, else None), ``decoder`` (:class:`Jacobian` of
        the first seeds) and ``frame`` (:class:`PoseFrame`), both None without particles, or with
        too few, and ``frame`` where poses are known; ``seeds`` (the numbers of
        :class:`Consistency`, or None for one seed or too few particles), ``increments`` and
        ``sentence``.
        ``increments`` is None but for particles with frames, and else has, for the
        steps from frame to frame, ``kurtosis``, ``kurtosis_se``, ``shape`` and ``shape_se`` (a row
        a seed, a number a latent; None where nothing moves), ``sentences`` (one a seed),
        ``prior_kurtosis`` and ``prior_shape`` (by latent), ``less_sparse`` (the prior's steps are
        sparse, and in most seeds the inferred ones less so) and ``contradicts_prior`` (they are
        even Gaussian within error; neither where nobody can tell).
    """
    if not isinstance(fit, Fit):
        raise InputError(f"fit: expected a Fit, got {type(fit).__name__}")
    draws = np.asarray(post["posterior"]["z"])
    frames = draws.shape[3] if draws.ndim == 5 else 1
    draws = draws.reshape(*draws.shape[:2], -1, draws.shape[-1])
    pair = fit.pairs[0]
    gap, check = rotation_gap(pair, fit.example), _checked(fit)
    enough = len(draws) > 1 and draws.shape[2] >= FEWEST
    seeds = asdict(consistency(list(draws), frames=frames)) if enough else None
    name = pair.prior_name
    moves = _moves(fit, post) if frames > 1 else None
    some = replace(fit, pairs=fit.pairs[:SEEN], seeds=fit.seeds[:SEEN])
    axes = None if pair.rotation.turns else getattr(pair.volume, "axes", None)
    return {
        "prior": {
            "name": name,
            "rotation_gap_nats": gap if math.isfinite(gap) else None,
            "sees_rotations": gap > BLIND,
            "check": None if check is None else check.as_dict(),
            "profiles": _profiles(some),
        },
        "decoder": _seen(jacobian, some, particles, most=SOLID if pair.volume.dim == 3 else None),
        "frame": _seen(frame, some, particles) if pair.pose.latent else None,
        "seeds": seeds,
        "increments": moves,
        "sentence": sentence(name, gap, check, seeds, len(draws), axes) + objection(name, moves),
    }


def _checked(fit: Fit) -> PriorCheck | None:
    """The prior at the conditions of some particles; None where it cannot be asked."""
    pair, batch = fit.pairs[0], fit.example
    values = {name: getattr(batch, name).cpu() for name in wanted(pair.prior)}
    ways = [values]
    if batch.images.dim() == 4:  # a law for each frame has conditions of its own
        flat = {n: v.flatten(0, 1) if n in PER_IMAGE else v for n, v in values.items()}
        if values.keys() <= set(PER_IMAGE):
            ways.append(flat)
    for conditions in ways:
        try:
            return check_prior(pair.prior, conditions or None, dim=pair.dim)
        except InputError as error:
            log.info("the prior is not checked: %s", error)
    return None


def _profiles(fit: Fit) -> list[list[str]] | None:
    """Wells and barriers by seed, at the highest temperature and the mean of other fields."""
    prior = fit.pairs[0].prior
    if not isinstance(prior, Boltzmann):
        return None
    tilting = prior.terms.fields if prior.terms else ()
    at = {name: getattr(fit.example, name).double().mean().item() for name in tilting}
    if "temperature" in wanted(prior):
        at["temperature"] = fit.example.temperature.max().item()
    return [[str(one) for one in pair.prior.profiles(**at)] for pair in fit.pairs]


def _seen(look: Callable[..., Any], fit: Fit, particles: Particles | None, **options: Any) -> Any:
    """What a look at the decoder finds, as JSON has it; None where there is too little to see."""
    if particles is None:
        return None
    try:
        return plain(look(fit, particles, **options))
    except InputError as error:
        log.info("%s: %s", look.__name__, error)
        return None


def _moves(fit: Fit, post: Any) -> dict[str, Any] | None:
    """The steps that each seed inferred, and those of the prior; None where they are too few."""
    try:
        seen = [inferred(post, chain=n, lags=(1,)) for n in range(len(fit.pairs))]
        own = _prior_moves(fit)
    except InputError:
        return None
    told = {
        name: [_listed(getattr(one, name)[0]) for one in seen]
        for name in ("kurtosis", "kurtosis_se", "shape", "shape_se")
    }
    sparse = bool(own.shape[0].max() < SPARSE)
    less = [_less_sparse(one, own) for one in seen]
    plain = [one.gaussian and blunt for one, blunt in zip(seen, less, strict=True)]
    return {
        **told,
        "sentences": [one.sentence for one in seen],
        "prior_kurtosis": _listed(own.kurtosis[0]),
        "prior_shape": _listed(own.shape[0]),
        "less_sparse": sparse and sum(less) > len(seen) / 2,
        "contradicts_prior": sparse and sum(plain) > len(seen) / 2,
    }


def _prior_moves(fit: Fit) -> Increments:
    """Steps of the prior, in the contexts of some of the particles."""
    pair = copy.deepcopy(fit.pairs[0]).cpu()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        batch = pair.moved(fit.example)
        prior = pair.prior_of(batch)
        z = prior.sample((math.ceil(MOVES / max(1, prior.batch_shape.numel())),))
    time = getattr(batch, "time", None) if prior.batch_shape else None
    if time is not None:
        time = time.expand(z.shape[:-1]).flatten(0, -2).numpy()
    return increments(z.flatten(0, -3).numpy(), lags=(1,), time=time)


def _less_sparse(seen: Increments, own: Increments) -> bool:
    """Whether the steps of moving components are, on average, less sparse than the prior's."""
    moving = np.isfinite(seen.shape[0])
    if not moving.any():
        return False
    error = np.sqrt(np.square(seen.shape_se[0][moving]).sum()) / moving.sum()
    return bool(seen.shape[0][moving].mean() > own.shape[0].mean() + max(3 * error, BLUNTER))


def _listed(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON has them."""
    return [float(v) if math.isfinite(v) else None for v in values]
