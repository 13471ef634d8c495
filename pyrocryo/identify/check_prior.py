"""Before any data: what a prior can identify, from ``log_prob``, ``sample`` and autograd."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.identify.advice import advise
from pyrocryo.identify.fibres import fibres
from pyrocryo.identify.judge import Evidence, described, judge
from pyrocryo.identify.laws import Laws, in_double, made_double, values_of
from pyrocryo.identify.prior_check import PriorCheck
from pyrocryo.identify.ranks import corners, ranks
from pyrocryo.identify.symmetry import gaps, group, permutations, scales
from pyrocryo.identify.transitions import transitions

__all__ = ["check_prior"]

FEWEST = 100
TURNED = 20_000  # draws that turns and exchanges are judged from
DISTURBED = 0.3  # by which parameters are moved, for a member of the family
FAMILY = 500  # draws for its ranks
AT_ONCE = 200_000  # draws times conditions


def check_prior(
    prior: Any,
    conditions: Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    *,
    dim: int | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> PriorCheck:
    r"""Says what a prior can identify, and up to which symmetry.

    With conditions :math:`u_0, ..., u_M` and the contrasts :math:`S_l(z) = \ln p(z | u_l) - \ln
    p(z | u_0)`: maps that leave the prior as it is preserve every :math:`S_l`, so their gradients
    J must have rank K; as functions of `z` (F) they must have the rank that iVAE asks for
    (Khemakhem et al. 2020), :math:`\sum_k d_k` with every :math:`d_k \ge 1`; or, with second
    derivatives, W the rank 2 K (Hyvärinen, Sasaki & Turner 2019). Where J has rank K - 1, the
    level curves of the contrasts are followed; linear symmetries are the null space of a linear
    system; of frames, the rank test of PCL (Hyvärinen & Morioka 2017) and the cost of turns.
    Everything is computed in double precision, of the law as it is given; a prior with
    parameters is also looked at with random values of these, as the family it is.

    These are statements about the prior, with perfect data and any network. They do not say that
    training finds the axes, nor how many particles it takes (:func:`pyrocryo.identify.power`);
    see `condition_numbers` and `gaps` for how close to failing a prior is.

    Args:
        prior: What :class:`pyrocryo.Pair` takes: a Pyro distribution with event shape `(K,)` or
            `(T, K)`, or a function or module that returns one.
        conditions: Values by name of the fields that the prior wants, all of length L (row l of
            all lists is condition l); the values alone where it wants one field; None for none.
        dim: Expected size K of `z`.
        samples: Draws of `z`, from all conditions together, at least 100.
        seed: Of all draws.

    Returns:
        Ranks, symmetries, gaps, verdicts and advice; prints as a table.

    Raises:
        InputError: If ``prior`` is none, ``conditions`` are not what it wants, or its `log_prob`
            cannot be differentiated or is not finite at its own samples.
    """
    if samples < FEWEST:
        raise InputError(f"samples: expected at least {FEWEST}, got {samples}")
    values = values_of(prior, conditions)
    trainable = isinstance(prior, nn.Module) and any(p.requires_grad for p in prior.parameters())
    with in_double(seed):
        exact = made_double(prior)
        laws = Laws(exact, values, dim)
        turned = laws.sample(math.ceil(TURNED / laws.count))
        found = _evidence(laws, samples, turned)
        family = _family(exact, prior, values) if trainable else None
        costs = gaps(laws, turned)
        verdict = judge(found, family)
        advice = advise(exact, values, found, verdict, costs, trainable)
    own, steps = found.ranks, found.transitions
    member = family and family.ranks
    return PriorCheck(
        name=laws.name,
        dim=laws.dim,
        conditions=laws.count,
        fields=tuple(values),
        temporal=steps is not None,
        trainable=trainable,
        factorises=steps.independent if steps else own.independent,
        rank_j=own and own.j,
        rank_f=own and own.f,
        ranks_f=own and own.each,
        rank_w=own and own.w,
        family=member and {"j": member.j, "f": member.f, "w": member.w},
        singular_values=own.singular if own else {"pcl": np.array(steps.ratio)},
        condition_numbers=own.condition(laws.dim) if own else {},
        monotone=own.monotone if own else (None,) * laws.dim,
        gaps=costs,
        rotations=found.group.planes,
        group=found.group.size,
        permutations=found.permutations,
        fibres=found.fibres,
        symmetry=described(found, verdict),
        verdict=verdict,
        advice=advice,
    )


def _evidence(laws: Laws, samples: int, turned: Tensor | None = None) -> Evidence:
    """All that is measured of a prior; signs and exchanges only with draws to judge them from."""
    if laws.event[0] < 2 and len(laws.event) == 2:
        raise InputError(
            f"prior: {laws.name} has event shape {laws.event}: of one frame, expected (K,)"
        )
    z = laws.mixture(min(samples, AT_ONCE // laws.count))
    laws.checked(z[:500])
    scale = scales(z)
    common = {
        "dim": laws.dim,
        "conditions": laws.count,
        "group": group(laws, z, scale),
        "permutations": () if turned is None else permutations(laws, turned, scales(turned)),
    }
    if len(laws.event) == 2:
        return Evidence(**common, transitions=transitions(laws, z))
    own = ranks(laws, z, scale, *laws.derivatives(z))
    curves, cornered = None, False
    if own.j == laws.dim - 1 > 0:
        curves, span = fibres(laws, z, scale)
        cornered = curves == "closed" and _meets(corners(laws, z), span)
    return Evidence(**common, ranks=own, fibres=curves, cornered=cornered)


def _meets(places: list[float | None], span: Tensor) -> bool:
    """Whether every level curve that closes crosses a corner."""
    low, high = span
    crossed = [
        (low[:, k] <= at) & (at <= high[:, k]) for k, at in enumerate(places) if at is not None
    ]
    return bool(crossed) and bool(torch.stack(crossed).any(0).all())


def _family(exact: nn.Module, prior: nn.Module, values: Mapping[str, Tensor]) -> Evidence | None:
    """The same at random values of the parameters; None where the prior breaks there."""
    learned = {name for name, p in prior.named_parameters() if p.requires_grad}
    member = made_double(exact)
    with torch.no_grad():
        for name, parameter in member.named_parameters():
            if name in learned:
                size = DISTURBED * parameter.abs().clamp_min(1.0)
                parameter.add_(size * torch.randn_like(parameter))
    try:
        return _evidence(Laws(member, values), FAMILY)
    except InputError:
        return None
