r"""The constructive counterexample: two models, one likelihood, different `z`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.context import called, wanted
from pyrocryo.diagnose.common import batches
from pyrocryo.errors import InputError
from pyrocryo.identify.automorphisms import Automorphism, automorphism
from pyrocryo.identify.flows import HamiltonianFlow, Rotation, Twist
from pyrocryo.identify.laws import values_of
from pyrocryo.identify.rival import Rival, rival_of, sampled_elbo
from pyrocryo.metrics.mcc import matched
from pyrocryo.pair import Pair
from pyrocryo.particles import PER_IMAGE, Particles
from pyrocryo.svi import Fit

__all__ = ["Falsified", "falsify"]

MOST = 600  # particles that likelihoods are compared on
MANY = 10  # values of the context from which on a few stand for all
FEW = 5
DRAWS = 2  # of the latents of each particle
FEWEST = 10  # particles that an MCC is read from


@dataclass(frozen=True)
class Falsified:
    r"""A map `h` that no condition can see, and what it does to a trained pair.

    Attributes:
        prior: What the prior is called.
        automorphism: `h`, how well it leaves ln p as it is, and what was tried in vain.
        rival: The trained pair with decoder :math:`v(h^{-1}(z))` and its guide pushed through
            `h`, a :class:`pyrocryo.Pair`; None without a trained pair.
        count: Particles at each condition, `(L,)`; those between conditions count at the nearest.
        elbo: Held-out ELBO of the pair at each condition, `(L,)` in nats a particle.
        elbo_se: Its standard error.
        elbo_rival: That of the rival, at the same draws.
        difference_se: Standard error of ``elbo_rival - elbo``.
        mcc_rival: MCC of posterior means of the pair and its rival, over all K, `(L,)`.
        mcc_truth: MCC of the pair with the truth, if the particles carry it, over all conditions.
        mcc_truth_rival: That of the rival.
    """

    prior: str
    automorphism: Automorphism
    rival: Rival | None = None
    count: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    elbo: np.ndarray = field(default_factory=lambda: np.zeros(0))
    elbo_se: np.ndarray = field(default_factory=lambda: np.zeros(0))
    elbo_rival: np.ndarray = field(default_factory=lambda: np.zeros(0))
    difference_se: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mcc_rival: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mcc_truth: float | None = None
    mcc_truth_rival: float | None = None

    @property
    def found(self) -> bool:
        """Whether there is a counterexample."""
        return self.automorphism.found

    @property
    def map(self) -> Rotation | HamiltonianFlow | Twist | None:
        """`h`."""
        return self.automorphism.map

    @property
    def kind(self) -> str | None:
        """What kind of map: "rotation", "flow", "twist", or None."""
        return self.automorphism.kind

    @property
    def plane(self) -> tuple[int, ...]:
        """The components that `h` mixes, from 0 (words count from 1): two, seldom more."""
        return self.automorphism.components

    @property
    def conditions(self) -> tuple[str, ...]:
        """What each condition is called."""
        return self.automorphism.conditions

    @property
    def max_change(self) -> np.ndarray:
        """Most that `h` changes ln p, by condition."""
        return self.automorphism.max_change

    @property
    def rms_change(self) -> np.ndarray:
        """Root mean square by which `h` changes ln p, by condition."""
        return self.automorphism.rms_change

    @property
    def mcc(self) -> np.ndarray:
        """MCC of `z` and `h(z)` over the components it mixes, by condition."""
        return self.automorphism.mcc

    @property
    def changed(self) -> str:
        """What `h` changes, and what not, in a sentence."""
        one = self.automorphism
        if not one.found:
            tried = _grouped(one.tried)
            return f"No map found that leaves {self.prior} as it is; tried {tried}."
        what = {
            "rotation": "a rotation of whitened z",
            "flow": "the flow of the energy",
            "twist": "a twist along the level curves of ln p",
        }[one.kind]
        count = len(one.conditions)
        where = "everywhere" if count == 1 else f"at all {count} conditions"
        mixed = " and ".join(str(k + 1) for k in one.components)
        told = (
            f"{what[0].upper()}{what[1:]} mixes components {mixed} (MCC with themselves "
            f"{one.mcc[one.warmest]:.2f}"
            f"{f' at {name}' if (name := one.conditions[one.warmest]) else ''}) and leaves "
            f"{self.prior} as it is {where} (ln p changes by at most {one.max_change.max():.1g})."
        )
        if self.rival is None or not np.isfinite(self.elbo_se).any():
            return told
        change = np.abs(self.elbo_rival - self.elbo)
        worst = int(np.nanargmax(np.where(np.isfinite(self.elbo_se), change, np.nan)))
        return (
            f"{told} The trained pair with this map in it calls every molecule something else "
            f"(MCC {np.nanmin(self.mcc_rival):.2f} with what it said before), yet its held-out "
            f"ELBO changes by {change[worst]:.1g} nats a particle at most, against a standard "
            f"error of {self.elbo_se[worst]:.2g}."
        )

    def __str__(self) -> str:
        """The sentence, and a line for each condition."""
        lines = [self.changed]
        for row in range(len(self.conditions) if self.found else 0):
            line = (
                f"  {self.conditions[row] or 'always'}: ln p changes by {self.rms_change[row]:.1e}"
                f" (rms), {self.max_change[row]:.1e} (most); MCC {self.mcc[row]:.3f}"
            )
            if self.rival is not None:
                line += (
                    f"; ELBO {self.elbo[row]:.3f} ± {self.elbo_se[row]:.3f}, rival "
                    f"{self.elbo_rival[row]:.3f}; MCC of z {self.mcc_rival[row]:.3f}"
                )
            lines.append(line)
        if self.mcc_truth is not None:
            lines.append(
                f"  MCC with the truth: {self.mcc_truth:.3f}, rival {self.mcc_truth_rival:.3f}"
            )
        return "\n".join(lines)


def _grouped(tried: tuple[str, ...]) -> str:
    """The attempts, those that failed alike together."""
    reasons: dict[str, list[str]] = {}
    for one in tried:
        what, _, why = one.partition(": ")
        reasons.setdefault(why, []).append(what)
    return "; ".join(
        f"{what[0]}{' and others' if len(what) > 1 else ''}{': ' if why else ''}{why}"
        for why, what in reasons.items()
    )


def falsify(
    fit: Fit | Pair | Any,
    particles: Particles | None = None,
    conditions: Any = None,
    *,
    seed: int = 0,
) -> Falsified:
    r"""Looks for two models with one likelihood at every condition, and different `z`.

    Given a prior, for a map `h` that leaves it as it is at all conditions
    (:func:`pyrocryo.identify.automorphism`). Given a trained pair and particles, also for what
    `h` does there: a rival with decoder :math:`v(h^{-1}(z))` and the guide pushed through `h`,
    whose ELBO on held-out particles is measured beside the pair's, at the same draws. Priors that
    are learned are taken with the values that they have now, and may have more freedom than that.

    Example::

        print(pc.identify.falsify(pc.priors.Boltzmann(stiffness=(300, 75)), conditions=[180, 300]))

    Args:
        fit: A fit (its first seed), a pair, or what :class:`pyrocryo.Pair` takes as a prior.
        particles: Of a trained pair; of those held out, if any are, up to 600 are looked at.
        conditions: As of :func:`pyrocryo.identify.check_prior`; by default those of the
            particles (where there are more than ten, five of them).
        seed: Of points and draws.

    Raises:
        InputError: If conditions or particles do not go with prior or pair.
    """
    if not isinstance(fit, (Fit, Pair)):
        if particles is not None:
            raise InputError("particles: a prior alone has no use for them; give its conditions")
        return Falsified(called(fit), automorphism(fit, conditions, seed=seed))
    pair = copy.deepcopy(fit.pairs[0] if isinstance(fit, Fit) else fit).cpu().eval()
    pair.requires_grad_(False)
    if particles is not None:
        pair.check(particles)
        particles = particles.test if particles.has_test else particles
        held = np.random.default_rng(seed).permutation(len(particles))[:MOST]
        particles = particles.take(np.sort(held))
    elif conditions is None and wanted(pair.prior):
        raise InputError(
            f"conditions: the prior {pair.prior_name} wants {', '.join(wanted(pair.prior))}; "
            "give conditions, or particles to take them from"
        )
    if conditions is None and wanted(pair.prior):
        conditions = _conditions(pair, particles)
    conditions = values_of(pair.prior, conditions)
    found = automorphism(pair.prior, conditions, seed=seed)
    if particles is None or not found.found:
        return Falsified(pair.prior_name, found)
    return _through(pair, particles, conditions, found, seed)


def _context(pair: Pair, particles: Particles) -> dict[str, np.ndarray]:
    """What the prior wants of each particle."""
    context = {name: np.asarray(particles.fields[name]) for name in wanted(pair.prior)}
    batch = pair.moved(particles.batch(np.arange(1)))
    with torch.no_grad():
        split = particles.frames is not None and len(_law(pair, batch).event_shape) == 1
    if split:  # one law for each frame: the first stands for all
        context = {n: v[:, 0] if n in PER_IMAGE else v for n, v in context.items()}
    return context


def _law(pair: Pair, batch: Any) -> Any:
    return pair._prior({name: getattr(batch, name) for name in wanted(pair.prior)})


def _conditions(pair: Pair, particles: Particles) -> dict[str, np.ndarray]:
    """All values of the context, or a few that stand for many."""
    context = _context(pair, particles)
    table = _table(context)
    _, rows = np.unique(table, axis=0, return_index=True)
    if len(rows) > MANY:
        order = np.lexsort(table.T[::-1])
        rows = order[np.linspace(0, len(order) - 1, 2 * FEW + 1).round().astype(int)[1::2]]
    return {name: value[rows] for name, value in context.items()}


def _table(context: Mapping[str, Any]) -> np.ndarray:
    """A row of numbers for each particle or condition."""
    columns = [np.asarray(v, dtype=np.float64).reshape(len(v), -1) for v in context.values()]
    return np.concatenate(columns, axis=1)


def _nearest(pair: Pair, particles: Particles, conditions: Mapping[str, Tensor]) -> np.ndarray:
    """The condition of each particle, or the one nearest to it, `(N,)`."""
    fields = wanted(pair.prior)
    if not fields:
        return np.zeros(len(particles), dtype=int)
    table = _table({name: conditions[name] for name in fields})
    own = _table(_context(pair, particles))
    unit = np.where(own.std(axis=0) > 0, own.std(axis=0), 1.0)
    away = np.square((own[:, None] - table[None]) / unit).sum(axis=-1)
    return away.argmin(axis=1)


def _through(
    pair: Pair,
    particles: Particles,
    conditions: Mapping[str, Tensor],
    found: Automorphism,
    seed: int,
) -> Falsified:
    """Both pairs on the same particles."""
    rival = rival_of(pair, found.map)
    of = _nearest(pair, particles, conditions)
    told = [_told(one, particles, seed) for one in (pair, rival)]
    (elbo, z), (elbo_rival, z_rival) = told
    rows = [of == row for row in range(len(found.conditions))]

    def each(values: np.ndarray, error: bool = False) -> np.ndarray:
        parts = [values[row] for row in rows]
        if error:
            return np.array([_error(part) for part in parts])
        return np.array([part.mean() if len(part) else np.nan for part in parts])

    truth = particles.fields.get("truth")
    with_truth = {}
    if truth is not None and truth.shape[-1] == z.shape[-1]:
        truth = truth.reshape(-1, truth.shape[-1])
        flat = [one.reshape(-1, one.shape[-1]) for one in (z, z_rival)]
        with_truth["mcc_truth"], with_truth["mcc_truth_rival"] = (
            matched(truth, one)[0] for one in flat
        )
    return Falsified(
        pair.prior_name,
        found,
        rival,
        np.array([row.sum() for row in rows]),
        each(elbo),
        each(elbo, error=True),
        each(elbo_rival),
        each(elbo_rival - elbo, error=True),
        np.array([_mcc(z[row], z_rival[row]) for row in rows]),
        **with_truth,
    )


def _told(pair: Pair, particles: Particles, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """ELBO `(N,)` and posterior means `(N, [T,] K)` of all particles."""
    elbo, means = [], []
    for n, batch in enumerate(batches(pair, particles)):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed + n)
            drawn = torch.stack([sampled_elbo(pair, batch) for _ in range(DRAWS)])
            elbo.append(drawn.double().mean(0).numpy())
            direction = pair.pose_of(batch).mean if pair.pose.latent else None
            means.append(pair.posterior_of(batch, direction).mean.numpy())
    return np.concatenate(elbo), np.concatenate(means)


def _error(values: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def _mcc(z: np.ndarray, other: np.ndarray) -> float:
    if len(z) < FEWEST:
        return np.nan
    return float(matched(z.reshape(-1, z.shape[-1]), other.reshape(-1, z.shape[-1]))[0])
