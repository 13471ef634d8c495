"""The verdict on a fit, before anyone looks at an axis."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pyrocryo.errors import InputError
from pyrocryo.identify.consistency import FEWEST, consistency
from pyrocryo.identify.increments import SPARSE, Increments, increments, inferred
from pyrocryo.identify.power import BLIND, turn_of
from pyrocryo.pair import Pair
from pyrocryo.svi import Fit

__all__ = ["report", "rotation_gap"]

DRAWS = 20_000
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


def report(fit: Fit, post: Any) -> dict[str, Any]:
    """Verdicts on prior and seeds, the numbers behind them, and one sentence.

    Args:
        fit: A fit.
        post: Its posterior over some particles.

    Returns:
        ``prior`` (name, ``rotation_gap_nats``, ``sees_rotations``), ``seeds`` (the numbers of
        :class:`Consistency`, or None for one seed or too few particles), ``increments`` and
        ``sentence``. ``increments`` is None but for particles with frames, and else has, for the
        steps from frame to frame, ``kurtosis``, ``kurtosis_se``, ``shape`` and ``shape_se`` (a row
        a seed, a number a latent; None where nothing moves), ``readings`` (one a seed),
        ``prior_kurtosis`` and ``prior_shape`` (by latent), ``less_sparse`` (the prior's steps are
        sparse, and in most seeds the inferred ones less so) and ``contradicts_prior`` (they are
        even Gaussian within error; neither where nobody can tell).
    """
    z = np.asarray(post["posterior"]["z"]).mean(axis=1)
    frames = z.shape[2] if z.ndim == 4 else 1
    z = z.reshape(len(z), -1, z.shape[-1])
    pair = fit.pairs[0]
    gap = rotation_gap(pair, fit.example)
    enough = len(z) > 1 and z.shape[1] >= FEWEST
    seeds = asdict(consistency(list(z), frames=frames)) if enough else None
    name = pair.prior_name
    moves = _moves(fit, post) if frames > 1 else None
    return {
        "prior": {
            "name": name,
            "rotation_gap_nats": gap if math.isfinite(gap) else None,
            "sees_rotations": gap > BLIND,
        },
        "seeds": seeds,
        "increments": moves,
        "sentence": _sentence(name, gap, seeds, len(z)) + _objection(name, moves),
    }


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
        "readings": [one.reading for one in seen],
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


def _objection(name: str, moves: dict[str, Any] | None) -> str:
    if moves is None or not moves["less_sparse"]:
        return ""
    if moves["contradicts_prior"]:
        return (
            f" The steps inferred are Gaussian within error, not sparse as {name} would have "
            "them: if axes are aligned, sparse steps did not do it."
        )
    known = [v for row in moves["shape"] for v in row if v is not None]
    return (
        f" The steps inferred are less sparse than {name} would have them (α = "
        f"{np.mean(known):.2f} against {np.mean(moves['prior_shape']):.2f}; Gaussian: 2): if axes "
        "are aligned, it may not be sparse steps that did it."
    )


def _sentence(name: str, gap: float, seeds: dict[str, Any] | None, n: int) -> str:
    if not math.isfinite(gap):
        tail = "" if seeds is None else f"; in {n} seeds {seeds['reading']}"
        return f"There is one latent, so no rotation of axes to worry about{tail}."
    if gap <= BLIND:
        tail = "" if seeds is None else f" ({n} seeds: {seeds['reading']})"
        return (
            f"Not identified: the prior {name} cannot see rotations of z (or of whitened z), so "
            f"no axis has a meaning of its own, however well z describes the particles{tail}."
        )
    costs = f"the prior {name} charges {gap:.2g} nats a particle for a turn by 45°"
    if seeds is None:
        few = "one seed" if n == 1 else "so few particles"
        return f"Undecided: {costs}, but with {few} nobody can tell whether training used it."
    if seeds["agree"]:
        return (
            f"Consistent with identified axes: {costs}, and in {n} seeds {seeds['reading']}. Each "
            "axis can be read as one motion; agreement is necessary, not a proof."
        )
    return f"Not identified by this fit: {costs}, but in {n} seeds {seeds['reading']}."
