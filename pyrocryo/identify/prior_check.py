"""What :func:`pyrocryo.identify.check_prior` answers, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pyrocryo.identify.plain import plain

__all__ = ["Answer", "Answers", "Gap", "PriorCheck", "Verdict"]

Kind = Literal["identified", "permutation", "linear", "rotation", "twist", "not", "unknown"]


@dataclass(frozen=True)
class Answer:
    """What is left open, and why.

    Attributes:
        kind: ``identified``: nothing but signs and such discrete maps as the prior itself allows;
            ``permutation``: the order of components, and a map of each on its own where the prior
            is learned; ``linear``: one linear map of the components' statistics; ``rotation``:
            rotations of (whitened) `z`; ``twist``: curved maps along the level sets of the
            log-density contrasts; ``not``: any map that preserves the density; ``unknown``: no
            theorem says.
        sentence: The same in words.
    """

    kind: Kind
    sentence: str

    @property
    def axes(self) -> bool:
        """Whether each axis has a meaning of its own."""
        return self.kind in ("identified", "permutation")


@dataclass(frozen=True)
class Answers:
    """By decoder.

    Attributes:
        free: Any smooth injective decoder.
        linear: Linear decoders, such as unknown combinations of modes.
        orthogonal: Those whose Jacobian has orthogonal columns.
        modes: Linear ones whose basis is given.
    """

    free: Answer
    linear: Answer
    orthogonal: Answer
    modes: Answer


@dataclass(frozen=True)
class Verdict:
    """By what is known of the prior.

    Attributes:
        known: The law of `z` is exactly the one given.
        learned: It is only known to be one of its family, and is fitted with the decoder.
    """

    known: Answers
    learned: Answers


@dataclass(frozen=True)
class Gap:
    """What turning one plane costs, in nats a particle (a pair of frames, for frames).

    Attributes:
        plane: Two components, counted from 1.
        unscaled: A turn by 45° of `z`.
        whitened: Of `z` in units of its components' standard deviations.
        cheapest: The smaller of these.
        se: Standard error of that.
        turns: The cheapest by angle in degrees.
    """

    plane: tuple[int, int]
    unscaled: float
    whitened: float
    cheapest: float
    se: float
    turns: dict[float, float]


@dataclass(frozen=True)
class PriorCheck:
    r"""What a prior can identify, with the numbers behind it.

    Components are counted from 1. With `L` conditions there are `M = L - 1` contrasts
    :math:`S_l = \ln p(z | u_l) - \ln p(z | u_0)`.

    Attributes:
        name: Of the prior.
        dim: Size K of `z`.
        conditions: Number `L` of conditions; 1 without any.
        fields: Names of the fields they are of.
        temporal: Whether the prior is over the frames of one molecule.
        trainable: Whether the prior has parameters to learn.
        factorises: Whether components are independent at each condition.
        rank_j: Rank of the gradients of the contrasts at typical `z`; K is necessary.
        rank_f: Rank of the contrasts as functions of `z`; None where components are dependent.
        ranks_f: The same of each component alone, its number of statistics :math:`d_k`.
        rank_w: Rank of first and second derivatives at typical `z`; 2 K is sufficient.
        family: Ranks ``{"j", "f", "w"}`` of the prior at random values of its parameters; None if
            it has none.
        singular_values: By ``j``, ``f``, ``w`` relative to the largest, `(·,)`; of ``j`` and
            ``w`` medians over `z`. For frames, ``pcl``: second over first, `(K,)`.
        condition_numbers: By ``j``, ``f``, ``w``, largest over smallest of the K, :math:`\sum_k
            d_k` and 2 K that are asked for; infinite where they are fewer.
        monotone: Whether a component's single statistic is monotone; None where it has not one.
        gaps: What turns by 45° cost, plane by plane.
        rotations: Planes whose turns leave the prior as it is, ``whitened`` ones included.
        group: Dimension of the group of linear maps that leave the prior as it is.
        permutations: Signed permutations of (whitened) `z` that do, generators, such as
            ``(-1, 2)`` (a sign) and ``(2, 1)`` (an exchange).
        fibres: ``closed`` or ``open`` level curves of the contrasts where their rank is K - 1;
            else None.
        symmetry: What leaves the prior as it is, in words.
        verdict: For the prior as known and as learned, by decoder.
        advice: What would help, a sentence each.
    """

    name: str
    dim: int
    conditions: int
    fields: tuple[str, ...]
    temporal: bool
    trainable: bool
    factorises: bool
    rank_j: int | None
    rank_f: int | None
    ranks_f: tuple[int, ...] | None
    rank_w: int | None
    family: dict[str, int] | None
    singular_values: dict[str, np.ndarray]
    condition_numbers: dict[str, float]
    monotone: tuple[bool | None, ...]
    gaps: tuple[Gap, ...]
    rotations: tuple[tuple[int, int], ...]
    group: int
    permutations: tuple[tuple[int, ...], ...]
    fibres: str | None
    symmetry: str
    verdict: Verdict
    advice: tuple[str, ...]

    @property
    def sum_f(self) -> int | None:
        r""":math:`\sum_k d_k`, which ``rank_f`` has to reach."""
        return None if self.ranks_f is None else sum(self.ranks_f)

    @property
    def sentence(self) -> str:
        """The verdict for a free decoder in one sentence, as the prior is used."""
        return (self.verdict.learned if self.trainable else self.verdict.known).free.sentence

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON (infinity as None)."""
        return plain(self) | {"sum_f": self.sum_f, "sentence": self.sentence}

    def __str__(self) -> str:
        on = (
            f"{self.conditions} conditions of {' and '.join(self.fields)}"
            if self.fields
            else ("no condition")
        )
        lines = [f"{self.name}: K = {self.dim}, {'frames, ' if self.temporal else ''}{on}"]
        lines.append(f"  left as it is by   {self.symmetry}")
        if not self.temporal:
            asked = {"j": self.dim, "f": self.sum_f, "w": 2 * self.dim}
            found = {"j": self.rank_j, "f": self.rank_f, "w": self.rank_w}
            for letter, rank in list(found.items())[: 1 if self.conditions == 1 else 3]:
                lines.append(
                    f"  rank {letter.upper()}             {self._rank(letter, rank, asked)}"
                )
            if self.family:
                ranks = ", ".join(f"{k.upper()} {rank}" for k, rank in self.family.items())
                lines.append(f"  as a family        {ranks}")
        else:
            ratio = ", ".join(f"{value:.3g}" for value in self.singular_values["pcl"])
            lines.append(f"  PCL s2/s1          {ratio}")
        if self.fibres:
            lines.append(f"  level curves       {self.fibres}")
        per = "pair" if self.temporal else "particle"
        for gap in self.gaps:
            lines.append(
                f"  45° in {gap.plane}      {_nats(gap.unscaled)} nats a {per}, whitened "
                f"{_nats(gap.whitened)} (± {gap.se:.1g})"
            )
        lines.append("  decoder       prior known     prior learned")
        for decoder in ("free", "linear", "orthogonal", "modes"):
            known, learned = (
                getattr(side, decoder).kind for side in (self.verdict.known, self.verdict.learned)
            )
            lines.append(f"  {decoder:<12}  {known:<14}  {learned}")
        lines.append(f"  known: {self.verdict.known.free.sentence}")
        lines.append(f"  learned: {self.verdict.learned.free.sentence}")
        return "\n".join(lines + [f"  {each}" for each in self.advice])

    def _rank(self, letter: str, rank: int | None, asked: dict[str, int | None]) -> str:
        if rank is None:
            return "none, as components depend on one another"
        each = f" = {' + '.join(map(str, self.ranks_f))}" if letter == "f" else ""
        values = self.singular_values.get(letter, np.zeros(0))
        told = ", ".join(f"{value:.2g}" for value in values[: asked[letter]])
        return f"{rank} of {asked[letter]}{each}" + (f"; singular values {told}" if told else "")


def _nats(value: float) -> str:
    return "0" if abs(value) < 1e-4 else f"{value:.3g}"
