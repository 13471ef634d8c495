"""Volumes at the centres of clusters of particles, and who belongs to which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrocryo import draws
from pyrocryo.errors import InputError
from pyrocryo.files import replacing
from pyrocryo.io.annotated import chain_of
from pyrocryo.io.motion import CONTOUR
from pyrocryo.io.mrc import write_map
from pyrocryo.io.run_folder import write_json
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Clusters", "clusters", "decoded", "write_clusters"]

STARTS = 10  # of k-means


@dataclass(frozen=True)
class Clusters:
    """Particles by conformation. Clusters are in the order of their first latent.

    Attributes:
        label: `(N,)` cluster of each image, from 0; frames of a molecule one after another.
        centre: `(C, K)` posterior means of the particles nearest to the clusters' means.
        nearest: `(C,)` rows of these particles among the N.
        count: `(C,)` particles of each.
    """

    label: np.ndarray
    centre: np.ndarray
    nearest: np.ndarray
    count: np.ndarray


def clusters(z: np.ndarray, count: int, *, seed: int = 0) -> Clusters:
    """k-means over latents, centred on particles, as cryoDRGN's analysis has it.

    A mean of many conformations need not be one of them, so the nearest particle stands for it.

    Args:
        z: `(N, K)` posterior means.
        count: C, how many clusters.
        seed: Of k-means.

    Raises:
        InputError: If latents are not finite, or fewer than clusters.
    """
    from sklearn.cluster import KMeans

    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or not z.size or not np.isfinite(z).all():
        raise InputError(f"z: expected finite numbers (N, K), got shape {z.shape}")
    if not 1 <= count <= len(np.unique(z, axis=0)):
        raise InputError(f"clusters: expected 1 to {len(z)}, the different particles, got {count}")
    found = KMeans(count, n_init=STARTS, random_state=seed).fit(z)
    order = np.lexsort(found.cluster_centers_.T[::-1])
    rank = np.empty_like(order)
    rank[order] = np.arange(count)
    label, middle = rank[found.labels_], found.cluster_centers_[order]
    near = np.array(
        [
            rows[np.argmin(((z[rows] - middle[n]) ** 2).sum(axis=1))]
            for n, rows in enumerate(np.flatnonzero(label == n) for n in range(count))
        ]
    )
    return Clusters(label, z[near], near, np.bincount(label, minlength=count))


def decoded(pair: Pair, z: np.ndarray, pixel_size: float) -> tuple[np.ndarray, float]:
    """Maps `(C, D, D[, D])` float32 of conformations `(C, K)`, one at a time, and Å per voxel."""
    maps = [pair.density(torch.as_tensor(one)).float().cpu().numpy() for one in z]
    return np.stack(maps), pair.box * pixel_size / maps[0].shape[-1]


def write_clusters(
    out: str | Path,
    fit: Fit,
    particles: Particles,
    count: int,
    *,
    seed: int | None = None,
    of: Clusters | None = None,
) -> tuple[Clusters, list[Path]]:
    """Writes a map for each cluster of particles, lists of them, and a script for ChimeraX.

    ``cluster_01.mrc``, ... at the posterior mean of the particle nearest to each cluster's mean
    (origin 0 at the first voxel, as all maps here); ``cluster_01.txt``, ... rows of the stack,
    from 0, to reconstruct a map from; ``clusters.json`` (latents, counts, the particle that stands
    for each); and, for maps in space, ``clusters.cxc``, which shows them side by side.

    The label as a column of the particles' own file:
    ``io.annotate(path, out, fit, particles, further={"cluster": found.label})``, or one cluster
    alone: ``io.select(path, out, np.flatnonzero(found.label == 2))``.

    Args:
        out: The folder; files of these names are replaced.
        fit: A fit.
        particles: Those to cluster.
        count: How many clusters.
        seed: Which seed of a fit of several.
        of: Clusters that are there already.

    Returns:
        The clusters, and the maps.

    Raises:
        InputError: If it is not clear which seed, or there are fewer particles than clusters.
    """
    chain = chain_of(fit.seeds, seed)
    pair = fit.pairs[chain]
    if of is None:
        mean, _ = draws.moments(fit, particles, chain=chain)
        of = clusters(mean.reshape(-1, pair.dim), count)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    rows = particles.image_rows.reshape(-1)
    maps, voxel = decoded(pair, of.centre, float(fit.example.pixel_size))
    digits, written = max(2, len(str(count))), []
    for n, array in enumerate(maps):
        stem = f"cluster_{n + 1:0{digits}d}"
        written.append(out / f"{stem}.mrc")
        write_map(written[-1], array, voxel)
        with replacing(out / f"{stem}.txt") as temporary:
            np.savetxt(temporary, rows[of.label == n], fmt="%d")
    told: dict[str, Any] = {
        "seed": fit.seeds[chain],
        "maps": [path.name for path in written],
        "count": of.count,
        "share": of.count / of.count.sum(),
        "z": of.centre,
        "nearest_row": rows[of.nearest],
        "voxel_size_in_angstroms": voxel,
    }
    write_json(out / "clusters.json", told)
    if pair.volume.dim == 3:
        level = float(maps.mean(dtype=np.float64) + CONTOUR * maps.std(dtype=np.float64))
        with replacing(out / "clusters.cxc") as temporary:
            temporary.write_text(_script(written, of.count, level), encoding="utf-8")
    return of, written


def _script(maps: list[Path], count: np.ndarray, level: float) -> str:
    """Commands of ChimeraX; it looks for files beside the script."""
    shares = ", ".join(f"{100 * part:.0f} %" for part in count / count.sum())
    lines = [
        f"# {len(maps)} clusters of particles ({shares}), side by side",
        "# Open it in a session with nothing else open: chimerax clusters.cxc",
        *(f"open {path.name}" for path in maps),
        f"volume #1-{len(maps)} style surface step 1 level {level:.6g}",
        "rainbow models",
        "tile",
        "set bgColor white",
        "lighting soft",
        "view",
    ]
    return "\n".join(lines) + "\n"
