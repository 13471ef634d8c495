"""A motion to look at: structures and maps along a path through the latents, and a script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pyrocryo.diagnose.conformations import atoms, has_atoms, posterior_means
from pyrocryo.errors import InputError
from pyrocryo.files import replacing
from pyrocryo.io.annotated import chain_of
from pyrocryo.io.mrc import write_map, write_stack
from pyrocryo.io.structure import Structure, write_structure
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = [
    "alanines",
    "checked_pair",
    "checked_structure",
    "traced",
    "write_along",
    "write_motion",
]

ENDS = (5, 95)  # percentiles of the posterior means
CONTOUR = 2.0  # standard deviations of all voxels above their mean
RATE = 10  # conformations a second


def write_motion(
    out: str | Path,
    fit: Fit | Pair,
    along: int | np.ndarray,
    *,
    latents: np.ndarray | Particles | None = None,
    frames: int = 20,
    structure: Structure | None = None,
    seed: int | None = None,
    pixel_size: float | None = None,
) -> list[Path]:
    r"""Writes a motion as maps, as a structure of many models, and as a script for ChimeraX.

    Along latent `k` (from 0; files count from 1): ``z{k}_01_first.mrc`` to ``z{k}_20_last.mrc``;
    where the volume has atoms, ``z{k}.pdb`` with one model a frame; and ``z{k}.cxc``, which opens
    them over each other, plays the motion there and back and records it as ``z{k}.mp4``
    (``chimerax z1.cxc``, in a session with nothing else open). A flat volume has images: the first
    and the last, and all in ``z{k}.mrcs``.

        >>> pc.io.write_motion("movie", fit, 0, latents=particles.test)  # doctest: +SKIP

    Maps have their origin at their first voxel, so atoms are written at their place from there:
    the box centre, which volumes count from, is voxel ``side // 2`` on each axis.

    Args:
        out: The folder; files of these names are replaced.
        fit: What decodes latents.
        along: A latent, from its 5th to its 95th percentile over the posterior means in even
            steps, the others at their mean; or a path of conformations `(M, K)`, such as
            :meth:`LinearICA.path <pyrocryo.identify.LinearICA.path>` (files are called ``path``).
        latents: Posterior means `(N, K)` or `(N, T, K)`, or particles to take them of; needed
            along a latent.
        frames: Conformations along a latent.
        structure: Names of the volume's atoms, in their order, such as those read by
            :func:`pyrocryo.io.read_structure`; by default Cα of alanines in one chain.
        seed: Which seed of a fit of several.
        pixel_size: Å per pixel of the images; needed with a pair alone.

    Returns:
        The files, maps first.

    Raises:
        InputError: If it is not clear which pair, axis or path is meant, or the structure has
            another number of atoms than the volume, or the volume none.
    """
    pair, pixel_size = checked_pair(fit, seed, pixel_size)
    if isinstance(along, int | np.integer) and not isinstance(along, bool):
        path, stem = traced(pair, int(along), latents, frames), f"z{along + 1}"
    else:
        path, stem = np.asarray(along, dtype=np.float64), "path"
        if path.ndim != 2 or path.shape[1] != pair.dim or len(path) < 2:
            raise InputError(
                f"along: expected a latent from 0 to {pair.dim - 1}, or a path (M, {pair.dim}) of "
                f"two conformations or more, got {path.shape}"
            )
        if not np.isfinite(path).all():
            raise InputError("along: expected a path of finite numbers")
    checked_structure(pair, structure)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    return write_along(out, stem, pair, path, pixel_size, structure)


def checked_pair(
    fit: Fit | Pair, seed: int | None, pixel_size: float | None
) -> tuple[Pair, float]:
    """The pair of one seed, and Å per pixel of its images.

    Raises:
        InputError: If it is not clear which, or the pixel size is not known.
    """
    if isinstance(fit, Fit):
        return fit.pairs[chain_of(fit.seeds, seed)], float(fit.example.pixel_size)
    if not isinstance(fit, Pair):
        raise InputError(f"fit: expected a Fit or a Pair, got {type(fit).__name__}")
    if not (pixel_size is not None and pixel_size > 0):
        raise InputError(f"pixel_size: expected Å per pixel, got {pixel_size}")
    return fit, float(pixel_size)


def checked_structure(pair: Pair, structure: Structure | None) -> None:
    """Raises InputError unless the structure has the volume's atoms, or there is none."""
    if structure is None:
        return
    if not has_atoms(pair):
        what = type(pair.volume).__name__
        raise InputError(f"structure: the volume ({what}) has no atoms in space to give names to")
    count = atoms(pair, np.zeros(pair.dim)).shape[-2]
    if len(structure) != count:
        raise InputError(f"structure: expected the {count} atoms of the volume, got {structure}")


