"""Figures of the checks of a posterior, from what :func:`pyrocryo.diagnose.check` found."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from scipy import stats

from pyrocryo.diagnose.check import Checked
from pyrocryo.diagnose.importance import BAD, Importance
from pyrocryo.diagnose.predictive import Predictive
from pyrocryo.diagnose.sbc import Ranks
from pyrocryo.diagnose.tarp import Balls
from pyrocryo.diagnose.uniform import histogram

__all__ = ["coverage", "figures", "khat", "ranks", "residuals", "spectrum"]

SHOWN = 8  # numbers whose ranks are drawn
WIDEST = 3.0  # ratios of power that are drawn on a linear axis
LOWEST = -1.0  # k-hat below is drawn there


def figures(checked: Checked) -> dict[str, Figure]:
    """All of them by the names of their files; of several seeds, the first in the pictures."""
    return {
        "diagnose_khat": khat(checked.importance),
        "diagnose_ranks": ranks(checked.sbc),
        "diagnose_coverage": coverage(checked.tarp),
        "diagnose_residuals": residuals(checked.predictive),
        "diagnose_spectrum": spectrum(checked.predictive),
    }


def khat(found: Importance) -> Figure:
    """k-hat of each particle, and what the guide loses for it."""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for n, seed in enumerate(found.seeds):
        k = np.clip(found.khat[n], LOWEST, 2.0)
        left.plot(np.sort(k), np.linspace(0, 1, len(k)), lw=1.2, label=f"seed {seed}")
        gap = found.iwae[n] - found.elbo[n]
        right.plot(k, np.maximum(gap, 1e-4), ".", ms=3, alpha=0.5, rasterized=True)
    left.axvline(BAD, color="C3", lw=1)
    left.set(xlabel="k-hat", ylabel="share of particles below", xlim=(LOWEST, None))
    left.legend(fontsize=7, frameon=False)
    right.axvline(BAD, color="C3", lw=1)
    right.set(xlabel="k-hat", ylabel="IWAE − ELBO (nats)", yscale="log")
    figure.suptitle("importance weights of the guide's draws", fontsize=10)
    return figure


def ranks(found: Ranks) -> Figure:
    """Histograms of ranks, and the band that 99 % of uniform ones keep to, bin by bin."""
    shown = found.names[:SHOWN]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.9 * columns + 0.6, 1.7 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.axis("off")
    n = found.ranks.shape[1]
    for seed in range(len(found.seeds)):
        counts, share = histogram(found.ranks[seed], found.draws)
        edges = np.concatenate([[0], share.cumsum()])
        low, high = stats.binom.ppf([[0.005], [0.995]], n, share) / (n * share)
        for q, axes in enumerate(panels[: len(shown)]):
            if seed == 0:
                axes.stairs(high, edges, baseline=low, fill=True, color="0.88")
                axes.set_title(shown[q], fontsize=8)
                axes.set(xticks=[0, 0.5, 1])
                axes.tick_params(labelsize=7)
            over = counts[:, q] / (n * share)
            axes.stairs(over, edges, lw=1.2)
            axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * over.max()))
    figure.suptitle("ranks of the truth, over uniform (∪: too narrow, ∩: too wide)", fontsize=10)
    return figure


def coverage(found: Balls) -> Figure:
    """Coverage of balls about random points, beside what they should hold."""
    figure = Figure(figsize=(3.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", lw=1)
    for p, name in enumerate(found.names):
        for n in range(len(found.seeds)):
            label = name if n == 0 else None
            axes.plot(found.alpha, found.coverage[n, p], color=f"C{p}", lw=1.2, label=label)
    axes.set(xlabel="credible level", ylabel="share of truths within", aspect="equal")
    axes.legend(fontsize=7, frameon=False)
    axes.set_title("coverage of random balls (TARP)", fontsize=10)
    return figure


def residuals(found: Predictive) -> Figure:
    """Maps of the residuals: variance, mean, and the component along which they vary most."""
    figure = Figure(figsize=(8.2, 2.9), layout="constrained")
    maps = (
        ("variance, observed / model", found.variance_map[0], 1.0, "PuOr_r"),
        ("mean, observed − model", found.mean_map[0], 0.0, "RdBu_r"),
        (f"component (× {found.component[0]:.2f})", found.component_map[0], 0.0, "RdBu_r"),
    )
    for axes, (name, picture, centre, colours) in zip(figure.subplots(1, 3), maps, strict=True):
        limit = max(float(np.quantile(np.abs(picture - centre), 0.995)), 1e-9)
        low = centre - min(limit, centre or limit)  # ratios end at 0
        norm = TwoSlopeNorm(centre, low, centre + limit)
        shown = axes.imshow(picture, cmap=colours, norm=norm, origin="lower")
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=9)
        figure.colorbar(shown, ax=axes, shrink=0.75)
    where = "particle" if found.body else "image"
    figure.suptitle(f"residuals of {found.n} images, in the frame of the {where}", fontsize=10)
    return figure


def spectrum(found: Predictive) -> Figure:
    """Power of the residuals over that of replicates, and the signal that is left in them."""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for n, seed in enumerate(found.seeds):
        left.plot(found.frequency, found.spectrum[n], lw=1.2, label=f"seed {seed}")
        right.plot(found.frequency, found.gain[n], lw=1.2)
    left.axhline(1, color="0.6", lw=1)
    right.axhline(0, color="0.6", lw=1)
    left.set(xlabel="frequency (1/Å)", ylabel="residual power / the model's")
    if found.spectrum.max() > WIDEST:
        left.set_yscale("log")
    right.set(
        xlabel="frequency (1/Å)", ylabel="share of the decoded\nimage left", ylim=_limits(found)
    )
    left.legend(fontsize=7, frameon=False)
    figure.suptitle("residuals by frequency", fontsize=10)
    return figure


def _limits(found: Predictive) -> tuple[float, float]:
    """Rings without signal have no gain to speak of."""
    limit = max(0.1, 1.3 * float(np.quantile(np.abs(found.gain), 0.8)))
    return -limit, limit
