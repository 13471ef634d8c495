"""Half sets: which half a particle is in by its file, and the half maps of a fit written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo import plots
from pyrocryo.errors import InputError
from pyrocryo.halves import HalfMaps
from pyrocryo.io import cryosparc, relion
from pyrocryo.io.figures import write_figure
from pyrocryo.io.mrc import write_map, write_stack
from pyrocryo.io.run_folder import write_json

__all__ = ["read_halves", "write_halves"]

SUBSET, SPLIT = "rlnRandomSubset", "alignments3D/split"


def read_halves(path: str | Path, *, passthrough: str | Path | None = None) -> np.ndarray | None:
    """The half of each particle `(N,)` by ``rlnRandomSubset`` or ``alignments3D/split``.

    In the order of :func:`pyrocryo.io.load`; None where the file does not say.

    Raises:
        InputError: If it names other than two halves, or frames of one molecule are in both.
    """
    path = Path(path)
    if path.suffix.lower() == ".cs":
        table: Any = cryosparc.Fields(path, None if passthrough is None else Path(passthrough))
        name, found = SPLIT, table.numbers(SPLIT) if SPLIT in table else None
    elif path.suffix.lower() == ".star":
        rows, name = relion.rows(path), SUBSET
        found = rows.numbers(SUBSET) if SUBSET in rows.columns else None
    else:
        return None
    if found is None:
        return None
    values = np.unique(found)
    if len(values) != 2:
        named = ", ".join(f"{value:g}" for value in values[:4])
        raise InputError(f"{path}: {name} names {len(values)} halves ({named}), expected two")
    order = relion.molecules(path) if path.suffix.lower() == ".star" else None
    if order is not None:
        found = found[order]
        apart = (found != found[:, :1]).any(axis=1)
        if apart.any():
            raise InputError(
                f"{path}: {name} puts frames of one molecule in both halves ({apart.sum()} of "
                f"{len(apart)} molecules)"
            )
        found = found[:, 0]
    return found == values[1]


def write_halves(out: Path, halves: HalfMaps) -> dict[str, list[float]]:
    """Writes half maps, ``halves.json`` and ``figures/halves.png`` to a run folder.

    Maps are ``volumes/half1_z1_0.mrc``, ``half2_z1_0.mrc``, ... by latent and place along it, or,
    flat, stacks ``half1_z1.mrcs``.

    Returns:
        What goes into ``metrics.json``: ``half_fsc143_angstroms`` (mean over all maps),
        ``half_fsc143_angstroms_z1``, ..., ``half_mcc`` and ``half_r2`` (of the latents).
    """
    folder = out / "volumes"
    folder.mkdir(parents=True, exist_ok=True)
    for k, line in enumerate(halves.maps, start=1):
        for n in range(2):
            stem = f"half{n + 1}_z{k}"
            if line.ndim == 4:
                write_stack(folder / f"{stem}.mrcs", line[:, n], halves.voxel_size)
            else:
                for i, volume in enumerate(line[:, n]):
                    write_map(folder / f"{stem}_{i}.mrc", volume, halves.voxel_size)
    angstroms, agreement = halves.resolution, halves.transfer.agreement
    write_json(
        out / "halves.json",
        {
            "sentence": _sentence(halves),
            "particles": halves.sizes,
            "aligned_by": halves.transfer.kind,
            "agreement": agreement.sentence,
            "matrix": halves.transfer.matrix,
            "voxel_size_in_angstroms": halves.voxel_size,
            "points": halves.points,
            "fsc": halves.curves,
            "fsc143_in_angstroms": angstroms,
        },
    )
    (out / "figures").mkdir(exist_ok=True)
    picture = plots.halves(halves.curves, halves.points, halves.voxel_size)
    write_figure(out / "figures" / "halves.png", picture)
    found = {"half_fsc143_angstroms": [float(angstroms.mean())]}
    for k, line in enumerate(angstroms, start=1):
        found[f"half_fsc143_angstroms_z{k}"] = [float(line.mean())]
    return found | {"half_mcc": [agreement.permutation], "half_r2": [agreement.affine]}


def _sentence(halves: HalfMaps) -> str:
    found = halves.resolution
    told = {
        "order and sign": "whose axes of z agree",
        "affine": "whose latents agree up to a turn of the axes",
        "none": "which found different latents, so that their maps need not be of the same shapes",
    }[halves.transfer.kind]
    return (
        f"Two trainings on {halves.sizes[0]} and {halves.sizes[1]} particles, {told}: maps along "
        f"z agree to {found.min():.3g} to {found.max():.3g} Å (FSC .143, not masked; Nyquist is "
        f"{2 * halves.voxel_size:.3g} Å)."
    )
