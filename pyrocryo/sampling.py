"""``nuts``: posteriors of a few particles by Hamiltonian Monte Carlo, beside the guide's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyrocryo import unit_vectors
from pyrocryo.agreement import apart, columns, differ
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.peaks import pair_of, rows_of
from pyrocryo.svi import Fit
from pyrocryo.to_arviz import to_arviz
from pyrocryo.whitened import Whitened

__all__ = ["Sampled", "nuts"]

AT_ONCE = 16  # particles; more would shorten the steps of all for the worst of them
GUIDE_DRAWS = 1000
MIXED, ENOUGH = 1.05, 100  # R-hat and effective draws: means are then known to .1 sd
DEEPEST = 8  # doublings of a trajectory
SCALED_FROM = 150  # of warming up: less leaves no time to find the step again for new scales


@dataclass(frozen=True)
class Sampled:
    """Posteriors of n particles by NUTS, and what the guide says of them.

    Compared are C numbers of each particle: the components of `z`, where poses are unknown the
    angles (rad) from the guide's mean, and shifts (Å), all frames.

    Attributes:
        index: `(n,)` rows in the stack.
        draws: ArviZ object; ``posterior`` has ``z``, and where they are unknown ``pose``, ``turn``
            and ``shift``.
        guide: The same of 1000 draws of the guide.
        names: `(C,)` what is compared.
        r_hat: `(n, C)` rank-normalised split R-hat (Vehtari et al. 2021).
        ess: `(n, C)` effective draws (bulk).
        off: `(n, C)` the guide's mean less NUTS's, in NUTS's standard deviations.
        ratio: `(n, C)` the guide's standard deviation over NUTS's.
        unmixed: Rows where an R-hat is above 1.05, or draws are worth fewer than 100: nothing is
            known of these.
        flagged: Other rows where a mean is off by more than .2 or a ratio is outside .8 to 1.25.
        diverging: Divergent transitions after warming up, of all chains together.
        passed: None is flagged, none unmixed, and nothing diverged.
        sentence: In words.
    """

    index: np.ndarray
    draws: Any
    guide: Any
    names: tuple[str, ...]
    r_hat: np.ndarray
    ess: np.ndarray
    off: np.ndarray
    ratio: np.ndarray
    flagged: tuple[int, ...]
    unmixed: tuple[int, ...]
    diverging: int
    passed: bool
    sentence: str


def nuts(
    fit: Fit | Pair,
    particles: Particles,
    *,
    index: Sequence[int] | None = None,
    chains: int = 4,
    draws: int = 250,
    warmup: int = 150,
    chain: int = 0,
    seed: int = 0,
) -> Sampled:
    """Samples the posterior of chosen particles under the model, everything learned frozen.

    The No-U-Turn Sampler (Hoffman & Gelman 2014; Pyro's), in coordinates in which the guide is
    round (:class:`pyrocryo.whitened.Whitened`), so that little is left to adapt; chains start
    from draws of the guide. Up to 16 particles go in one trajectory: their posteriors are
    independent of one another. Chains that start from a guide know only the peaks that it knows,
    R-hat likewise. Where rotations in space were unknown within 6.5° about each axis (a body with
    two arms, 24 pixels, SNR 1), means were within .08 standard deviations of those of 40000
    weighted draws of the guide, and standard deviations .92 to 1.06 times theirs (6 particles,
    800 draws).

    Example::

        exact = pc.nuts(fit, particles.test, index=range(20))
        print(exact.sentence)
        az.summary(exact.draws)

    Args:
        fit: A fit, or one trained pair.
        particles: Particles that it fits, whether trained on or not.
        index: Which of them, counted from 0; by default the first 20.
        chains: Chains.
        draws: Draws of each chain that are kept.
        warmup: Further ones before, to adapt the steps; from 150 on the scale of each coordinate
            as well, on top of the guide's.
        chain: Which of the fit's seeds.
        seed: Of everything drawn.

    Raises:
        InputError: If the pair does not fit the particles, or they are not there.
    """
    pair = pair_of(fit, chain)
    for name, value, least in (("chains", chains, 2), ("draws", draws, 20), ("warmup", warmup, 1)):
        if value < least:
            raise InputError(f"{name}: expected at least {least}, got {value}")
    rows = rows_of(range(min(20, len(particles))) if index is None else index, len(particles))
    pair.check(particles)
    some = particles.take(rows)
    parts = []
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        for own in some.chunks(AT_ONCE):
            batch = pair.moved(some.batch(own))
            parts.append(_sampled(pair, batch, chains, draws, warmup))
    exact, guide = (
        {name: np.concatenate([part[k][name] for part in parts], axis=2) for name in parts[0][k]}
        for k in (0, 1)
    )
    return _compared(some, exact, guide, sum(part[2] for part in parts))


def _sampled(
    pair: Pair, batch: Any, chains: int, draws: int, warmup: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Draws by NUTS `(chains, draws, B, ...)`, those of the guide, and divergent transitions."""
    round_ = Whitened(pair, batch, GUIDE_DRAWS)
    kept, diverging = [], 0
    for n in range(chains):
        start = round_.white[n * (GUIDE_DRAWS // chains)]
        found, bad = _chain(lambda at: round_.energy(at["white"]).sum(), start, draws, warmup)
        diverging += bad
        kept.append(round_.values(found))
    exact = {name: torch.stack([one[name] for one in kept]) for name in kept[0]}
    if "pose" in exact:
        exact["pose"] = torch.nn.functional.normalize(exact["pose"], dim=-1)
    told = {name: value.unsqueeze(0) for name, value in round_.told.items()}
    return _numbers(pair, exact, round_.centre), _numbers(pair, told, round_.centre), diverging


def _chain(
    potential: Callable[[dict[str, Tensor]], Tensor], start: Tensor, draws: int, warmup: int
) -> tuple[Tensor, int]:
    """Draws `(draws, B, n)`, and how many transitions diverged."""
    kernel = NUTS(
        potential_fn=potential,
        step_size=0.5,
        max_tree_depth=DEEPEST,
        adapt_mass_matrix=warmup >= SCALED_FROM,
    )
    sampler = MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=warmup,
        initial_params={"white": start},
        disable_progbar=True,
    )
    with pyro.validation_enabled(False):
        sampler.run()
    found = sampler.get_samples()["white"].detach()
    return found, len(sampler.diagnostics()["divergences"]["chain 0"])


def _numbers(pair: Pair, found: dict[str, Tensor], centre: Tensor | None) -> dict[str, np.ndarray]:
    """As an ArviZ object holds them; turns (rad) are away from the centre."""
    with torch.no_grad():
        if centre is not None:
            pose = unit_vectors.one_side(found["pose"], centre)
            turn = unit_vectors.angles(centre, pose)
            found = found | {"turn": turn, "pose": pair.framed(pose, found["z"])}
    return {name: value.double().cpu().numpy() for name, value in found.items()}


def _compared(
    particles: Particles,
    exact: dict[str, np.ndarray],
    guide: dict[str, np.ndarray],
    diverging: int,
) -> Sampled:
    import arviz as az

    frame = [] if particles.frames is None else ["frame"]
    last = {"z": "latent", "pose": "direction", "turn": "turn_axis", "shift": "plane_axis"}
    dims = {name: ["particle", *frame, axis] for name, axis in last.items()}
    coords = {"particle": particles.index}
    trees = [to_arviz({"posterior": part}, dims=dims, coords=coords) for part in (exact, guide)]
    sites = [name for name in ("z", "turn", "shift") if name in exact]
    r_hat, ess = (
        np.concatenate([np.asarray(told[name]).reshape(len(particles), -1) for name in sites], 1)
        for told in (az.rhat(trees[0], var_names=sites), az.ess(trees[0], var_names=sites))
    )

    def numbers(part: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
        found = {name: part[name].reshape(-1, *part[name].shape[2:]) for name in sites}
        if "turn" in found:
            found = {"z": found.pop("z"), "pose": found.pop("turn"), **found}
        return columns(found, frames=bool(frame))

    (names, sure), (_, said) = numbers(exact), numbers(guide)
    off, ratio = apart(said, sure)
    known = (r_hat <= MIXED).all(axis=1) & (ess >= ENOUGH).all(axis=1)
    bad = differ(off, ratio) & known
    flagged, unmixed = (tuple(map(int, particles.index[rows])) for rows in (bad, ~known))
    sentence = _sentence(off, ratio, known, flagged, unmixed, diverging)
    passed = not flagged and not unmixed and not diverging
    return Sampled(
        particles.index, *trees, tuple(names), r_hat, ess, off, ratio, flagged, unmixed,
        diverging, passed, sentence,
    )  # fmt: skip


def _sentence(
    off: np.ndarray,
    ratio: np.ndarray,
    known: np.ndarray,
    flagged: tuple[int, ...],
    unmixed: tuple[int, ...],
    diverging: int,
) -> str:
    said = "Nothing is known"
    if known.any():
        off, ratio = np.abs(off[known]), ratio[known]
        said = (
            f"NUTS and the guide agree on {len(off) - len(flagged)} of {len(off)} particles: "
            f"means {np.median(off):.2f} standard deviations apart (median; at most "
            f"{off.max():.2f}), standard deviations {np.median(ratio):.2f} times NUTS's "
            f"({ratio.min():.2f} to {ratio.max():.2f})"
        )
    said += f"; not on {_listed(flagged)}" if flagged else ""
    if unmixed:
        said += (
            f"; of {_listed(unmixed)} chains disagree (R-hat above {MIXED}) or are worth fewer "
            f"than {ENOUGH} draws: sample longer"
        )
    said += f"; {diverging} transitions diverged" if diverging else ""
    return f"{said}."


def _listed(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows))
