"""From ranks, symmetries and level curves to a verdict in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyrocryo.identify.prior_check import Answer, Answers, Verdict
from pyrocryo.identify.ranks import Ranks
from pyrocryo.identify.symmetry import Group
from pyrocryo.identify.transitions import Transitions

__all__ = ["Evidence", "described", "judge", "symmetry", "theorem"]

NO_THEOREM = "Known counterexamples excluded, no theorem."
GIVEN = Answer("identified", "The basis is given: nothing is left open, if it is the true one.")


@dataclass(frozen=True)
class Evidence:
    """What was found of a prior; see :class:`pyrocryo.identify.PriorCheck`."""

    dim: int
    conditions: int
    group: Group
    permutations: tuple[tuple[int, ...], ...]
    ranks: Ranks | None = None
    fibres: str | None = None
    cornered: bool = False
    transitions: Transitions | None = None

    @property
    def known(self) -> str:
        """The kind of a prior without continuous freedom."""
        exchanged = any(abs(p[k]) != k + 1 for p in self.permutations for k in range(self.dim))
        return "permutation" if exchanged else "identified"

    @property
    def left(self) -> str:
        """Which discrete maps leave it as it is."""
        if not self.permutations:
            return "no sign or exchange leaves the prior as it is"
        return f"the prior allows only {_maps(self.permutations)}"


def theorem(ranks: Ranks, dim: int) -> tuple[str, str] | None:
    """What a theorem says of a learned prior with these ranks, and which; None if none does."""
    if ranks.each is None:
        return None
    exponential = min(ranks.each) >= 1 and ranks.f == sum(ranks.each)
    told = f"rank F = {ranks.f} = {_sum(ranks.each)}"
    if exponential and all(m is not True for m in ranks.monotone):
        which = "1 and 3" if max(ranks.each) == 1 else "1 and 2"
        return "permutation", f"iVAE, theorems {which} ({told})"
    if ranks.w == 2 * dim:
        return (
            "permutation",
            f"Hyvärinen, Sasaki & Turner 2019 (rank W = {ranks.w} = 2 K{ranks.where('w')})",
        )
    if exponential:
        return "linear", f"iVAE, theorem 1 ({told}, monotone statistics)"
    return None


def judge(found: Evidence, family: Evidence | None = None) -> Verdict:
    """The verdict, for the prior as known and as learned, decoder by decoder.

    Args:
        found: Of the prior as it is.
        family: Of a random member of its family, if it has parameters.
    """
    if found.dim == 1:
        one = Answer("identified", "There is one latent: no other to mix it with.")
        return Verdict(Answers(one, one, one, GIVEN), Answers(one, one, one, GIVEN))
    member = family or found
    if found.transitions is not None:
        known, learned = _known_frames(found), _learned_frames(member)
    else:
        known, learned = _known(found), _learned(member)
    if known.kind == "twist" and learned.kind == "unknown":
        learned = known  # what the law itself leaves open, its family does too
    if learned.axes and not known.axes and family is not None:
        told = learned.sentence[:-1] + "; this is the family, not the values that it has now."
        learned = Answer(learned.kind, told)
    return Verdict(
        Answers(known, _linear_known(found), _orthogonal(known, found.group.round), GIVEN),
        Answers(
            learned,
            _linear_learned(member, learned),
            _orthogonal(learned, member.group.loose_round),
            GIVEN,
        ),
    )


def _known(found: Evidence) -> Answer:
    n, rank = found.dim, found.ranks.j
    if rank == 0:
        why = "nothing to compare" if found.conditions == 1 else "no condition matters"
        turned = f" ({symmetry(found)})" if found.group.size else ""
        return Answer(
            "not", f"Not identified: {why}, so any map that preserves p(z) remains{turned}."
        )
    if rank == n:
        return Answer(
            found.known,
            f"Identified: the contrasts have rank {rank} = K{found.ranks.where('j')}, so no "
            f"continuous family of maps leaves the prior as it is; {found.left}.",
        )
    if rank < n - 1:
        return Answer(
            "twist",
            f"Not identified: the contrasts have rank {rank}, K = {n} is needed; flows along "
            "their level sets leave the prior as it is at every condition.",
        )
    few = f"the contrasts have rank {rank} = K - 1"
    if found.fibres == "closed" and found.cornered:
        return Answer(
            found.known,
            f"Identified for decoders with continuous derivatives: {few} and closed level curves, "
            f"but with corners that no smooth map can move; {found.left}.",
        )
    if found.fibres == "closed":
        return Answer(
            "twist",
            f"Not identified: {few} and their level curves are closed; twists along them leave "
            "the prior as it is at every condition.",
        )
    if found.fibres == "open":
        return Answer(
            found.known,
            f"Identified: {few}, but their level curves are open and carry finite mass, so only "
            f"discrete maps remain; {found.left}.",
        )
    return Answer("unknown", f"Undecided: {few}, and their level curves could not be followed.")


def _learned(found: Evidence) -> Answer:
    ranks, n = found.ranks, found.dim
    own = _known(found)
    if own.kind == "not":
        return own
    if said := theorem(ranks, n):
        kind, why = said
        if kind == "linear":
            return Answer(
                "linear",
                f"Up to one linear map of the components' statistics: {why}. Axes need more.",
            )
        return Answer("permutation", f"Up to permutation and a map of each component: {why}.")
    if own.kind == "twist":
        return Answer(
            "twist",
            f"Not identified: members of the family have contrasts of rank J = {ranks.j} < K = "
            f"{n}, and curved maps that preserve them.",
        )
    if ranks.each is None:
        return Answer("unknown", "No theorem: components depend on one another.")
    if min(ranks.each) == 0:
        still = ", ".join(str(k + 1) for k, d in enumerate(ranks.each) if d == 0)
        return Answer(
            "unknown", f"No theorem: no condition changes component {still} (every d_k ≥ 1 asked)."
        )
    return Answer(
        "unknown",
        f"No theorem: rank F = {ranks.f} where {_sum(ranks.each)} is asked, rank W = {ranks.w} "
        f"where {2 * n} is.",
    )


def _known_frames(found: Evidence) -> Answer:
    learned = _learned_frames(found)
    if learned.kind == "permutation":
        why = learned.sentence.split(": ", 1)[1]
        return Answer(found.known, f"Identified: {why[:-1]}; {found.left}.")
    return learned


def _learned_frames(found: Evidence) -> Answer:
    steps = found.transitions
    if found.group.size:
        return Answer("rotation", f"Not identified: {symmetry(found)} at no cost.")
    if not steps.independent:
        return Answer("unknown", "No theorem: components depend on one another.")
    still = [k for k, tells in enumerate(steps.dependent) if not tells and not steps.laplace[k]]
    apart = [k + 1 for k in still if not steps.cornered[k]]
    if apart:
        which = ", ".join(map(str, apart))
        return Answer("unknown", f"No theorem: frames of component {which} are independent.")
    if still:
        which = ", ".join(str(k + 1) for k in still)
        return Answer(
            "unknown",
            f"No theorem: the steps of component {which} have straight pieces and corners (PCL "
            "asks for a smooth density), and are not Laplace steps from the frame before.",
        )
    gaussian = [k + 1 for k, r in enumerate(steps.ratio) if r < 1e-6 and not steps.laplace[k]]
    if all(steps.laplace):
        return Answer(
            "permutation",
            "Up to permutation, sign and scale: Laplace steps make maps isometries of the L1 norm "
            "(SlowVAE, Klindt et al. 2021).",
        )
    if not gaussian and not any(steps.laplace):
        return Answer(
            "permutation",
            "Up to permutation and a map of each component: frames depend on each other in no "
            f"Gaussian way (PCL, Hyvärinen & Morioka 2017; ratio {min(steps.ratio):.2g}).",
        )
    if gaussian:
        which = ", ".join(map(str, gaussian))
        return Answer("unknown", f"No theorem: component {which} is quasi-Gaussian (PCL, rank 1).")
    return Answer("unknown", "No theorem: some steps are Laplace, others are not.")


def _linear_known(found: Evidence) -> Answer:
    if found.group.size:
        return Answer("rotation", f"Not identified: {symmetry(found)}.")
    return Answer(found.known, f"Identified: no continuous linear map remains; {found.left}.")


def _linear_learned(found: Evidence, free: Answer) -> Answer:
    independent = (
        found.transitions.independent if found.transitions else found.ranks.each is not None
    )
    if free.axes:
        return free
    if found.group.loose:
        planes = _planes(found.group.loose)
        return Answer("rotation", f"Not identified: rotations of whitened z in {planes} remain.")
    if found.group.size:
        return Answer("rotation", f"Not identified: {symmetry(found)}.")
    if not independent:
        return Answer("unknown", "No theorem: components depend on one another.")
    return Answer(
        "permutation",
        "Up to permutation and scale: no two components are Gaussian with the same ratio of "
        "variances throughout (linear ICA).",
    )


def _orthogonal(free: Answer, planes: Sequence[tuple[int, int]]) -> Answer:
    if free.axes:
        return free
    if planes:
        where = _planes(planes)
        return Answer("rotation", f"Not identified: rotations in {where} keep columns orthogonal.")
    return Answer("unknown", NO_THEOREM)


def symmetry(found: Evidence) -> str:
    """Linear maps that leave the prior as it is, in words; without any, signed permutations."""
    group, n = found.group, found.dim
    if not group.size:
        return "signed permutation" if found.permutations else "none"
    rigid = len(group.round) == len(group.planes)
    of = "z" if rigid else "whitened z"
    if len(group.planes) == n * (n - 1) // 2:
        return "any rotation" if rigid else "any rotation of whitened z"
    if group.planes:
        return f"rotations of {of} in {_planes(group.planes)}"
    return f"a group of linear maps of dimension {group.size}"


def described(found: Evidence, verdict: Verdict) -> str:
    """All that leaves the prior as it is, curved maps included."""
    parts = [symmetry(found)] if found.group.size else []
    kind = verdict.known.free.kind
    if kind == "twist":
        one = found.ranks.j == 1
        parts.append(f"{'energy' if one else 'contrast'}-preserving twists")
    if kind == "not" and not parts:
        parts.append("any map that preserves p(z)")
    if verdict.learned.free.kind == "linear":
        parts.append("linear class (if learned)")
    return " and ".join(parts) or symmetry(found)


def _planes(planes: Sequence[tuple[int, int]]) -> str:
    told = ", ".join(f"({i}, {j})" for i, j in planes)
    return f"the plane{'s' if len(planes) > 1 else ''} {told}"


def _maps(maps: Iterable[tuple[int, ...]]) -> str:
    signs, exchanged = [], []
    for one in maps:
        moved = [k + 1 for k, image in enumerate(one) if abs(image) != k + 1]
        if moved:
            exchanged.append(f"({moved[0]}, {moved[1]})")
        else:
            signs.append("".join(str(-image) for image in one if image < 0))
    told = []
    if signs:
        told.append(f"signs of {', '.join(signs)}")
    if exchanged:
        told.append(f"exchanges {', '.join(exchanged)}")
    return " and ".join(told)


def _sum(each: Sequence[int]) -> str:
    return " + ".join(str(d) for d in each)