def traced(
    pair: Pair, axis: int, latents: np.ndarray | Particles | None, frames: int
) -> np.ndarray:
    """Conformations `(frames, K)` along one latent, as :func:`write_motion` says."""
    if not 0 <= axis < pair.dim:
        raise InputError(f"along: expected a latent from 0 to {pair.dim - 1}, got {axis}")
    if frames < 2:
        raise InputError(f"frames: expected two or more, got {frames}")
    if latents is None:
        raise InputError("latents: an axis needs posterior means, or particles, to know its range")
    if isinstance(latents, Particles):
        pair.check(latents)
        z = posterior_means(pair, latents)
    else:
        z = np.asarray(latents, dtype=np.float64)
    if z.ndim < 2 or z.shape[-1] != pair.dim or not np.isfinite(z).all():
        raise InputError(
            f"latents: expected finite numbers (N, [T,] {pair.dim}), got shape {z.shape}"
        )
    z = z.reshape(-1, pair.dim)
    path = np.tile(z.mean(axis=0), (frames, 1))
    path[:, axis] = np.linspace(*np.percentile(z[:, axis], ENDS), frames)
    return path


def write_along(
    out: Path,
    stem: str,
    pair: Pair,
    path: np.ndarray,
    pixel_size: float,
    structure: Structure | None,
) -> list[Path]:
    """Maps, atoms and the script of a path `(M, K)`, all of it checked."""
    written, voxel, side, level = _maps(out, stem, pair, path, pixel_size)
    if pair.volume.dim == 2:
        return written
    maps = [file.name for file in written]
    model = None
    if has_atoms(pair):
        positions = atoms(pair, path) + (side // 2) * voxel
        names = alanines(positions[0]) if structure is None else structure
        flat = len(path) <= 9999 and all(len(name) == 1 for name in names.chain)
        model = out / f"{stem}.{'pdb' if flat else 'cif'}"
        write_structure(model, names, positions)
        written.append(model)
    written.append(out / f"{stem}.cxc")
    with replacing(written[-1]) as temporary:
        alone = model is not None and set(names.atom.tolist()) == {"CA"}
        text = _script(stem, maps, level, None if model is None else model.name, alone)
        temporary.write_text(text, encoding="utf-8")
    return written


def _maps(
    out: Path, stem: str, pair: Pair, path: np.ndarray, pixel_size: float
) -> tuple[list[Path], float, int, float]:
    """Decodes one map at a time, as maps in space are large.

    Returns:
        Files, Å per voxel, voxels along an edge, and a level to contour at.
    """
    flat = pair.volume.dim == 2
    digits, stack, written, moments = max(2, len(str(len(path)))), [], [], []
    for n, z in enumerate(path, start=1):
        end = {1: "_first", len(path): "_last"}.get(n, "")
        array = pair.density(torch.as_tensor(z)).cpu().numpy()
        voxel = pair.box * pixel_size / array.shape[-1]
        moments.append((array.mean(dtype=np.float64), np.square(array, dtype=np.float64).mean()))
        if flat:
            stack.append(array)
        if end or not flat:
            written.append(out / f"{stem}_{n:0{digits}d}{end}.mrc")
            write_map(written[-1], array, voxel)
    if flat:
        written.append(out / f"{stem}.mrcs")
        write_stack(written[-1], np.stack(stack), voxel)
    mean, square = np.mean(moments, axis=0)
    level = mean + CONTOUR * np.sqrt(max(square - mean**2, 0.0))
    return written, voxel, array.shape[-1], float(level)


def alanines(positions: np.ndarray) -> Structure:
    """Cα of alanines in chain A, for atoms that nobody named."""
    count = len(positions)

    def all_of(value: str | float) -> np.ndarray:
        return np.full(count, value)

    return Structure(
        positions=positions, occupancy=all_of(1.0), b_factor=all_of(0.0), blur=0.0,
        weight=all_of(1.0), atom=all_of("CA"), element=all_of("C"), residue=all_of("ALA"),
        number=np.arange(1, count + 1), insertion=all_of(""), chain=all_of("A"),
        bonds=np.zeros((0, 2), dtype=int),
    )  # fmt: skip


def _script(stem: str, maps: list[str], level: float, model: str | None, alone: bool) -> str:
    """Commands of ChimeraX; it looks for files beside the script.

    A multi-model file is one trajectory only with ``coordset``, and both series step once a
    graphics frame, so that maps and atoms stay together; played back and forth in two parts, as
    the two commands count the turning point differently.
    """
    last = len(maps)
    lines = [
        f"# {stem}: {last} conformations, there and back, recorded as {stem}.mp4",
        f"# Open it in a session with nothing else open: chimerax {stem}.cxc",
        f"open {' '.join(maps)} vseries true",
        f"volume #1 style surface step 1 level {level:.6g} color lightsteelblue",
    ]
    if model:
        lines += ["transparency #1 60", f"open {model} coordset true"]
        # without the rest of the backbone there is no cartoon to draw
        lines += ["show #2 atoms", "style #2 sphere", "color #2 firebrick"] if alone else []
    lines += [
        "set bgColor white",
        "lighting soft",
        "view",
        f"graphics rate maxFrameRate {RATE}",
        "movie record",
    ]
    for way, steps in (("forward", f"1,{last}"), ("backward", f"{last},1")):
        lines.append(f"vseries play #1 direction {way}")
        lines += [f"coordset #2 {steps}"] if model else []
        lines.append(f"wait {last}")
    lines += [f"movie encode {stem}.mp4 framerate {RATE}", "graphics rate maxFrameRate 60"]
    return "\n".join(lines) + "\n"
