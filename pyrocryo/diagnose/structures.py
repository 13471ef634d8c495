"""Decoded structures and maps against those that simulated particles were made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyrocryo.diagnose.common import models
from pyrocryo.diagnose.conformations import atoms, has_atoms, posterior_means
from pyrocryo.errors import InputError
from pyrocryo.imaging import splat_map
from pyrocryo.metrics.maps import fsc, resolution
from pyrocryo.metrics.mcc import matched
from pyrocryo.metrics.r2 import halves
from pyrocryo.molecules.domains import domain_angles, superposition
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles, evenly
from pyrocryo.priors import IsotropicNormal
from pyrocryo.simulate import information_limit
from pyrocryo.svi import Fit

__all__ = ["Structures", "structures"]

HALF = 0.5  # of the Fourier shell correlation


@dataclass(frozen=True, eq=False)
class Structures:
    """Conformations decoded at the posterior mean, for S seeds, against the truth.

    Attributes:
        rmsd: `(S, M)` Å, root mean square deviation of the atoms of M conformations; None without
            atoms that correspond to the molecule's.
        superposed: `(S, M)` Å, the same with each conformation superposed on its truth: the error
            of shape alone.
        still_rmsd: `(M,)` Å, of the true conformation at the mean of the true `z`: what a volume
            that does not move can have at best.
        resolution: `(S, m)` Å at which the Fourier shell correlation of decoded and true density
            falls below .5, of m conformations; no mask. None where the frame is not known.
        still_resolution: `(m,)` Å, of the true density at the mean of the true `z`.
        explained: `(S,)` share of the motion of the atoms: 1 minus the mean square error over that
            of the true conformation at the mean of the true `z`. 1 is perfect, 0 what a volume
            that does not move can have at best.
        explained_density: `(S,)` the same of densities, the decoded ones in the brightness and
            background that fit best, one for all.
        nyquist: Å, the finest that the maps can show.
        spearman: `(S, H)` rank correlation of each true coordinate with the angle of the domain
            that follows it best; None without atoms or without domains.
        limit: `(H,)` the same of the exact posterior mean under the true molecule and poses, on
            some of the molecules, which no model can beat on average; None where it was not asked
            for.
        share: `(S, H)` the correlations on these same molecules, over ``limit``.
        fitted: Whether the poses were not known, and one rigid motion of all structures was fitted
            on the half that is not scored.
        seeds: Their names.
        sentence: The same in words.
    """

    rmsd: np.ndarray | None
    superposed: np.ndarray | None
    still_rmsd: np.ndarray | None
    resolution: np.ndarray | None
    still_resolution: np.ndarray | None
    explained: np.ndarray | None
    explained_density: np.ndarray | None
    nyquist: float
    spearman: np.ndarray | None
    limit: np.ndarray | None
    share: np.ndarray | None
    fitted: bool
    seeds: tuple[int, ...]
    sentence: str

    def scores(self) -> dict[str, list[float]]:
        """Medians and 90th percentiles, one number a seed, as model files return them.

        ``rmsd``, ``rmsd_90``, ``rmsd_superposed``, ``rmsd_still``, ``fsc_half``, ``fsc_half_90``,
        ``fsc_half_still`` (all in Å), ``motion_explained``, ``motion_explained_density``, and
        ``angle_spearman_1``, ..., ``angle_limit_1``, ... and ``angle_share_1``, ...: those that
        are known.
        """
        told: dict[str, list[float]] = {}

        def put(name: str, values: np.ndarray | None, share: float = 0.5) -> None:
            if values is not None:
                rows = np.broadcast_to(values, (len(self.seeds), values.shape[-1]))
                told[name] = np.quantile(rows, share, axis=1).tolist()

        put("rmsd", self.rmsd)
        put("rmsd_90", self.rmsd, 0.9)
        put("rmsd_superposed", self.superposed)
        put("rmsd_still", self.still_rmsd)
        put("fsc_half", self.resolution)
        put("fsc_half_90", self.resolution, 0.9)
        put("fsc_half_still", self.still_resolution)
        for name, values in (("", self.explained), ("_density", self.explained_density)):
            if values is not None:
                told[f"motion_explained{name}"] = values.tolist()
        for name, values in (("spearman", self.spearman), ("share", self.share)):
            for k, column in enumerate([] if values is None else values.T, start=1):
                told[f"angle_{name}_{k}"] = column.tolist()
        for k, value in enumerate([] if self.limit is None else self.limit, start=1):
            told[f"angle_limit_{k}"] = [float(value)] * len(self.seeds)
        return told


def structures(
    fit: Fit | Pair,
    molecule: Any,
    particles: Particles,
    *,
    most: int = 200,
    maps: int = 20,
    segmentation: Any = None,
    limit: int = 0,
    law: Any = None,
) -> Structures:
    """What a fit decodes, against the molecule that the particles were simulated from.

        >>> print(pc.diagnose.structures(fit, adk, particles.test).sentence)  # doctest: +SKIP

    With known poses the frames agree, and nothing is superposed for ``rmsd``. With unknown ones
    the decoded molecule lies anywhere: one rotation and translation for all conformations is
    fitted to the atoms on one half of them (Kabsch 1976), and scored on the other; maps are then
    compared in that frame. A mirrored molecule, which fits the same images, is not turned back:
    its RMSD stays large. Without atoms there is no such frame, and nothing is compared.

    Where most of a molecule stays still, RMSD and resolution look good whether a volume moves or
    not: read them beside ``still_rmsd`` and ``still_resolution``, or read ``explained``.

    Args:
        fit: A fit, or a trained pair, of a volume in space.
        molecule: What was simulated, with ``centres(z)``, ``width``, ``weight``, ``dim`` and
            ``spatial``; for a limit also ``render``.
        particles: With ``truth``, such as ``particles.test``.
        most: Particles to look at, all frames of each.
        maps: How many of their conformations to compare as maps, at most.
        segmentation: `(A,)` domains of the atoms, for ``spearman``; by default
            ``molecule.domain``, if it has it.
        limit: Molecules for which to compute what the images allow at all
            (:func:`pyrocryo.simulate.information_limit`), at most ``most``: some 0.1 s each.
        law: Of the true `z`, for that; by default a standard normal.

    Raises:
        InputError: If the volume is flat, or the particles have no truth, or one of another
            molecule.
    """
    pairs = models(fit, particles, 4)
    if "truth" not in particles.fields:
        raise InputError("particles: expected the truth of simulated particles, they have none")
    if any(pair.volume.dim != 3 for pair in pairs.values()) or molecule.spatial != 3:
        raise InputError("fit: expected a volume and a molecule in space; flat ones have no atoms")
    if limit == 1 or limit < 0:
        raise InputError(f"limit: expected 0 or at least 2 molecules, got {limit}")
    if maps < 1:
        raise InputError(f"maps: expected one or more, got {maps}")
    part = particles.spread(most)
    true_z = part.truth.reshape(-1, part.truth.shape[-1])
    if true_z.shape[1] != molecule.dim:
        raise InputError(
            f"molecule: moves in {molecule.dim} ways, the truth has {true_z.shape[1]}"
        )
    truth = _centres(molecule, true_z)
    still = _centres(molecule, true_z.mean(axis=0))
    some = next(iter(pairs.values()))
    hidden = some.pose.latent
    fitted, rows = halves(len(truth), part.frames or 1, 0) if hidden else (None,) * 2
    rows = np.arange(len(truth)) if rows is None else np.sort(rows)
    if segmentation is None:
        segmentation = getattr(molecule, "domain", None)
    alike = all(_correspond(pair, truth.shape[1]) for pair in pairs.values())
    seen = rows[evenly(len(rows), maps)]
    voxel = some.box * part.pixel_size / some.volume.side
    names = ("rmsd", "superposed", "spearman", "resolution", "explained", "explained_density")
    found: dict[str, list] = {name: [] for name in names}
    best, few = None, np.empty(0, dtype=int)
    if limit:
        few, frames = evenly(len(part), limit), part.frames or 1
        best = _limit(molecule, part.take(few), law)
        few = (frames * few[:, None] + np.arange(frames)).reshape(-1)
    shares = []
    still_rmsd = _rmsd(still, truth[rows])
    for pair in pairs.values():
        z = posterior_means(pair, part)
        turn, move = np.eye(3), np.zeros(3)
        if alike:
            x = atoms(pair, z)
            if hidden:
                turn, move = superposition(*(a[fitted].reshape(-1, 3) for a in (x, truth)))
            off, shape = _off(x[rows] @ turn.T + move, truth[rows])
            found["rmsd"].append(off)
            found["superposed"].append(shape)
            found["explained"].append(1 - np.square(off).sum() / np.square(still_rmsd).sum())
            if segmentation is not None:
                angles = domain_angles(x, still, segmentation).hinges()[1]
                found["spearman"].append(_ranked(true_z[rows], angles[rows]))
                if best is not None:
                    shares.append(_ranked(true_z[few], angles[few]) / best)
        if alike or not hidden:
            # the truth where the decoded molecule lies
            there = [(centres - move) @ turn for centres in (*truth[seen], still)]
            *true, mean = _true_maps(there, molecule, some.volume.side, voxel)
            decoded = [pair.density(torch.as_tensor(code)).cpu().numpy() for code in z[seen]]
            found["resolution"].append(_halves(decoded, true, voxel))
            found["explained_density"].append(_explained(np.stack(decoded), np.stack(true), mean))
    got = {name: np.array(values) if values else None for name, values in found.items()}
    still_resolution = None
    if got["resolution"] is not None:
        *true, mean = _true_maps([*truth[seen], still], molecule, some.volume.side, voxel)
        still_resolution = np.array(_halves([mean] * len(true), true, voxel))
    numbers = {
        **got,
        "still_rmsd": still_rmsd if alike else None,
        "still_resolution": still_resolution,
        "nyquist": 2 * voxel,
        "limit": best,
        "share": np.array(shares) if shares else None,
        "fitted": hidden and alike,
    }
    return Structures(**numbers, seeds=tuple(pairs), sentence=_reading(**numbers))


def _centres(molecule: Any, z: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return molecule.centres(torch.as_tensor(z, dtype=torch.float64)).numpy()


def _correspond(pair: Pair, count: int) -> bool:
    """Whether atoms are the molecule's one by one: as many, and begun at a reference."""
    if not has_atoms(pair) or getattr(pair.volume, "_free", False):
        return False
    return atoms(pair, np.zeros(pair.dim)).shape[-2] == count


