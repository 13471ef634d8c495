"""What would make a prior identify more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.identify.judge import Evidence, theorem
from pyrocryo.identify.laws import Laws
from pyrocryo.identify.power import BLIND
from pyrocryo.identify.prior_check import Gap, Verdict
from pyrocryo.identify.ranks import Ranks, ranks
from pyrocryo.identify.symmetry import scales

__all__ = ["advise"]

DRAWS = 300
WIDER = 0.25  # of the range of a field, to both sides
SAME = 1e-9
FAINT = 1e4  # condition number from which data will hardly tell


def advise(
    prior: Any,
    values: Mapping[str, Tensor],
    found: Evidence,
    verdict: Verdict,
    costs: tuple[Gap, ...] = (),
    trainable: bool = False,
) -> tuple[str, ...]:
    """What would help, a sentence each.

    Args:
        prior: In double precision.
        values: Its conditions.
        found: What was found of it at these.
        verdict: On that.
        costs: What turns cost.
        trainable: Whether the prior is fitted, so that only its family matters.
    """
    if found.dim == 1:
        return ()
    if trainable and verdict.learned.free.axes:
        return (
            "A learned prior has axes wherever it is fitted, also where the true law has none: "
            "compare seeds, and check the law that you believe in as well.",
        )
    if verdict.known.free.axes and verdict.learned.free.axes:
        return _margins(found, costs)
    said = []
    if found.transitions is not None:
        if not found.group.size:
            linear = "A linear decoder" if verdict.learned.linear.axes else "A known basis"
            return (f"{linear} suffices; so do steps that are not Gaussian.",)
        return (
            "Steps that are not Gaussian (Laplace, Student-t, jumps), or relaxation rates that "
            "differ between components.",
        )
    if values:
        said.append(_more(prior, values, found))
    else:
        said.append(
            "A condition (temperature, ligand, ...) that changes every component, at "
            f"{found.dim + 1} values or more, in proportions that differ from one to the next."
        )
    if found.ranks.each and min(found.ranks.each) == 0 and values and found.ranks.j:
        still = ", ".join(str(k + 1) for k, d in enumerate(found.ranks.each) if d == 0)
        said.append(f"A condition that also changes component {still}.")
    if values and found.ranks.j < found.dim:
        said.append(
            "A second knob that tilts components differently (ligand, pH, force), beside "
            f"{' and '.join(values)}."
        )
    if verdict.learned.linear.axes:
        said.append("A decoder that is linear in z (modes with unknown mixing) suffices.")
    else:
        said.append("A decoder whose basis is given (modes, rigid bodies).")
    said.append("Kinetics: frames in time, with steps that are not Gaussian.")
    return tuple(each for each in said if each)


def _margins(found: Evidence, costs: tuple[Gap, ...]) -> tuple[str, ...]:
    """How little it may be that a prior identifies by."""
    said = []
    least = min((gap.cheapest for gap in costs), default=math.inf)
    if least < BLIND:
        said.append(
            f"A turn by 45° costs no more than {BLIND:g} nats a particle: hardly any number of "
            "particles will tell."
        )
    if found.ranks is None or not found.ranks.j:
        return tuple(said)
    if found.ranks.where("j") and found.ranks.j == found.dim:
        said.append(
            f"At {100 * (1 - found.ranks.share['j']):.0f} % of z the contrasts vanish to double "
            "precision: there data cannot tell."
        )
    if found.ranks.condition(found.dim)["j"] > FAINT and found.ranks.j == found.dim:
        said.append(
            f"Contrasts are nearly alike (condition number "
            f"{found.ranks.condition(found.dim)['j']:.1g}): conditions further apart would help."
        )
    return tuple(said)


def _more(prior: Any, values: Mapping[str, Tensor], found: Evidence) -> str:
    """Whether other values of the same fields would do, and how many."""
    names = " and ".join(values)
    most = 2 * found.dim + 1
    each = _with(prior, values, most)
    if each is None:
        return (
            f"More conditions (of {found.conditions} now; at least {found.dim + 1} are needed) "
            "that change components in other proportions."
        )
    ranks_then = each(most)
    if ranks_then is None:
        return ""
    said = theorem(ranks_then, found.dim)
    better = {"permutation": 2, "linear": 1}
    before = theorem(found.ranks, found.dim)
    if said and better[said[0]] > (better[before[0]] if before else 0):
        for extra in range(1, most + 1):
            then = each(extra)
            if then and theorem(then, found.dim) and theorem(then, found.dim)[0] == said[0]:
                return f"{extra} more value{'s' * (extra > 1)} of {names}: then {said[1]}."
    count = ranks_then.f if ranks_then.f is not None else ranks_then.j
    shared = "one function that components share" if count == 1 else f"{count} functions in all"
    full = count < found.conditions + most - 1  # there are no more to be found
    if ranks_then.j > found.ranks.j or not full:
        told = f"More values of {names}: with {most} more, rank J is {ranks_then.j} of {found.dim}"
        return f"{told}{f', and no more ever, as they enter through {shared}' * full}."
    return (
        f"More values of {names} never help: they enter through {shared}, however many are "
        "measured."
    )


def _with(prior: Any, values: Mapping[str, Tensor], most: int) -> Any:
    """Ranks as a function of how many more conditions there are; None if there can be none."""
    if any(value.dim() != 1 for value in values.values()):
        return None
    new = {}
    for name, value in values.items():
        low, high = value.min().item(), value.max().item()
        margin = WIDER * ((high - low) or abs(low) or 1.0)
        low = max(low - margin, low / 2) if low > 0 else low - margin
        new[name] = low + (high + margin - low) * torch.rand(most)

    def wider(extra: int) -> dict[str, Tensor]:
        return {name: torch.cat([v.double(), new[name][:extra]]) for name, v in values.items()}

    try:
        laws = Laws(prior, wider(most))
        z = laws.mixture(DRAWS)
        slope = laws.gradients(z)
    except (InputError, IndexError, RuntimeError, ValueError):
        return None
    count = len(next(iter(values.values())))
    apart = (slope[:, count:, None] - slope[:, None, :count]).abs().amax((0, -1)).amin(-1)
    if (apart < SAME * slope.abs().max()).all():  # a table, which holds no other rows
        return None

    def at(extra: int) -> Ranks | None:
        some = Laws(prior, wider(extra))
        z = some.mixture(DRAWS)
        return ranks(some, z, scales(z), *some.derivatives(z))

    return at
