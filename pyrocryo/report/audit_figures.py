"""Figures of an audit, from arrays; each function returns a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrocryo.diagnose.dimensions import Dimensions
from pyrocryo.diagnose.leak import PoseLeak, psi
from pyrocryo.identify import LinearICA
from pyrocryo.metrics.mcc import correlation

__all__ = ["components", "matches", "over_poses", "shares", "variances"]

LONGITUDES, LATITUDES, ANGLES = 24, 12, 24  # bins
FEWEST = 3  # particles in a bin that is shown
MOST_SHOWN = 12  # latents, or components


def shares(leak: PoseLeak) -> Figure:
    """R² of each latent less its floor, one row of bars a test."""
    count = len(leak.tests)
    figure = Figure(figsize=(3.2 * count + 0.5, 2.6), layout="constrained")
    names = [f"z{k + 1}" for k in leak.latents]
    panels = figure.subplots(1, count, squeeze=False, sharey="row")[0]
    for axes, test in zip(panels, leak.tests, strict=True):
        sure = test.p_each <= 0.05
        colours = ["C3" if one else "0.65" for one in sure]
        axes.bar(names, test.share, color=colours)
        axes.axhline(test.noticed, color="k", lw=1, ls=":")
        axes.set_title(f"{test.what}\np = {test.p:.2g}, n = {test.particles}", fontsize=9)
    panels[0].set_ylabel("share explained")
    panels[0].set_ylim(0, None)
    return figure


def over_poses(z: np.ndarray, rotation: np.ndarray, leak: PoseLeak) -> Figure:
    """Means of the latents that depend most on the view, and on the turn in the plane."""
    tests = {test.how: test for test in leak.tests}
    view, turn = tests.get("spherical harmonics"), tests.get("in-plane waves")
    figure = Figure(figsize=(9.2, 3.0), layout="constrained")
    width = [1.5, 1] if view is not None else [1]
    grid = figure.add_gridspec(1, len(width), width_ratios=width)
    if view is not None:
        axes = figure.add_subplot(grid[0, 0], projection="mollweide")
        k = leak.latents[int(view.share.argmax())]
        _sphere(figure, axes, _scaled(z[:, k]), rotation[:, 2], f"z{k + 1} by direction of view")
    if turn is not None:
        axes = figure.add_subplot(grid[0, len(width) - 1])
        k = leak.latents[int(turn.share.argmax())]
        _circle(axes, _scaled(z[:, k]), psi(rotation), f"z{k + 1} by turn in the plane")
    return figure


def variances(dims: Dimensions) -> Figure:
    """Variance of the means of each latent, and with posterior widths that of draws."""
    k = len(dims.variance)
    figure = Figure(figsize=(min(0.45 * k + 2.2, 9), 2.6), layout="constrained")
    axes = figure.subplots()
    at = np.arange(k)
    colours = ["C0" if one else "0.7" for one in dims.active]
    axes.bar(at, dims.variance, color=colours, label="posterior means")
    if dims.width is not None and dims.aggregate is not None:
        within = dims.aggregate - dims.variance
        axes.bar(at, within, bottom=dims.variance, color="C1", alpha=0.6, label="widths, on top")
        axes.axhline(1.0, color="k", lw=1, ls=":", label="standard normal prior")
    axes.set_xticks(at, [f"z{i + 1}" for i in at], fontsize=8)
    axes.set_ylabel("variance")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def components(ica: LinearICA) -> Figure:
    """Histograms of the components of a linear ICA, beside a Gaussian."""
    count = min(ica.sources.shape[1], MOST_SHOWN)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.2 * columns + 0.4, 1.9 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    x = np.linspace(-4.5, 4.5, 200)
    for k, axes in enumerate(panels):
        if k >= count:
            axes.set_axis_off()
            continue
        axes.hist(np.clip(ica.sources[:, k], -4.5, 4.5), 60, density=True, color="C0", alpha=0.6)
        axes.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color="k", lw=1)
        apart = "told apart" if ica.separated[k] else "not told apart"
        axes.set_title(f"{k + 1}: {ica.negentropy[k]:.3f} nats, {apart}", fontsize=8)
        axes.set_yticks([])
    return figure


def matches(runs: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    """|Correlation| of the latents of the first run with those of each other one."""
    others = range(1, min(len(runs), 5))
    figure = Figure(figsize=(2.5 * len(others) + 0.8, 2.7), layout="constrained")
    panels = figure.subplots(1, len(others), squeeze=False)[0]
    for axes, n in zip(panels, others, strict=True):
        size = np.abs(correlation(runs[0], runs[n]))
        picture = axes.imshow(size, vmin=0, vmax=1, cmap="viridis")
        axes.set_xticks(range(size.shape[1]), [f"z{i + 1}" for i in range(size.shape[1])])
        axes.set_yticks(range(size.shape[0]), [f"z{i + 1}" for i in range(size.shape[0])])
        axes.tick_params(labelsize=7)
        axes.set_xlabel(_short(names[n]), fontsize=8)
    panels[0].set_ylabel(_short(names[0]), fontsize=8)
    figure.colorbar(picture, ax=panels, label="|correlation|")
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"


def _scaled(z: np.ndarray) -> np.ndarray:
    return (z - z.mean()) / max(float(z.std()), 1e-300)


def _sphere(figure: Figure, axes: Axes, z: np.ndarray, view: np.ndarray, title: str) -> None:
    longitude = np.arctan2(view[:, 1], view[:, 0])
    edges = np.linspace(-np.pi, np.pi, LONGITUDES + 1), np.linspace(-1, 1, LATITUDES + 1)
    height = np.clip(view[:, 2], -1, 1)
    count, *_ = np.histogram2d(longitude, height, edges)
    total, *_ = np.histogram2d(longitude, height, edges, weights=z)
    mean = np.where(count >= FEWEST, total / np.maximum(count, 1), np.nan)
    limit = max(np.nanmax(np.abs(mean), initial=0.0), 0.3)
    picture = axes.pcolormesh(
        edges[0], np.arcsin(edges[1]), mean.T, cmap="RdBu_r", vmin=-limit, vmax=limit,
        rasterized=True,
    )  # fmt: skip
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=9)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="mean, in its sd")


def _circle(axes: Axes, z: np.ndarray, angle: np.ndarray, title: str) -> None:
    which = np.minimum(((angle + np.pi) / (2 * np.pi) * ANGLES).astype(int), ANGLES - 1)
    count = np.bincount(which, minlength=ANGLES)
    some = np.maximum(count, 1)
    mean = np.bincount(which, z, ANGLES) / some
    spread = np.sqrt(np.maximum(np.bincount(which, z**2, ANGLES) / some - mean**2, 0))
    error = spread / np.sqrt(some)
    at = -180 + 360 / ANGLES * (np.arange(ANGLES) + 0.5)
    shown = count >= FEWEST
    axes.fill_between(
        at[shown], (mean - 2 * error)[shown], (mean + 2 * error)[shown], color="C0", alpha=0.3
    )
    axes.plot(at[shown], mean[shown], color="C0")
    axes.axhline(0, color="k", lw=0.8)
    limit = max(0.3, 1.1 * float((np.abs(mean) + 2 * error)[shown].max(initial=0)))
    axes.set(xlim=(-180, 180), xticks=(-180, -90, 0, 90, 180), ylim=(-limit, limit))
    axes.set_xlabel("degrees")
    axes.set_ylabel("mean ± 2 s.e., in its sd")
    axes.set_title(title, fontsize=9)
