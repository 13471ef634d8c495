"""A fit on disk: the run folder, every file of it whole or absent."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo import identify, metrics, plots
from pyrocryo.diagnose.conformations import atoms, has_atoms
from pyrocryo.draws import posed
from pyrocryo.errors import InputError
from pyrocryo.files import replacing
from pyrocryo.io.figures import write_figure
from pyrocryo.io.motion import alanines
from pyrocryo.io.mrc import write_map, write_stack
from pyrocryo.io.save import save_poses
from pyrocryo.io.structure import write_structure
from pyrocryo.metrics.mcc import correlation
from pyrocryo.metrics.pose import in_plane_angle, mean_angle
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit, checkpoints
from pyrocryo.to_arviz import to_netcdf

__all__ = ["export", "new_folder", "write_json", "write_metrics"]

PACKAGES = ("torch", "pyro-ppl", "numpy", "scipy", "scikit-learn", "arviz")
STEPS = 7  # maps along an axis
AFTERWARDS = ("diagnose", "landscape")  # .json and figures of commands that look at a fit
PICTURES = 8  # images shown beside their reconstructions


def new_folder(path: str | Path, *, resume: bool | None = None) -> Path:
    """Makes a folder to write to, or checks a run folder to be resumed.

    Args:
        path: The folder.
        resume: Whether it may hold something; None where there is nothing that could be resumed.

    Raises:
        InputError: If it cannot be made or written to, or holds something already.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"out: {path} is a file, not a folder")
        if path.exists() and any(path.iterdir()) and not resume:
            or_else = "" if resume is None else ", or --resume this one"
            raise InputError(f"out: {path} is not empty; name a new folder{or_else}")
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / "config.json.test") as temporary:
            temporary.touch()
        (path / "config.json.test").unlink()
    except OSError as error:
        raise InputError(f"out: cannot write to {path} ({error.strerror})") from None
    return path


