"""Figures, from arrays; each function returns a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyrocryo.errors import InputError
from pyrocryo.rotations import euler_from_matrix

__all__ = [
    "defocus",
    "images",
    "increments",
    "latents",
    "loss",
    "metrics",
    "montage",
    "poses",
    "traversal",
    "views",
]

SHOWN = 1500  # points in a scatter plot
LOWEST = -0.15  # of metrics shown on a 0-1 scale
COLOURS = ("C0", "C1", "C2", "C4", "C5", "C6", "C8", "C9")  # of models; C3 is a floor
UNIT = (
    "mcc", "r2", "mig", "modularity", "dci", "explicitness", "sap", "irs", "betavae", "factorvae",
)  # fmt: skip


def loss(history: np.ndarray, seeds: Sequence[int]) -> Figure:
    """Negative ELBO a particle by step, `(seeds, steps)`, smoothed over 2 % of the steps."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    width = max(1, history.shape[1] // 50)
    kernel = np.ones(width) / width
    for seed, curve in zip(seeds, history, strict=True):
        smooth = np.convolve(curve, kernel, mode="valid")
        axes.plot(np.arange(len(smooth)) + width, smooth, lw=1, label=f"seed {seed}")
    late = history[:, history.shape[1] // 10 :]
    low, high = late.min(), np.quantile(late, 0.98)
    axes.set_ylim(low - 0.05 * (high - low) - 1e-6, high + 0.25 * (high - low) + 1e-6)
    axes.set(xlabel="step", ylabel="−ELBO (nats a particle)")
    axes.legend(fontsize=8, ncols=2, frameon=False)
    return figure


def latents(truth: np.ndarray, z: np.ndarray, correlation: np.ndarray, title: str) -> Figure:
    """Every latent against every true factor.

    Args:
        truth: `(N, factors)`.
        z: `(N, latents)` posterior means of one seed.
        correlation: `(factors, latents)`, printed in each panel.
        title: Title.
    """
    rows, columns = truth.shape[1], z.shape[1]
    figure = Figure(figsize=(1.9 * columns + 0.6, 1.9 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
    step = max(1, len(z) // SHOWN)
    for i in range(rows):
        for k in range(columns):
            axes = panels[i, k]
            axes.plot(z[::step, k], truth[::step, i], ".", ms=2, alpha=0.4, rasterized=True)
            axes.set_title(f"r = {correlation[i, k]:.2f}", fontsize=9)
            if k == 0:
                axes.set_ylabel(f"true {i + 1}")
            if i == rows - 1:
                axes.set_xlabel(f"inferred z{k + 1}")
    figure.suptitle(title, fontsize=10)
    return figure


def images(observed: np.ndarray, clean: np.ndarray, title: str) -> Figure:
    """Held-out images, what the model decodes for them, and the residual.

    Args:
        observed: `(n, D, D)`.
        clean: `(n, D, D)` as decoded, without noise.
        title: Title.
    """
    n = len(observed)
    figure = Figure(figsize=(1.3 * n, 4.2), layout="constrained")
    panels = figure.subplots(3, n, squeeze=False)
    limit = float(np.quantile(np.abs(observed), 0.995))
    rows = (("image", observed), ("decoded", clean), ("residual", observed - clean))
    for axes_row, (name, stack) in zip(panels, rows, strict=True):
        for axes, picture in zip(axes_row, stack, strict=True):
            axes.imshow(picture, cmap="gray", vmin=-limit, vmax=limit, origin="lower")
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name)
    figure.suptitle(title, fontsize=10)
    return figure


def montage(
    pictures: Sequence[np.ndarray | None], names: Sequence[Any], title: str, *, columns: int = 8
) -> Figure:
    """Pictures `(D, D)` of any size and their names, row by row; None leaves a place empty.

    Grey values run from the 1st to the 99th percentile of each.

    Args:
        pictures: In order.
        names: Written above each.
        title: Title.
        columns: Pictures in a row.
    """
    rows = -(-len(pictures) // columns)
    size = (1.25 * columns, 1.4 * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, picture, name in zip(panels, pictures, names, strict=False):
        if picture is None:
            continue
        low, high = np.nanquantile(picture, [0.01, 0.99])
        axes.imshow(picture, cmap="gray", vmin=low, vmax=high, origin="lower")
        axes.set_title(str(name), fontsize=7, pad=2)
    figure.suptitle(title, fontsize=10)
    return figure


def views(rotation: np.ndarray, title: str) -> Figure:
    """Directions of view of rotations `(N, 3, 3)` on the sphere, and angles in the plane.

    Areas on the map are true (Mollweide); colours count views in bins as wide as each other,
    over what uniform views would give there.
    """
    beam = np.asarray(rotation)[:, 2]
    angle = euler_from_matrix(rotation)[:, 2]
    flat = (np.abs(beam[:, 2]) > 1 - 1e-6).all()
    figure = Figure(figsize=(3.6 if flat else 9, 3.4), layout="constrained")
    if not flat:
        axes = figure.add_subplot(1, 2, 1, projection="mollweide")
        bands, sectors = (12, 24) if len(beam) > 2000 else (6, 12)
        heights, turns = np.linspace(-1, 1, bands + 1), np.linspace(-np.pi, np.pi, sectors + 1)
        fine = np.linspace(-1, 1, 16 * bands + 1)  # bins are drawn in slices: edges are curved
        longitude = np.arctan2(beam[:, 1], beam[:, 0])
        count, _, _ = np.histogram2d(beam[:, 2].clip(-1, 1), longitude, (heights, turns))
        level = np.repeat(count / count.mean(), 16, axis=0)
        shown = axes.pcolormesh(turns, np.arcsin(fine), level, cmap="viridis")
        if len(beam) <= SHOWN:
            axes.plot(
                longitude, np.arcsin(beam[:, 2].clip(-1, 1)), ".", ms=2, color="w", alpha=0.6
            )
        axes.set_xticks([])
        axes.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]))
        axes.tick_params(labelsize=7)
        axes.set_title("views, over uniform ones", fontsize=9)
        figure.colorbar(shown, ax=axes, shrink=0.7)
    axes = figure.add_subplot(1, 1 if flat else 2, 1 if flat else 2)
    axes.hist(angle, np.linspace(-180, 180, 37), color="C0")
    axes.set(xlabel="ψ, turn in the plane (°)", ylabel="images", xticks=np.arange(-180, 181, 90))
    figure.suptitle(title, fontsize=10)
    return figure


def defocus(ctf: np.ndarray, title: str) -> Figure:
    """Histograms of the mean defocus and the astigmatism of CTFs `(N, 7)` or `(N, 8)`."""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(1e-4 * ctf[:, :2].mean(axis=1), 40, color="C0")
    left.set(xlabel="defocus (µm)", ylabel="images")
    right.hist(np.abs(ctf[:, 0] - ctf[:, 1]), 40, color="C1")
    right.set(xlabel="astigmatism (Å)")
    figure.suptitle(title, fontsize=10)
    return figure


def poses(true: np.ndarray, inferred: np.ndarray, title: str) -> Figure:
    """Inferred in-plane angles against true ones; the offset between them is free.

    Args:
        true: `(N,)` degrees.
        inferred: `(N,)` degrees.
        title: Title.
    """
    figure = Figure(figsize=(3.4, 3.3), layout="constrained")
    axes = figure.subplots()
    step = max(1, len(true) // SHOWN)
    axes.plot(true[::step], inferred[::step], ".", ms=2, alpha=0.4, rasterized=True)
    ticks = np.arange(-180, 181, 90)
    axes.set(xticks=ticks, yticks=ticks, xlim=(-180, 180), ylim=(-180, 180), aspect="equal")
    axes.set(xlabel="true angle (°)", ylabel="inferred angle (°)")
    axes.set_title(title, fontsize=10)
    return figure


def traversal(maps: np.ndarray, values: np.ndarray, title: str) -> Figure:
    """What moving along each latent does to the molecule.

    Args:
        maps: `(K, steps, D, D)`: densities, or their projections.
        values: `(K, steps)` latent values.
        title: Title.
    """
    rows, columns = maps.shape[:2]
    figure = Figure(figsize=(1.2 * columns + 0.4, 1.35 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    low, high = float(maps.min()), float(maps.max())
    for k in range(rows):
        for n in range(columns):
            axes = panels[k, n]
            axes.imshow(maps[k, n], cmap="magma", vmin=low, vmax=high, origin="lower")
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{values[k, n]:+.1f}", fontsize=8)
        panels[k, 0].set_ylabel(f"z{k + 1}")
    figure.suptitle(title, fontsize=10)
    return figure


def halves(curves: np.ndarray, points: np.ndarray, voxel_size: float) -> Figure:
    """Fourier shell correlations of half maps along each latent.

    Args:
        curves: `(K, along, n)`, from the mean to Nyquist.
        points: `(K, along, K)` latents of the maps.
        voxel_size: Å.
    """
    count, rows, columns = len(curves), -(-len(curves) // 4), min(len(curves), 4)
    figure = Figure(figsize=(3.2 * columns + 0.6, 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    spatial = np.arange(curves.shape[-1]) / (2 * (curves.shape[-1] - 1) * voxel_size)
    for k, (axes, line) in enumerate(zip(panels, curves, strict=False)):
        for n, curve in enumerate(line):
            shade = 0.1 + 0.7 * n / max(1, len(line) - 1)
            axes.plot(
                spatial, curve, lw=1, color=(shade, 0.3, 1 - shade), label=f"{points[k, n, k]:.2f}"
            )
        axes.axhline(0.143, color="0.5", lw=0.8, ls="--")
        axes.set(xlabel="spatial frequency (1/Å)", ylim=(-0.15, 1.05), title=f"along z{k + 1}")
        axes.legend(fontsize=7, frameon=False, title=f"z{k + 1}", title_fontsize=7)
    for axes in panels[count:]:
        axes.remove()
    panels[0].set_ylabel("FSC of half maps")
    return figure


def increments(steps: np.ndarray, title: str) -> Figure:
    """Histogram of the steps of each latent, beside Laplace and Gaussian ones as large.

    On a logarithmic axis, where sparse steps are a tent and Gaussian ones a parabola.

    Args:
        steps: `(n, K)`, such as ``np.diff(z, axis=1).reshape(-1, K)``.
        title: Title.
    """
    size = steps.shape[1]
    figure = Figure(figsize=(2.3 * size + 0.6, 2.9), layout="constrained")
    for k, axes in enumerate(figure.subplots(1, size, squeeze=False, sharey="row")[0]):
        white = (steps[:, k] - steps[:, k].mean()) / max(float(steps[:, k].std()), 1e-12)
        edges = np.linspace(-6.25, 6.25, 51)
        count, _ = np.histogram(white, edges)
        middle, density = (edges[1:] + edges[:-1]) / 2, count / (len(white) * np.diff(edges))
        axes.plot(middle[count > 0], density[count > 0], ".", color="C0", ms=5, label="steps")
        x = np.linspace(-6.25, 6.25, 401)
        laplace, gaussian = np.exp(-np.sqrt(2) * np.abs(x)) / np.sqrt(2), np.exp(-(x**2) / 2)
        axes.plot(x, laplace, color="C3", lw=1, label="Laplace")
        axes.plot(x, gaussian / np.sqrt(2 * np.pi), color="0.4", lw=1, label="Gaussian")
        axes.set(yscale="log", ylim=(0.2 / len(white), 2), xlabel=f"step of z{k + 1} / its sd")
        if k == 0:
            axes.set_ylabel("density")
            axes.legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def metrics(tables: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Metrics on a 0-1 scale, of one model or of several, beside what nothing learned gives.

    Dots are seeds and bars their means, one colour a model. Grey ticks are the floors of permuted
    latents, red ones those of random rotations of the factors (MCC), each model's own. A mean is
    drawn where every seed has a value; what lies below the axis is a triangle at its edge.

    Args:
        tables: What :func:`pyrocryo.metrics.suite` or ``report`` gives, or model → such a table.
    """
    if any("per_seed" in table for table in tables.values()):
        tables = {"": tables}
    names = list(dict.fromkeys(n for t in tables.values() for n in t if n.startswith(UNIT)))
    if not names:
        raise InputError("tables: expected metrics on a 0-1 scale, got none")
    figure = Figure(figsize=(0.75 * len(names) + 1.6, 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.7 / len(tables)
    for m, (model, table) in enumerate(tables.items()):
        for n, name in enumerate(names):
            if name not in table:
                continue
            row = table[name]
            values = np.asarray(row["per_seed"], dtype=np.float64)
            x = n + (m - (len(tables) - 1) / 2) * width
            for floor, colour in ((row["floor"], "0.55"), (row.get("rotation_floor"), "C3")):
                if floor is not None:
                    axes.hlines(floor, x - 0.45 * width, x + 0.45 * width, colour, lw=2, zorder=1)
            spread = np.linspace(-0.25, 0.25, len(values)) * width if len(values) > 1 else 0.0
            where = np.broadcast_to(x + spread, values.shape)
            axes.plot(where, values, ".", color=COLOURS[m % len(COLOURS)], ms=4, alpha=0.6)
            below = values < LOWEST
            if below.any():
                edge = np.full(below.sum(), LOWEST + 0.02)
                axes.plot(where[below], edge, "v", color=COLOURS[m % len(COLOURS)], ms=4)
            if np.isfinite(values).all():
                mean, half = values.mean(), 0.4 * width
                axes.hlines(mean, x - half, x + half, COLOURS[m % len(COLOURS)], lw=2, zorder=3)
        if model:
            axes.plot([], [], "o-", color=COLOURS[m % len(COLOURS)], ms=4, label=model)
    axes.plot([], [], color="0.55", lw=2, label="permuted latents")
    axes.plot([], [], color="C3", lw=2, label="random rotation")
    for n in range(1, len(names)):
        axes.axvline(n - 0.5, color="0.92", lw=0.8, zorder=0)
    labels = [name.replace("_", "\n", 1) for name in names]
    axes.set_xticks(range(len(names)), labels, fontsize=8, rotation=30, ha="right")
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(LOWEST, 1.05), ylabel="score")
    figure.legend(loc="outside upper center", ncols=len(tables) + 2, fontsize=8, frameon=False)
    return figure
