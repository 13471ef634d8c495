"""What ``pyrocryo landscape`` leaves in a run folder: one JSON file, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyrocryo.diagnose import Heterogeneity, Populations
from pyrocryo.diagnose.free_energy import KILOJOULE
from pyrocryo.io.figures import write_figure
from pyrocryo.io.run_folder import write_json

__all__ = ["caveat", "heterogeneity_figure", "populations_figure", "write_landscape"]

NAMED = ("Consistent with identified axes", "Given, not found", "There is one latent")
HIGHEST = 8.0  # k_B T shown


def caveat(sentence: str | None) -> str:
    """What must stand beside a profile, given the verdict of ``identify.json``; '' for nothing."""
    if sentence is None:
        return "Nobody has asked whether these axes are identified: see pyrocryo identify."
    if sentence.startswith(NAMED):
        return ""
    verdict = sentence.split(":", 1)[0].strip(". ")
    return f"{verdict}: a profile along one latent is that of an arbitrary coordinate."


def write_landscape(
    folder: str | Path,
    heterogeneity: Heterogeneity | None,
    axes: Sequence[Populations],
    *,
    verdict: str | None = None,
) -> dict[str, Any]:
    """Writes ``landscape.json`` and ``figures/landscape_*.png`` into a run folder.

    Args:
        folder: The run folder; files of these names are replaced.
        heterogeneity: Of :func:`pyrocryo.diagnose.heterogeneity`; None where it was not asked.
        axes: Of :func:`pyrocryo.diagnose.populations`.
        verdict: The sentence of ``identify.json``.

    Returns:
        What the JSON file holds: ``heterogeneity``, ``axes`` and ``caveat``.
    """
    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    note = caveat(verdict)
    told = {
        "heterogeneity": None if heterogeneity is None else heterogeneity.as_dict(),
        "caveat": note,
        "axes": [axis.as_dict() for axis in axes],
    }
    figures = {}
    if heterogeneity is not None:
        figures["landscape_heterogeneity"] = heterogeneity_figure(heterogeneity)
    if axes:
        figures["landscape_populations"] = populations_figure(axes, note)
    for name, figure in figures.items():
        write_figure(folder / "figures" / f"{name}.png", figure)
    write_json(folder / "landscape.json", told)
    return told


def heterogeneity_figure(found: Heterogeneity) -> Figure:
    """Gains of held-out particles, KL by direction, and gains by latent where they were asked."""
    count = 2 + (found.steps is not None)
    figure = Figure(figsize=(3.3 * count, 3.0), layout="constrained")
    panels = figure.subplots(1, count)
    low, high = np.quantile(found.gain, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-9), 41)
    for n, (seed, gain) in enumerate(zip(found.seeds, found.gain, strict=True)):
        panels[0].hist(gain, edges, histtype="step", color=f"C{n}", label=f"seed {seed}")
        panels[0].axvline(gain.mean(), color=f"C{n}", ls="--", lw=1)
    panels[0].axvline(0, color="0.7", lw=0.8, zorder=0)
    panels[0].set(xlabel="gain over a homogeneous fit (nats)", ylabel="held-out particles")
    panels[0].legend(fontsize=7, frameon=False)
    width = 0.7 / len(found.seeds)
    offsets = width * (np.arange(len(found.seeds)) - 0.5 * (len(found.seeds) - 1))
    for n, (offset, direction) in enumerate(zip(offsets, found.directions, strict=True)):
        at = np.arange(len(direction.kl)) + 1
        bars = panels[1].bar(at + offset, direction.kl, width, color=f"C{n}")
        for bar, active in zip(bars, direction.active, strict=True):
            bar.set_alpha(1.0 if active else 0.3)
    panels[1].set(xlabel="principal direction of z", ylabel="KL (nats a particle)", xticks=at)
    panels[1].set_title("pale: inactive", fontsize=8)
    if found.steps is not None:
        for n, offset in enumerate(offsets):
            panels[2].errorbar(
                at + offset, found.steps[n], 2 * found.steps_error[n],
                fmt="o", ms=4, capsize=2, color=f"C{n}",
            )  # fmt: skip
        panels[2].axhline(0, color="0.7", lw=0.8, zorder=0)
        panels[2].set(xlabel="latents", ylabel="gain over one less (nats)", xticks=at)
        panels[2].set_title("± 2 standard errors", fontsize=8)
    title = found.sentence.split(": on", 1)[0].split(";", 1)[0]
    figure.suptitle(title, fontsize=9)
    return figure


def populations_figure(axes: Sequence[Populations], note: str = "") -> Figure:
    """Populations above, free energies below, one column a latent; ``note`` is the title."""
    figure = Figure(figsize=(3.6 * len(axes) + 0.4, 5.4), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        above, below = panels[:, column]
        size, at = np.diff(axis.edges), axis.centres
        name = f"z{axis.axis + 1}"
        above.stairs(axis.means / size, axis.edges, color="0.75", fill=True, label="means")
        bins = slice(1, -1)  # the outer ones are open and have no density
        low, high, law = ((part / size)[bins] for part in (axis.low, axis.high, axis.population))
        above.fill_between(at[bins], low, high, color="C0", alpha=0.3, lw=0)
        if len(axis.per_seed) > 1:
            above.plot(at[bins], (axis.per_seed / size).T[bins], color="C0", lw=0.5, alpha=0.6)
        above.plot(at[bins], law, color="C0", label="deconvolved, 95 %")
        above.set(ylabel="density" if column == 0 else None, ylim=(0, None))
        above.set_title(name, fontsize=10)
        band = 2 * axis.free_energy_error
        below.fill_between(
            at, axis.free_energy - band, axis.free_energy + band, color="C0", alpha=0.3, lw=0
        )
        below.plot(at, axis.free_energy, color="C0", label="per unit of the latent")
        below.plot(at, axis.along_motion, color="C3", lw=1, ls="--", label="per unit of motion")
        top = 1.15 * min(max(float(np.nanmax(axis.free_energy)), 2.0), HIGHEST)
        below.set(xlabel=name, ylim=(-0.5, top))
        below.set_ylabel("free energy (k_B T)" if column == 0 else "")
        if axis.temperature is not None and column == len(axes) - 1:
            unit = KILOJOULE * axis.temperature
            right = below.secondary_yaxis(
                "right", functions=(lambda x, u=unit: x * u, lambda x, u=unit: x / u)
            )
            right.set_ylabel(f"kJ/mol at {axis.temperature:g} K")
    panels[0, 0].legend(fontsize=7, frameon=False)
    panels[1, 0].legend(fontsize=7, frameon=False)
    if note:
        figure.suptitle(_wrapped(note, 44 * len(axes)), fontsize=8, color="C3")
    return figure


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
