"""What a run says of its axes: prior, decoder, frame and seeds, for reading."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from pyrocryo.report.differences import aligned

__all__ = ["agreement", "lines", "parts"]

DIFFERENT = "the seeds found different things"  # of identify.consistency
DECODERS = {
    "free": "any smooth one",
    "linear": "linear in z",
    "orthogonal": "with orthogonal motions",
    "modes": "with given motions",
}
HEAD = ["axes, for a decoder", "if the prior is the true law", "if it is learned"]
KINDS = {
    "identified": "identified",
    "permutation": "up to order",
    "linear": "up to a linear map of all axes",
    "rotation": "up to rotations",
    "twist": "up to curved maps",
    "not": "not at all",
    "unknown": "no theorem says",
}


def parts(verdict: Mapping[str, Any]) -> list[str]:
    """HTML of ``identify.json``, a section for each verdict that it holds."""
    return [
        "<h2>Can axes mean anything?</h2>",
        *_prior(verdict["prior"]),
        *_decoder(verdict.get("decoder")),
        *_frame(verdict.get("frame")),
        *_seeds(verdict["seeds"]),
    ]


def lines(verdict: Mapping[str, Any]) -> list[str]:
    """The same as lines of text, for a terminal."""
    prior, told = verdict["prior"], []
    if check := prior.get("check"):
        told = [f"The prior {_leaves(prior)}", *aligned([HEAD, *_answers(check)])]
        told += [f"What would help: {' '.join(check['advice'])}"] if check["advice"] else []
    if prior["rotation_gap_nats"] is not None:
        cost = max(0.0, prior["rotation_gap_nats"])
        told += [f"Turning two axes by 45° costs at least {cost:.2f} nats a particle."]
    told += [f"Free energies: {text}" for text in _profiles(prior.get("profiles"))]
    for name, head in (("decoder", "The decoder"), ("frame", "The frame of the poses")):
        if seen := verdict.get(name):
            told += [f"{head}. {_begun(seen['sentence'])}"]
    return [*told, f"Seeds. {agreement(verdict['seeds'])}"]


def agreement(seeds: Mapping[str, Any] | None) -> str:
    """How far seeds, or whatever else was compared, agree, with its numbers."""
    if seeds is None:
        return "One, or too few particles: nobody can tell whether they agree."
    turn = f" The axes of any two are turned by at most {seeds['worst_turn_deg']:.0f}°."
    if seeds["sentence"].startswith(DIFFERENT):  # of which no turn makes one the other
        turn = ""
    rhat = ""
    if seeds.get("rhat") is not None:
        rhat = (
            f" R-hat of the posteriors of the same particle, axes aligned: {seeds['rhat']:.2f} in "
            f"the median ({100 * seeds['rhat_share']:.0f} % above 1.05); after an affine map "
            f"{seeds['rhat_affine']:.2f}."
        )
    return (
        f"{_begun(seeds['sentence'])} "
        f"Matched axes correlate {seeds['permutation']:.3f}; a linear map explains "
        f"{seeds['affine']:.3f} of the variance and nearest neighbours {seeds['nonlinear']:.3f} "
        f"({seeds['axiswise']:.3f} from the matched axis alone), "
        f"each fitted on one half of the particles and scored on the other.{turn}{rhat}"
    )


def _leaves(prior: Mapping[str, Any]) -> str:
    check = prior["check"]
    used = "learned" if check["trainable"] else "known"
    fields = check["fields"]
    at = f", at {check['conditions']} conditions of {' and '.join(fields)}" if fields else ""
    ranks = "" if check["temporal"] else f" {_ranks(check)}"
    free = check["verdict"][used]["free"]["sentence"]
    return f"{prior['name']}{at} leaves: {check['symmetry']}. {free}{ranks}".rstrip()


def _answers(check: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table: what is left open, by what is known of the decoder."""
    verdict = check["verdict"]
    return [
        [told, *(KINDS[verdict[law][name]["kind"]] for law in ("known", "learned"))]
        for name, told in DECODERS.items()
    ]


def _prior(prior: Mapping[str, Any]) -> list[str]:
    check = prior.get("check")
    if check is None:
        return []
    rows = "".join(f"<tr><td>{'<td>'.join(row)}</tr>" for row in _answers(check))
    return [
        f"<p><b>The prior</b> {_told(_leaves(prior))}</p>",
        f"<div class=wide><table><tr><th>{'<th>'.join(HEAD)}</tr>{rows}</table></div>",
        _list(check["advice"], "What would help:"),
        _list(_profiles(prior.get("profiles")), "Free energies:"),
    ]


def _profiles(seeds: Sequence[Sequence[str]] | None) -> list[str]:
    """Of each seed where they differ, as those of learned energies do."""
    if not seeds:
        return []
    if all(seed == seeds[0] for seed in seeds):
        return list(seeds[0])
    return [f"seed {n + 1} of {len(seeds)}: {'; '.join(seed)}" for n, seed in enumerate(seeds)]


def _ranks(check: Mapping[str, Any]) -> str:
    found = (check["rank_j"], check["rank_f"], check["rank_w"])
    if check["conditions"] < 2 or None in found:
        return ""
    dim, each = check["dim"], check["sum_f"]
    return (
        f"Ranks over conditions: J {found[0]} (of {dim}), F {found[1]} (of {each}), W {found[2]} "
        f"(of {2 * dim})."
    )


def _decoder(seen: Mapping[str, Any] | None) -> list[str]:
    if seen is None:
        return []
    sentences = [
        f"seed {n}: {text}" for n, text in zip(seen["seeds"], seen["sentences"], strict=True)
    ]
    strengths = "; ".join(
        f"seed {n}: {', '.join(f'{v:.2g}' for v in row)}"
        for n, row in zip(seen["seeds"], seen["strength"], strict=True)
    )
    return [
        f"<p><b>The decoder.</b> {_told(_begun(seen['sentence']))}</p>",
        f"<details><summary>Seed by seed</summary>{_list(sentences, '')}</details>"
        if len(sentences) > 1
        else "",
        "<p class=small>Change of the image for one standard deviation of each latent, in "
        f"standard deviations of the noise: {strengths}.</p>",
    ]


def _frame(seen: Mapping[str, Any] | None) -> list[str]:
    return (
        []
        if seen is None
        else [f"<p><b>The frame of the poses.</b> {_told(_begun(seen['sentence']))}</p>"]
    )


def _seeds(seeds: Mapping[str, Any] | None) -> list[str]:
    return [f"<p><b>Seeds.</b> {_told(agreement(seeds))}</p>"]


def _list(items: Sequence[str], head: str) -> str:
    if not items:
        return ""
    told = "".join(f"<li>{_told(item)}</li>" for item in items)
    return f"{f'<p>{head}</p>' if head else ''}<ul>{told}</ul>"


def _begun(text: str) -> str:
    """As a sentence."""
    return f"{(text[:1].upper() + text[1:]).rstrip('.')}."


def _told(text: str) -> str:
    return html.escape(str(text))
