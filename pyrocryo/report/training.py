"""How training went, and whether seeds found the same: sections of the page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.metrics.mcc import correlation, matched
from pyrocryo.report import drawn

__all__ = ["agreement", "history"]

MOST = 16  # seeds in a table of all against all
FEW = 4  # seeds whose latents are shown one by one


def history(path: Path) -> list[str]:
    """The loss of each seed by step, of ``history.csv``; nothing where it cannot be read."""
    if not path.exists():
        return []
    rows = np.genfromtxt(path, delimiter=",", names=True, ndmin=1)
    if rows.dtype.names is None or not {"seed", "step", "loss"} <= set(rows.dtype.names):
        return []
    seeds = list(dict.fromkeys(rows["seed"].tolist()))
    kept = [rows[rows["seed"] == seed] for seed in seeds]
    steps = min(len(one) for one in kept)
    loss = np.stack([one["loss"][:steps] for one in kept])
    width = max(1, steps // 50)
    smooth = np.apply_along_axis(np.convolve, 1, loss, np.ones(width) / width, "valid")
    at = kept[0]["step"][:steps][width - 1 :]
    names = [f"seed {seed:g}" for seed in seeds]
    return [
        "<section id=training><h2>Training</h2><figure>",
        drawn.curves(at, smooth, names, "step", "−ELBO (nats a particle)"),
        "<figcaption>Negative ELBO, smoothed over 2 % of the steps; lower is better. Curves that "
        "still fall want more steps, one that ends above the others has failed.</figcaption>"
        "</figure></section>",
    ]


def agreement(points: Mapping[str, Any] | None, seeds: Sequence[Any]) -> list[str]:
    """|Correlation| of the latents of seeds: matched ones of all pairs, and each of some."""
    if points is None or len(seeds) < 2:
        return []
    columns = [c["values"] for c in points["columns"] if c["each"] and c["name"][:1] == "z"]
    z = np.array(columns, dtype=np.float64).transpose(1, 2, 0)  # (S, n, K)
    if not np.isfinite(z).all() or (z.std(axis=1) == 0).any() or z.shape[1] < 3:
        return []
    shown = range(min(len(seeds), MOST))
    names = [f"seed {seeds[n]}" for n in shown]
    all_ = np.array([[matched(z[a], z[b])[0] if a != b else 1.0 for b in shown] for a in shown])
    parts = [
        "<figure>",
        drawn.matrix(all_, names, [str(seeds[n]) for n in shown], "matched correlation of seeds"),
        "<figcaption>Mean |correlation| of the latents of two seeds, each matched to its best "
        f"partner.{_told_some(len(seeds))}</figcaption></figure>",
    ]
    axes = [f"z{k + 1}" for k in range(z.shape[2])]
    if len(axes) <= 12:
        for n in range(1, min(len(seeds), FEW)):
            label = f"latents of seed {seeds[0]} (down) and seed {seeds[n]} (across)"
            parts += [
                "<figure>",
                drawn.matrix(np.abs(correlation(z[0], z[n])), axes, axes, label),
                f"<figcaption>{html.escape(label.capitalize())}: one full square in each row is "
                "agreement on axes.</figcaption></figure>",
            ]
    return [
        "<section id=seeds><h2>Do seeds agree?</h2><div class=row>",
        *parts,
        "</div></section>",
    ]


def _told_some(count: int) -> str:
    return f" The first {MOST} of {count} seeds." if count > MOST else ""
