"""What a reader should know before looking at anything: a few lines, each with its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Line", "lines", "state"]

APART = 3.0  # nats a particle between the ELBOs of seeds: README's failed seeds lie 10 below
OWN_WAY = "every latent changes the images in its own way"  # of identify.jacobian
HALF = 0.5  # of the angle that is left at random
LEAK = 0.1  # share of the variance of z that poses explain


class Line(NamedTuple):
    """One line: what it is about, its state ("good", "bad", "care" or "open"), what it says."""

    what: str
    state: str
    says: str


def state(sentence: str) -> str:
    """The state of identify's sentence, by the word that it begins with."""
    if sentence.startswith("Consistent with identified axes"):
        return "good"
    if sentence.startswith("Not identified"):
        return "bad"
    return "care" if sentence.startswith(("Given", "Aligned")) else "open"


def lines(run: Mapping[str, Any], checked: Mapping[str, Any] | None) -> list[Line]:
    """Lines of trust for ``config``, ``metrics`` and ``identify``, and ``diagnose.json``."""
    metrics, verdict = run["metrics"], run["identify"]
    told = [_seeds(verdict["seeds"], len(run["config"]["seeds"]))]
    told += _training(metrics, run["config"]["seeds"])
    told += _truth(metrics)
    told += _decoder(verdict.get("decoder"))
    told += _leak(metrics)
    told += _checked(checked)
    return told


def _seeds(seeds: Mapping[str, Any] | None, count: int) -> Line:
    if seeds is None:
        few = "one seed" if count == 1 else "too few particles"
        return Line("Seeds", "open", f"{few}: nobody can tell whether training is repeatable")
    numbers = f"matched axes correlate {seeds['permutation']:.2f}"
    return Line("Seeds", "good" if seeds["agree"] else "bad", f"{seeds['sentence']} ({numbers})")


def _training(metrics: Mapping[str, Any], seeds: Sequence[Any]) -> list[Line]:
    elbo = metrics["elbo"].get("per_seed") or []
    known = [v for v in elbo if v is not None]
    if len(known) < len(elbo) or not known:
        return [Line("Training", "bad", "the ELBO is not finite in every seed")]
    if len(known) < 2:
        return []
    low, gap = min(known), max(known) - min(known)
    if gap <= APART:
        return [Line("Training", "good", f"ELBOs of all seeds within {gap:.2g} nats a particle")]
    worst = seeds[elbo.index(low)] if len(elbo) == len(seeds) else "?"
    says = f"seed {worst} lies {gap:.3g} nats a particle below the best: it may have failed"
    return [Line("Training", "care", says)]


def _truth(metrics: Mapping[str, Any]) -> list[Line]:
    told = []
    linear, mcc = metrics.get("r2_linear"), metrics.get("mcc_pearson")
    if linear and linear["mean"] is not None:
        sure = linear["mean"] > 0.5
        says = f"a linear map of z tells {linear['mean']:.2f} of the true motions (R²)"
        told.append(Line("Motions", "good" if sure else "care", says))
    if mcc and mcc["mean"] is not None:
        told.append(_axes(mcc, metrics.get("angle_deg") or {}))
    return told


def _axes(mcc: Mapping[str, Any], angle: Mapping[str, Any]) -> Line:
    """By the angle that is left where it is known: noise lowers the MCC, and not that."""
    says, kind = f"latents match true motions at {mcc['mean']:.2f} (MCC)", "good"
    floor, turned, random = mcc.get("rotation_floor"), angle.get("mean"), angle.get("floor")
    if floor is not None:
        kind = "good" if mcc["mean"] > floor else "care"
        says += f"; perfect latents turned at random score {floor:.2f}"
    if turned is not None and random:
        kind = "good" if turned < HALF * random else "care"
        says += f". They are turned by {turned:.2g}°, at random by {random:.2g}°"
    return Line("Axes", kind, says)


def _decoder(seen: Mapping[str, Any] | None) -> list[Line]:
    sentences = (seen or {}).get("sentences")
    if not sentences:
        return []
    for n, reading in zip(seen["seeds"], sentences, strict=True):
        if OWN_WAY not in reading:
            return [Line("Decoder", "care", f"seed {n}: {reading.partition(';')[0]}")]
    return [Line("Decoder", "good", f"{OWN_WAY}, in every seed looked at")]


def _leak(metrics: Mapping[str, Any]) -> list[Line]:
    leak = metrics.get("pose_leak")
    if not leak or leak["mean"] is None:
        return []
    says = f"the pose explains {100 * max(leak['mean'], 0):.0f} % of the variance of z"
    return [Line("Pose", "good" if leak["mean"] < LEAK else "care", says)]


def _checked(checked: Mapping[str, Any] | None) -> list[Line]:
    if not checked or not isinstance(checked.get("sentence"), str):
        return [Line("Posterior", "open", "not checked: pyrocryo diagnose looks at it")]
    passed = checked.get("passed")
    kind = "open" if passed is None else "good" if passed else "bad"
    head = checked["sentence"].partition(": ")[0].rstrip(".")
    return [Line("Posterior", kind, f"{head}: see Can the posterior be trusted?")]
