"""``pyrocryo identify``: what can be said of the axes of a run, or of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from pyrocryo.cli.latents import array, posterior
from pyrocryo.errors import InputError
from pyrocryo.files import understood

__all__ = ["Identify"]


@dataclass
class Identify:
    """Print the verdict on the axes of a run; of several, also whether they found the same.

    Beside run folders, latents of the same particles from elsewhere can be named: a .npy array
    (N, K), or cryoDRGN's z.N.pkl (read as data, not run). Rows are all particles in the order of
    the stack, or the held-out ones that the first run folder reports.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, .npy arrays, or .pkl files."""
    out: Path | None = None
    """Also write the agreement of several to this JSON file."""

    def run(self) -> None:
        """Prints the verdicts."""
        from pyrocryo import identify, io
        from pyrocryo.report import verdicts
        from pyrocryo.report.page import read_run

        if not self.runs:
            raise InputError("identify: name at least one run folder")
        folders = [path for path in self.runs if path.is_dir()]
        found = {path: read_run(path) for path in folders}
        latents: dict[str, np.ndarray] = {}
        first = _Scored(folders[0], found[folders[0]]) if folders else None
        if len(self.runs) > 1:
            for path in self.runs:
                own = _of_run(path, found[path], first) if path in found else _array(path, first)
                latents |= {f"{path}{name}": z for name, z in own.items()}
        for path, run in found.items():
            print(f"{path}: {run['identify']['sentence']}")
            with understood(path / "identify.json"):
                told = verdicts.lines(run["identify"])
            print("\n".join(f"  {line}" for line in told))
            print(f"  All numbers: {path / 'identify.json'}", end="\n\n")
        if not latents:
            if self.out is not None:
                raise InputError("out: is for the agreement of several; name another run")
            if not folders:
                raise InputError(
                    f"identify: {self.runs[0]} alone has nothing to agree with; name another"
                )
            return
        frames = first.frames if first else 1
        together = dataclasses.asdict(identify.consistency(list(latents.values()), frames=frames))
        print(f"{', '.join(latents)}: {verdicts.agreement(together)}")
        if self.out is not None:
            io.write_json(self.out, {"latents": list(latents)} | together)


class _Scored:
    """Which particles a run reports the latents of."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self.data = run["config"].get("data", {})
        self.rows, z = posterior(folder)
        self.frames = z.shape[2] if z.ndim == 4 else 1


def _of_run(folder: Path, run: Mapping[str, Any], first: _Scored) -> dict[str, np.ndarray]:
    """Latents `(N T, K)` of each seed."""
    rows, z = posterior(folder)
    digests = [data.get("sha256") for data in (first.data, run["config"].get("data", {}))]
    if None not in digests and digests[0] != digests[1] or not np.array_equal(rows, first.rows):
        raise InputError(f"{folder}: of other particles than {first.folder}")
    return {
        f"[{seed}]": z[n].reshape(-1, z.shape[-1]) for n, seed in enumerate(run["config"]["seeds"])
    }


def _array(path: Path, first: _Scored | None) -> dict[str, np.ndarray]:
    """Latents of a file, those of the particles that the first run reports."""
    z = array(path)
    if first is None or len(z) == len(first.rows) * first.frames:
        return {"": z}
    total = first.data.get("particles", 0) * first.frames
    if len(z) != total:
        raise InputError(
            f"{path}: expected {total} rows, one an image of {first.folder}, or "
            f"{len(first.rows) * first.frames} of those it reports, got {len(z)}"
        )
    return {"": z.reshape(-1, first.frames, z.shape[1])[first.rows].reshape(-1, z.shape[1])}
