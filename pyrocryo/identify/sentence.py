"""The verdict on a fit, in one sentence that somebody can act on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyrocryo.identify.power import BLIND
from pyrocryo.identify.prior_check import PriorCheck

__all__ = ["objection", "sentence"]

NEVER = "never help"  # of advice that says what is in vain


def objection(name: str, moves: dict[str, Any] | None) -> str:
    """What the steps that were inferred have to say against it, if anything."""
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


def sentence(
    name: str,
    gap: float,
    check: PriorCheck | None,
    seeds: dict[str, Any] | None,
    n: int,
    axes: str | None = None,
) -> str:
    """What prior and seeds together allow to say, and what would help.

    Args:
        name: Of the prior.
        gap: Nats that its cheapest turn by 45° costs.
        check: What the prior can identify with a free decoder, if that is known.
        seeds: The agreement of seeds, if there are several.
        n: How many.
        axes: What each latent is, where the decoder says so and nothing turns it.
    """
    if axes is not None:
        tail = "" if seeds is None else f" ({_of(n, seeds)})"
        return (
            f"Given, not found: in this decoder each latent is {axes}, so its axes mean that "
            f"whatever the prior{tail}. They hold if that is true of the molecule, which the "
            "prior does not test: compare the ELBO with that of a decoder that is free."
        )
    if not math.isfinite(gap):
        tail = "" if seeds is None else f"; {_of(n, seeds)}"
        return f"There is one latent, so no rotation of axes to worry about{tail}."
    open_ = check is not None and not _answer(check).axes
    helps = _helps(check.advice) if open_ else ""
    if gap <= BLIND:
        tail = "" if seeds is None else f" ({_of(n, seeds)})"
        return (
            f"Not identified: the prior {name} cannot see rotations of z (or of whitened z), so "
            f"no axis has a meaning of its own, however well z describes the particles{tail}."
            f"{helps}"
        )
    costs = f"the prior {name} charges {gap:.2g} nats a particle for a turn by 45°"
    if seeds is None:
        few = "one seed" if n == 1 else "so few particles"
        told = f", and to a free decoder it leaves {_left(check)}" if open_ else ""
        return (
            f"Undecided: {costs}, but with {few} nobody can tell whether training used it{told}."
            f"{helps}"
        )
    if not seeds["agree"]:
        told = helps or (
            " A seed whose ELBO lies nats below the others has failed to train; more steps or "
            "more particles may help the rest."
        )
        return f"Not identified by this fit: {costs}, but {_of(n, seeds)}.{told}"
    if open_:
        return (
            f"Aligned, but not by the data alone: {_of(n, seeds)}, while {name} "
            f"leaves a free decoder {_left(check)}. The axes are those that smooth networks "
            f"prefer; read them as motions only if something else says so.{helps}"
        )
    return (
        f"Consistent with identified axes: {costs}, and {_of(n, seeds)}. Each "
        "axis can be read as one motion; agreement is necessary, not a proof."
    )


def _of(n: int, seeds: dict[str, Any]) -> str:
    """The reading of the agreement, with the number of seeds in it."""
    reading = seeds["sentence"]
    told = reading.replace("the seeds", f"{n} seeds", 1)
    return told if told != reading else f"of {n} seeds {reading}"


def _helps(advice: Sequence[str]) -> str:
    """The first thing that would help, after what would not."""
    told = []
    for text in advice:
        if NEVER not in text:
            told.append(f"What would help: {text[:1].lower()}{text[1:]}")
            break
        told.append(text)
    return "".join(f" {text}" for text in told)


def _answer(check: PriorCheck) -> Any:
    """The verdict for a free decoder, as the prior is used."""
    return (check.verdict.learned if check.trainable else check.verdict.known).free


def _left(check: PriorCheck) -> str:
    kind = _answer(check).kind
    if kind == "unknown":
        return "maps that no theorem excludes"
    if kind == "linear":
        return "a linear map of all latents"
    if kind == "twist" and "twist" not in check.symmetry:
        return "curved maps along the level sets of its contrasts"
    return check.symmetry if check.symmetry else "maps that change no likelihood"