def export(
    fit: Fit,
    post: Any,
    out: str | Path,
    *,
    particles: Particles | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a fit and its posterior to a run folder.

    ``config.json`` (settings, versions, seeds, data), ``history.csv``, ``checkpoint.pt`` (state
    dicts), ``posterior.nc`` (ArviZ), ``metrics.json``, ``identify.json``, ``volumes/*.mrc`` and
    ``figures/`` (each as ``.png`` and ``.svg``); where the volume has atoms in space,
    ``volumes/*.pdb`` with a model a step; where poses were unknown, and particles are given,
    ``poses_seed*.star``. What ``pyrocryo diagnose`` and ``landscape`` found out about a fit that
    was there before is removed: it is not true of this one.

    Args:
        fit: A fit.
        post: Its posterior.
        out: The folder; existing files of these names are replaced.
        particles: What was fitted: its description and a hash of it go into ``config.json``.
        config: Further entries of ``config.json``.

    Returns:
        What ``metrics.json`` and ``identify.json`` hold, as ``{"metrics": ..., "identify": ...}``.
    """
    out = Path(out)
    for folder in (out, out / "volumes", out / "figures"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in AFTERWARDS:
        for path in (out / f"{name}.json", *(out / "figures").glob(f"{name}_*.png")):
            path.unlink(missing_ok=True)
    table, verdict = metrics.report(post), identify.report(fit, post, particles)
    write_json(out / "config.json", _config(fit, particles) | dict(config or {}))
    if particles is not None and fit.pairs[0].pose.latent:
        for chain, seed in enumerate(fit.seeds):
            save_poses(posed(fit, particles, chain=chain), out / f"poses_seed{seed}.star")
    _write_history(out / "history.csv", fit)
    checkpoints.write(fit, out / "checkpoint.pt")
    with replacing(out / "posterior.nc") as temporary:
        to_netcdf(post, temporary)
    write_metrics(out, table)
    write_json(out / "identify.json", verdict)
    paths = _write_volumes(out / "volumes", fit, post)
    _write_figures(out / "figures", fit, post, table, paths)
    return {"metrics": table, "identify": verdict}


def write_metrics(out: Path, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes ``metrics.json``, and its figure where any metric has a place on it."""
    write_json(out / "metrics.json", table)
    if any(name.startswith(plots.UNIT) for name in table):
        write_figure(out / "figures" / "metrics.png", plots.metrics(table), drawing=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; numbers that JSON has no name for (NaN, infinity) become null."""
    with replacing(path) as temporary:
        text = json.dumps(
            identify.plain(content), default=str, indent=1, ensure_ascii=False, allow_nan=False
        )
        temporary.write_text(text + "\n", encoding="utf-8")


def _config(fit: Fit, particles: Particles | None) -> dict[str, Any]:
    from pyrocryo import __version__

    pair = fit.pairs[0]
    versions = {"pyrocryo": __version__, "python": platform.python_version()}
    content = {
        "seeds": list(fit.seeds),
        "settings": asdict(fit.settings),
        "prior": pair.prior_name,
        "volume": type(pair.volume).__name__,
        "latents": pair.dim,
        "exact_kl": fit.exact_kl,
        "noise": [pair.noise.item() for pair in fit.pairs],
        "seconds": round(fit.seconds, 1),
        "versions": versions | {name: version(name) for name in PACKAGES},
    }
    if particles is not None:
        content["data"] = {
            "particles": len(particles),
            "frames": particles.frames,
            "box": particles.box,
            "pixel_size_in_angstroms": particles.pixel_size,
            "fields": list(particles.fields),
            "trained_on": len(particles.train),
            "offset": particles.offset,
            "scale": particles.scale,
            "sha256": particles.digest(),
        }
    return content


def _write_history(path: Path, fit: Fit) -> None:
    names = list(fit.history)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "step", *names])
        for n, seed in enumerate(fit.seeds):
            for step, row in enumerate(
                zip(*(fit.history[name][n] for name in names), strict=True)
            ):
                writer.writerow([seed, step, *(f"{value:.6g}" for value in row)])


def _write_volumes(folder: Path, fit: Fit, post: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps at the median of `z` and along each axis through it, and atoms, seed by seed.

    Returns:
        For each seed the maps `(K, steps, D, D)` (projected along the beam where they are 3-D)
        and the latent values `(K, steps)`.
    """
    import torch

    z = np.asarray(post["posterior"]["z"])
    shown = []
    for n, (seed, pair) in enumerate(zip(fit.seeds, fit.pairs, strict=True)):
        codes = z[n].reshape(-1, pair.dim)
        low, middle, high = np.quantile(codes, [0.02, 0.5, 0.98], axis=0)
        points = np.broadcast_to(middle, (pair.dim, STEPS, pair.dim)).copy()
        for k in range(pair.dim):
            points[k, :, k] = np.linspace(low[k], high[k], STEPS)
        maps = pair.density(torch.as_tensor(points)).cpu().numpy()
        centre = pair.density(torch.as_tensor(middle)).cpu().numpy()
        voxel = pair.box * float(fit.example.pixel_size) / maps.shape[-1]
        write_map(folder / f"seed{seed}_median.mrc", centre, voxel)
        for k in range(pair.dim):
            stem = f"seed{seed}_z{k + 1}"
            if pair.volume.dim == 2:
                write_stack(folder / f"{stem}.mrcs", maps[k], voxel)
            else:
                for step, volume in enumerate(maps[k]):
                    write_map(folder / f"{stem}_{step}.mrc", volume, voxel)
            if has_atoms(pair):  # where the maps have them: their origin is the first voxel
                positions = atoms(pair, points[k]) + (maps.shape[-1] // 2) * voxel
                write_structure(folder / f"{stem}.pdb", alanines(positions[0]), positions)
        flat = maps if pair.volume.dim == 2 else maps.sum(axis=2)
        shown.append((flat, points[np.arange(pair.dim), :, np.arange(pair.dim)]))
    return shown


def _write_figures(
    folder: Path,
    fit: Fit,
    post: Any,
    table: Mapping[str, Any],
    paths: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    figures = {"loss": plots.loss(fit.history["loss"], fit.seeds)}
    truth = post["constant_data"]["truth"] if "mcc_pearson" in table else None
    means = np.asarray(post["posterior"]["z"]).mean(axis=1)
    observed = np.asarray(post["observed_data"]["x"])
    clean = None
    if "image_correlation" in table:
        clean = np.asarray(post["posterior_predictive"]["clean"])[:, 0]
    box = observed.shape[-1]
    true = inferred = None
    if "pose_error_deg" in table and np.asarray(post["posterior"]["pose"]).shape[-1] == 2:
        true = in_plane_angle(np.asarray(post["constant_data"]["rotation"]))
        inferred = mean_angle(np.asarray(post["posterior"]["pose"]))
    for n, seed in enumerate(fit.seeds):
        if inferred is not None:
            figures[f"poses_seed{seed}"] = plots.poses(
                np.rad2deg(true.ravel()), np.rad2deg(inferred[n].ravel()), f"seed {seed}"
            )
        codes = means[n].reshape(-1, means.shape[-1])
        if truth is not None:
            factors = np.asarray(truth).reshape(len(codes), -1)
            figures[f"latents_seed{seed}"] = plots.latents(
                factors, codes, correlation(factors, codes), f"seed {seed}"
            )
        if clean is not None:
            figures[f"images_seed{seed}"] = plots.images(
                observed.reshape(-1, box, box)[:PICTURES],
                clean[n].reshape(-1, box, box)[:PICTURES],
                f"seed {seed}",
            )
        if means.ndim == 4:
            steps = np.diff(means[n], axis=1).reshape(-1, means.shape[-1])
            figures[f"increments_seed{seed}"] = plots.increments(steps, f"seed {seed}")
        figures[f"traversal_seed{seed}"] = plots.traversal(
            *paths[n], f"along each axis (2 % to 98 % of z), seed {seed}"
        )
    for name, figure in figures.items():
        write_figure(folder / f"{name}.png", figure, drawing=True)