def _ranked(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Rank correlation of each true coordinate with what follows it best."""
    each = (truth[:, [k]] for k in range(truth.shape[1]))
    return np.array([matched(column, found, "spearman")[0] for column in each])


def _limit(molecule: Any, particles: Particles, law: Any) -> np.ndarray:
    """Rank correlations that the images allow, over all conformations."""
    prior = IsotropicNormal(molecule.dim) if law is None else law
    names = [name for name in ("rotation", "shift") if f"true_{name}" in particles.fields]
    particles = particles.having(**{name: getattr(particles, f"true_{name}") for name in names})
    if particles.frames and len(prior.event_shape) == 1:
        prior = prior.expand((particles.frames,)).to_event(1)
    best = information_limit(molecule, particles, prior).reshape(-1, molecule.dim)
    return _ranked(particles.truth.reshape(-1, molecule.dim), best)


def _rmsd(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(x - y).sum(axis=-1).mean(axis=-1))


def _off(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RMSD `(M,)` of structures `(M, A, 3)` as they lie, and each superposed."""
    turn, move = superposition(x, y)
    return _rmsd(x, y), _rmsd(x @ np.swapaxes(turn, -1, -2) + move[:, None], y)


def _true_maps(
    centres: Sequence[np.ndarray], molecule: Any, side: int, voxel: float
) -> list[np.ndarray]:
    width, weight = (a.to(torch.float64).cpu() for a in (molecule.width, molecule.weight))
    told = {"side": side, "voxel_size": voxel}
    return [splat_map(torch.as_tensor(x), width, weight, **told).numpy() for x in centres]


def _halves(maps: Sequence[np.ndarray], true: Sequence[np.ndarray], voxel: float) -> list[float]:
    return [resolution(fsc(a, b), voxel, HALF) for a, b in zip(maps, true, strict=True)]


def _explained(decoded: np.ndarray, true: np.ndarray, still: np.ndarray) -> float:
    """Share of the squares of ``true - still`` that maps `(m, ...)` explain."""
    a, b = decoded - decoded.mean(dtype=np.float64), true - true.mean()
    brightness = (a * b).sum() / max(np.square(a).sum(), 1e-30)
    return float(1 - np.square(brightness * a - b).sum() / np.square(still - true).sum())


def _reading(
    rmsd: np.ndarray | None,
    superposed: np.ndarray | None,
    still_rmsd: np.ndarray | None,
    resolution: np.ndarray | None,
    still_resolution: np.ndarray | None,
    explained: np.ndarray | None,
    explained_density: np.ndarray | None,
    nyquist: float,
    spearman: np.ndarray | None,
    limit: np.ndarray | None,
    share: np.ndarray | None,
    fitted: bool,
) -> str:
    said = []
    if rmsd is not None:
        where = "one frame fitted on the other half" if fitted else "nothing superposed"
        said.append(
            f"atoms are off by {np.median(rmsd):.2f} Å (median RMSD; 90 % of conformations below "
            f"{np.quantile(rmsd, 0.9):.2f} Å; {where}), {np.median(superposed):.2f} Å once each "
            f"is superposed; a perfect volume that does not move is off by "
            f"{np.median(still_rmsd):.2f} Å: {_share(explained.mean())} of the motion is explained"
        )
    if spearman is not None:
        rho = ", ".join(f"{value:.3f}" for value in spearman.mean(axis=0))
        said.append(f"angles of its domains follow the true coordinates with Spearman {rho}")
    if limit is not None:
        rho = ", ".join(f"{value:.3f}" for value in limit)
        said.append(f"the exact posterior of the true molecule with {rho}")
    if share is not None:
        rho = ", ".join(f"{value:.3f}" for value in share.mean(axis=0))
        said.append(f"on the same molecules these reach {rho} of that")
    if resolution is not None:
        low, high = np.quantile(resolution, [0.1, 0.9])
        said.append(
            f"maps agree with the true density (FSC = .5) to {np.median(resolution):.1f} Å "
            f"({low:.1f} to {high:.1f} Å for 80 % of conformations; Nyquist {nyquist:.1f} Å), the "
            f"true mean conformation to {np.median(still_resolution):.1f} Å, and "
            f"{_share(explained_density.mean())} of the motion of the density is explained"
        )
    else:
        said.append(
            "poses are unknown and the volume has no atoms of the molecule, so there is no frame "
            "to compare maps in"
        )
    return "; ".join(said)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %" if value > 0 else "none (less than by not moving)"
