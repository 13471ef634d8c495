"""What moving along each axis does, for the page: pictures, maps and atoms along it."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.report.pictures import binned, encoded, sheet

__all__ = ["motions"]

SIDE = 72  # pixels of a picture, at most
SOLID = 40  # voxels along an edge of a map, at most
FLOOR = 0.06  # of the highest density: what lies below is background
ROOM = 900_000  # bytes, compressed, that maps may take
PICTURES = 12_000_000  # pixels of all pictures along axes
JUMP = 5.0  # Å: atoms of a trace that are farther apart are not joined
ENDS = (0.02, 0.98)  # quantiles of z where maps begin and end, as export has them


def motions(folder: Path, found: dict[str, np.ndarray], seeds: list[int], best: int) -> list[Any]:
    """One entry a seed whose maps are in ``volumes/``, the best seed first.

    Args:
        folder: Run folder.
        found: What :func:`pyrocryo.report.points.read_arrays` gives.
        seeds: All seeds, in the order of the chains.
        best: The chain to begin with.

    Returns:
        ``seed``, ``axes`` (name, and z at each step), ``density`` and ``change`` (sheets with one
        row an axis), and ``maps`` and ``atoms``: for each axis, or null.
    """
    z = found["posterior/z"]
    size = z.shape[-1]
    room, pixels, told = ROOM, PICTURES, []
    for chain in sorted(range(len(seeds)), key=lambda n: n != best):
        stems = [folder / "volumes" / f"seed{seeds[chain]}_z{k + 1}" for k in range(size)]
        maps = [_maps(stem) for stem in stems]
        codes = z[chain].reshape(-1, size)
        if any(steps is None for steps in maps) or not np.isfinite(codes).all():
            continue
        flat = np.stack([m if m.ndim == 3 else m.sum(axis=1) for m in maps])  # (K, steps, D, D)
        small = binned(flat.reshape(-1, *flat.shape[2:]), SIDE)
        pixels -= small.size
        if told and pixels < 0:
            break
        low, high = np.quantile(codes, ENDS, axis=0)
        steps = flat.shape[1]
        entry: dict[str, Any] = {
            "seed": seeds[chain],
            "steps": steps,
            "axes": [
                {
                    "name": f"z{k + 1}",
                    "z": [round(float(v), 3) for v in np.linspace(low[k], high[k], steps)],
                }
                for k in range(size)
            ],
            **_sheets(small.reshape(size, steps, *small.shape[1:])),
            "maps": None,
            "atoms": [_atoms(stem) for stem in stems],
        }
        if maps[0].ndim == 4:
            entry["maps"] = []
            for m in maps:
                packed = _packed(m) if room > 0 else None
                room -= len(packed["data"]) if packed else 0
                entry["maps"].append(packed if room > 0 else None)
        told.append(entry)
    return told


def _maps(stem: Path) -> np.ndarray | None:
    """Maps along an axis, `(steps, D, D)` or `(steps, D, D, D)`; None where there are none."""
    from pyrocryo.io.mrc import read_header, read_map
    from pyrocryo.io.sections import Run, Sections

    try:
        if (path := stem.with_suffix(".mrcs")).exists():
            header = read_header(path)
            out = np.empty(header.shape, dtype=np.float32)
            Sections(header).read([Run(0, 0, header.shape[0])], out)
            return out
        steps = 0
        while stem.with_name(f"{stem.name}_{steps}.mrc").exists():
            steps += 1
        if steps < 2:
            return None
        return np.stack(
            [read_map(stem.with_name(f"{stem.name}_{n}.mrc"))[0] for n in range(steps)]
        )
    except InputError:  # cut short, or of another program: the page does without
        return None


def _sheets(small: np.ndarray) -> dict[str, Any]:
    """Density, and its change from the middle step, of `(K, steps, d, d)`: a row an axis."""
    import matplotlib

    axes, steps, side = small.shape[:3]
    flat = small.reshape(-1, side, side)
    low, high = np.quantile(flat, 0.001), flat.max()
    grey = np.clip((flat - low) / max(high - low, 1e-12) * 255, 0, 255)
    change = small - small[:, steps // 2, None]
    most = max(float(np.abs(change).max()), 1e-12)
    signed = np.clip(change.reshape(-1, side, side) / most * 127.5 + 127.5, 0, 255)
    told = {"side": side}
    for name, picture, colours in (("density", grey, "magma"), ("change", signed, "RdBu_r")):
        palette = np.round(matplotlib.colormaps[colours](np.arange(256))[:, :3] * 255)
        told[name] = encoded(sheet(np.round(picture).astype(np.uint8), steps), palette=palette)
    return told


def _packed(maps: np.ndarray) -> dict[str, Any] | None:
    """Maps `(steps, D, D, D)` cut to the molecule, thinned to bytes and compressed.

    Returns:
        ``side``, ``level`` to begin with (a share of the highest density, three standard
        deviations above the mean) and ``data``.
    """
    from scipy.ndimage import zoom

    high = float(maps.max())
    if not high > 0:
        return None
    level = float(maps.mean() + 3 * maps.std()) / high
    seen = np.argwhere((maps > FLOOR * high).any(axis=0))
    if not len(seen):
        return None
    middle, side = (seen.max(axis=0) + seen.min(axis=0)) / 2, maps.shape[1]
    width = min(side, int((seen.max(axis=0) - seen.min(axis=0)).max()) + 5)
    start = np.clip(np.round(middle - (width - 1) / 2).astype(int), 0, side - width)
    cut = maps[(slice(None), *(slice(s, s + width) for s in start))]
    if width > SOLID:
        factor = SOLID / width
        cut = np.stack([zoom(one, factor, order=1, grid_mode=True, mode="nearest") for one in cut])
    small = np.clip(np.round(cut / high * 255), 0, 255).astype(np.uint8)
    small[small < FLOOR * 255] = 0
    data = base64.b64encode(gzip.compress(small.tobytes(), 9, mtime=0)).decode()
    return {"side": small.shape[1], "level": round(min(max(level, 0.1), 0.8), 3), "data": data}


def _atoms(stem: Path) -> dict[str, Any] | None:
    """A trace along an axis: int16 hundredths of Å from the middle, and where the chain breaks."""
    from pyrocryo.io.structure import opened

    path = next((p for s in (".pdb", ".cif") if (p := stem.with_suffix(s)).exists()), None)
    if path is None:
        return None
    try:
        found = opened(path)
    except InputError:
        return None
    steps = []
    for model in found:
        atoms = [(a.name, a.pos.tolist()) for c in model for r in c for a in r]
        backbone = [position for name, position in atoms if name in ("CA", "P")]
        steps.append(backbone or [position for _, position in atoms])
    xyz = np.asarray(steps, dtype=np.float64)  # (steps, A, 3)
    if xyz.ndim != 3 or len(xyz) < 2:
        return None
    xyz -= xyz.mean(axis=(0, 1))
    apart = np.linalg.norm(np.diff(xyz[0], axis=0), axis=-1)
    packed = np.clip(np.round(100 * xyz), -32767, 32767).astype("<i2")
    return {
        "count": xyz.shape[1],
        "breaks": (np.flatnonzero(apart > JUMP) + 1).tolist(),
        "data": base64.b64encode(packed.tobytes()).decode(),
    }
