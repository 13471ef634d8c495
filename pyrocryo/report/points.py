"""Particles of a run as columns of numbers, and their pictures, for the page's scatter plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.io import netcdf
from pyrocryo.metrics.pose import mean_angle
from pyrocryo.report.pictures import binned_side, sprite
from pyrocryo.rotations import euler_from_matrix

__all__ = ["points", "read_arrays"]

MOST = 1500  # images shown
NUMBERS = 120_000  # in columns of one number a seed; more latents or seeds, fewer images
PIXELS = 2_000_000  # of all pictures: 500 images of 64 pixels along an edge have one
SIDE = 64  # pixels of a picture, at most
CLASSES = 6  # different values, up to which a column is one of groups
GROUPS = ("posterior", "log_likelihood", "sample_stats", "constant_data")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of ``posterior.nc`` that a page needs, by ``group/name``; the first images only.

    Read without ArviZ, which takes seconds to load and would hold every replicated image.

    Raises:
        InputError: If the file is not what a run of pyrocryo writes.
    """
    import h5py

    netcdf.check(path)
    try:
        with h5py.File(path) as file:
            found = {
                f"{group}/{name}": np.asarray(item)
                for group in GROUPS
                if group in file
                for name, item in file[group].items()
                if item.dtype.kind in "iuf"
            }
            frames = found["posterior/z"].shape[3:-1]
            most = -(-_pictured(file) // (frames[0] if frames else 1))
            pictures = {"observed_data/x": np.s_[:most]}
            pictures["posterior_predictive/clean"] = np.s_[:, 0, :most]
            found |= {n: np.asarray(file[n][at]) for n, at in pictures.items() if n in file}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a posterior of pyrocryo's ({error})") from None
    return found


def _pictured(file: Any) -> int:
    """How many images are to have a picture."""
    if "observed_data/x" not in file:
        return 0
    side = binned_side(file["observed_data/x"].shape[-1], SIDE)
    return min(MOST, PIXELS // side**2)


def points(
    found: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    best: int,
    checked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Columns and pictures for the page.

    Args:
        found: What :func:`read_arrays` gives.
        seeds: Names of the chains.
        best: The chain whose decoded images are shown beside the observed ones.
        checked: ``diagnose.json``, for its k-hat.

    Returns:
        ``index`` and ``frame`` of each image; ``columns``: name, unit, kind ("linear", "angle" or
        "class") and values, either `(n,)` or one such list a seed; ``pictures``: sprites.
    """
    z = found["posterior/z"]  # (S, draws, N, [T,] K)
    frames = z.shape[3] if z.ndim == 5 else 1
    most = min(MOST, NUMBERS // (len(z) * (2 * z.shape[-1] + 3)))
    rows = max(1, min(z.shape[2], most // frames))
    n = rows * frames

    def each(x: np.ndarray) -> np.ndarray:
        """Of `(N, [T,] ...)` a row an image; one value a particle is for all its frames."""
        x = x[:rows]
        told = x.ndim > 1 and z.ndim == 5 and x.shape[1] == frames
        return x.reshape(n, *x.shape[2:]) if told else np.repeat(x, frames, axis=0)

    columns = [
        *_latents(z[:, :, :rows].reshape(*z.shape[:2], n, z.shape[-1])),
        *_known(found, each),
        *_inferred(found, each),
        *_weights(found, each),
        *_khat(found, checked, each),
    ]
    result: dict[str, Any] = {
        "frames": frames,
        "index": each(found["posterior/particle"]).tolist(),
        "frame": (np.arange(n) % frames).tolist() if frames > 1 else None,
        "columns": columns,
        "pictures": _pictures(found, seeds, best, n),
    }
    return result


def _column(name: str, values: np.ndarray, unit: str = "", kind: str = "linear") -> dict[str, Any]:
    """Numbers to four digits; what is not finite is null."""
    values = np.asarray(values, dtype=np.float64)
    if kind == "linear" and values.ndim == 1 and len(np.unique(values)) <= CLASSES:
        kind = "class"
    nested = values if values.ndim == 2 else values[None]
    told = [[float(f"{v:.4g}") if np.isfinite(v) else None for v in row] for row in nested]
    return {
        "name": name, "unit": unit, "kind": kind, "each": values.ndim == 2,
        "values": told if values.ndim == 2 else told[0],
    }  # fmt: skip


def _latents(z: np.ndarray) -> list[dict[str, Any]]:
    mean, sd = z.mean(axis=1), z.std(axis=1)
    size = range(z.shape[-1])
    told = [_column(f"z{k + 1}", mean[..., k]) for k in size]
    return told + [_column(f"sd of z{k + 1}", sd[..., k]) for k in size] * (z.shape[1] > 1)


def _known(found: Mapping[str, np.ndarray], each: Any) -> list[dict[str, Any]]:
    told = []
    if (truth := found.get("constant_data/truth")) is not None:
        truth = each(truth)
        told += [_column(f"true {k + 1}", truth[:, k]) for k in range(truth.shape[1])]
    for name, unit in (("temperature", "K"), ("time", "s")):
        if (values := found.get(f"constant_data/{name}")) is not None:
            told.append(_column(name, each(values), unit))
    rotation = found.get("constant_data/true_rotation", found.get("constant_data/rotation"))
    if rotation is not None:
        rotation = each(rotation)
        euler = euler_from_matrix(rotation)
        if (np.abs(rotation[:, 2, 2]) < 1 - 1e-6).any():
            told.append(_column("pose: direction (rot)", euler[:, 0], "°", "angle"))
            told.append(_column("pose: tilt", euler[:, 1], "°"))
        told.append(_column("pose: in-plane angle", euler[:, 2], "°", "angle"))
    return told


def _inferred(found: Mapping[str, np.ndarray], each: Any) -> list[dict[str, Any]]:
    pose = found.get("posterior/pose")
    if pose is None or pose.shape[-1] != 2:
        return []
    angles = np.stack([each(np.rad2deg(seed)) for seed in mean_angle(pose)])
    return [_column("inferred in-plane angle", angles, "°", "angle")]


def _weights(found: Mapping[str, np.ndarray], each: Any) -> list[dict[str, Any]]:
    names = ("log_likelihood/x", "sample_stats/log_prior", "sample_stats/log_q")
    if any(name not in found for name in names):
        return []
    likelihood, prior, q = (found[name].astype(np.float64) for name in names)  # (S, draws, N)
    log = likelihood + prior - q
    elbo = log.mean(axis=1)
    told = [_column("ELBO", np.stack([each(seed) for seed in elbo]), "nats")]
    if log.shape[1] >= 10:
        weight = np.exp(log - log.max(axis=1, keepdims=True))
        share = weight.sum(axis=1) ** 2 / (weight**2).sum(axis=1) / log.shape[1]
        share = np.stack([each(seed) for seed in share])
        told.append(_column("effective share of draws", share))
    return told


def _khat(
    found: Mapping[str, np.ndarray], checked: Mapping[str, Any] | None, each: Any
) -> list[dict[str, Any]]:
    """k-hat of ``diagnose.json``, for the particles that are in both."""
    importance = (checked or {}).get("importance") or {}
    rows, values = (checked or {}).get("particles"), importance.get("khat")
    if not rows or not values or len(values) != len(found["posterior/z"]):
        return []
    index = found["posterior/particle"]
    place = {int(row): n for n, row in enumerate(rows)}
    khat = np.full((len(values), len(index)), np.nan)
    for seed, row in enumerate(values):
        for n, particle in enumerate(index):
            value = row[place[int(particle)]] if int(particle) in place else None
            khat[seed, n] = np.nan if value is None else value
    if not np.isfinite(khat).any():
        return []
    return [_column("k-hat", np.stack([each(seed) for seed in khat]))]


def _pictures(
    found: Mapping[str, np.ndarray], seeds: Sequence[int], best: int, n: int
) -> list[dict[str, Any]]:
    observed = found.get("observed_data/x")
    if observed is None:
        return []
    box = observed.shape[-1]
    told = [{"name": "image", **sprite(observed.reshape(-1, box, box)[:n], SIDE)}]
    clean = found.get("posterior_predictive/clean")
    if clean is not None:
        decoded = clean[best].reshape(-1, box, box)[:n]
        told.append({"name": f"decoded (seed {seeds[best]})", **sprite(decoded, SIDE)})
    return told
