r"""Maps and populations as the Flatiron heterogeneity challenge takes them.

The Inaugural Flatiron Institute Cryo-EM Heterogeneity Community Challenge (Astore et al. 2023,
doi:10.17605/OSF.IO/8H6FZ) asks for 80 maps and their populations. Its code,
github.com/flatironinstitute/Cryo-EM-Heterogeneity-Challenge-1 (commit 11a0eb1), takes two forms:

- raw, as participants send it (tutorials/1_tutorial_preprocessing.ipynb): a folder of maps
  ``01.mrc`` to ``80.mrc`` and ``populations.txt``, one number a line, which sum to 1; an entry of
  ``submission_config.json`` names it (_preprocessing/dataloader.py says with what);
- preprocessed, ``submission_N.pt`` (``save_submission`` in their
  _preprocessing/preprocessing_pipeline.py): a dict of ``volumes`` `(n, D, D, D)` float32,
  ``populations`` `(n,)` and ``id``, a name. Their preprocessing crops and aligns maps to the true
  ones; here they are as they were decoded.

Their preprocessing takes the folder once "gt" is put before our entry, and turns it into such a
file: maps of 32 pixels of 3 Å came out on their grid of 24 of 4 Å, the first aligned with its
truth to a correlation of .9995.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrocryo.errors import InputError
from pyrocryo.files import replacing
from pyrocryo.io.mrc import write_map

__all__ = ["MAPS", "write_flatiron"]

MAPS = 80


def write_flatiron(
    path: str | Path,
    volumes: np.ndarray,
    populations: np.ndarray,
    *,
    voxel_size: float,
    name: str = "pyrocryo",
) -> list[Path]:
    """Writes a submission: a .pt file, or a folder where the path has no suffix.

    Args:
        path: ``submission_0.pt``, or a folder, which is made.
        volumes: `(n, D, D, D)`, indexed `[z, y, x]`; the challenge asks for 80.
        populations: `(n,)` of 0 or more; divided by their sum.
        voxel_size: Å per voxel.
        name: What the submission is called.

    Returns:
        The files.

    Raises:
        InputError: If shapes do not go together, populations are no such numbers, or the path is
            there already.
    """
    path = Path(path)
    volumes = np.asarray(volumes, dtype=np.float32)
    populations = np.asarray(populations, dtype=np.float64)
    if volumes.ndim != 4 or len(set(volumes.shape[1:])) != 1 or not volumes.size:
        raise InputError(f"volumes: expected (n, D, D, D), got {volumes.shape}")
    if not np.isfinite(volumes).all():
        raise InputError("volumes: expected finite numbers")
    if populations.shape != volumes.shape[:1]:
        raise InputError(f"populations: expected ({len(volumes)},), got {populations.shape}")
    if not (np.isfinite(populations).all() and (populations >= 0).all() and populations.sum() > 0):
        raise InputError("populations: expected numbers of 0 or more, not all 0")
    if not voxel_size > 0:
        raise InputError(f"voxel_size: expected Å per voxel, got {voxel_size}")
    if path.exists():
        raise InputError(f"flatiron: {path} is there already; name another, or remove it first")
    populations = populations / populations.sum()
    if path.suffix == ".pt":
        held = {
            "volumes": torch.from_numpy(np.ascontiguousarray(volumes)),
            "populations": torch.from_numpy(populations),
            "id": name,
        }
        with replacing(path) as temporary:
            torch.save(held, temporary)
        return [path]
    if path.suffix:
        raise InputError(f"flatiron: expected a name that ends in .pt, or a folder, got {path}")
    path.mkdir(parents=True)
    digits = max(2, len(str(len(volumes))))
    files = [path / f"{n:0{digits}d}.mrc" for n in range(1, len(volumes) + 1)]
    for file, volume in zip(files, volumes, strict=True):
        write_map(file, volume, voxel_size)
    with replacing(path / "populations.txt") as temporary:
        np.savetxt(temporary, populations, fmt="%.10f")
    entry = _entry(path, volumes.shape[1], voxel_size, name)
    with replacing(path / "submission_config.json") as temporary:
        temporary.write_text(json.dumps(entry, indent=4) + "\n", encoding="utf-8")
    return [*files, path / "populations.txt", path / "submission_config.json"]


def _entry(path: Path, box: int, voxel_size: float, name: str) -> dict[str, Any]:
    """Their configuration, less its first entry, "gt", which says where their truth is."""
    return {
        "0": {
            "name": name,
            "flavor_name": name,
            "path": str(path.resolve()),
            "populations_file": str((path / "populations.txt").resolve()),
            "submission_version": "0",
            "box_size": box,
            "pixel_size": voxel_size,
            "flip": 0,
            "align": 1,
        }
    }
