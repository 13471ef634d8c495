"""``pyrocryo audit``: what can be said of the latents of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

from pyrocryo.errors import InputError

if TYPE_CHECKING:
    from pyrocryo.diagnose import Reencoded
    from pyrocryo.io.others import Latents
    from pyrocryo.io.tables import Columns

__all__ = ["Audit"]

TURNED = 5_000  # particles, which take seconds


@dataclass
class Audit:
    """Audit latents of other programs: do they depend on the pose, do runs agree, how many vary.

    Takes run folders of cryoDRGN's, .npy arrays (N, K) and .pkl files (read as data, not run) of
    the same particles. Poses are those of each run folder where it leads to them, or of --poses.
    Prints the sentences; --out writes one page of HTML and all numbers as JSON.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, .npy arrays, or .pkl files."""
    poses: Path | None = None
    """.star, .cs or .pkl with the poses of the particles, and more columns (images not opened)."""
    ctf: Path | None = None
    """CryoDRGN's CTFs (.pkl), to test against defocus."""
    ind: Path | None = None
    """CryoDRGN's indices (.pkl) of the rows of these files that the latents are of."""
    against: tuple[str, ...] = ()
    """Further columns of --poses to test against, by their names in the file."""
    rotate: bool = False
    """Turn images of cryoDRGN's run folders by 90° and encode them again: does z stay?"""
    images: Path | None = None
    """With --rotate: the particles, where they are not where the run's settings say."""
    epoch: int | None = None
    """Which epoch of run folders; by default the last."""
    permutations: int = 499
    """Behind each p-value."""
    most: int = 20_000
    """Particles compared in each test, drawn at random where there are more."""
    seed: int = 0
    """Draws permutations, particles and starts."""
    out: Path | None = None
    """Write audit.html and audit.json to this new folder."""

    def run(self) -> None:
        """Prints the sentences."""
        from pyrocryo import io
        from pyrocryo.io.others import read_latents

        if not self.runs:
            raise InputError("audit: name at least one run")
        if self.permutations < 59:
            raise InputError(f"permutations: expected 59 or more, got {self.permutations}")
        if self.images is not None and not self.rotate:
            raise InputError("images: they are opened for --rotate alone")
        if self.most < 50:
            raise InputError(f"most: expected 50 or more, got {self.most}")
        runs = [read_latents(path, epoch=self.epoch) for path in self.runs]
        names = [run.name for run in runs]
        if len(set(names)) < len(names):
            raise InputError(f"audit: {', '.join(names)} names one of them twice")
        given = self._given()
        if given is not None and (missing := [a for a in self.against if a not in given.columns]):
            known = ", ".join(given.columns) or "no columns"
            raise InputError(f"against: no column {missing[0]}; the file has {known}")
        if given is None and self.against:
            raise InputError("against: name the file that has these columns with --poses")
        if self.out is not None:
            io.new_folder(self.out)
        from pyrocryo.report.audit import audit

        rotations: dict[str, np.ndarray] = {}
        columns: dict[str, dict[str, np.ndarray]] = {}
        skipped: dict[str, list[str]] = {}
        images: dict[str, np.ndarray] = {}
        for run in runs:
            told = _of(run, given, self.against)
            skipped[run.name] = run.notes
            columns[run.name] = told.usual
            if told.rotation is not None:
                rotations[run.name] = told.rotation
            if told.image is not None:
                images[run.name] = told.image
        found = audit(
            {run.name: run.z for run in runs},
            sds={run.name: run.sd for run in runs if run.sd is not None},
            rotations=rotations,
            columns=columns,
            images=images,
            turned=self._turned(runs) if self.rotate else None,
            skipped=skipped,
            permutations=self.permutations,
            most=self.most,
            seed=self.seed,
        )
        for line in found.lines():
            print(line)
        leaking = [r for r in found.runs if r.leak is not None and r.leak.verdict != "none seen"]
        for text in dict.fromkeys(run.causes() for run in leaking):
            print(text)
        if self.out is None:
            return
        from pyrocryo.report.audit_page import write_page

        io.write_json(self.out / "audit.json", found.as_dict())
        print(write_page(found, self.out / "audit.html"))

    def _turned(self, runs: list[Latents]) -> dict[str, Reencoded]:
        """What becomes of z when images are turned; where that cannot be done, a note."""
        from pyrocryo.report.audit_rotate import rotated

        found = {}
        for run in runs:
            try:
                found[run.name] = rotated(
                    run,
                    images=self.images,
                    most=min(self.most, TURNED),
                    permutations=self.permutations,
                    seed=self.seed,
                )
            except InputError as error:
                run.notes.append(f"rotation of images by 90°: {error}")
        return found

    def _given(self) -> Columns | None:
        """What the files named say of the particles."""
        from pyrocryo.io.others import read_ctf, read_indices
        from pyrocryo.io.tables import Columns, read_columns

        given = None if self.poses is None else read_columns(self.poses)
        if self.ctf is not None:
            defocus = read_ctf(self.ctf)
            given = Columns(len(defocus)) if given is None else given
            if given.size != len(defocus):
                raise InputError(
                    f"{self.ctf}: {len(defocus)} CTFs for {given.size} particles of {self.poses}"
                )
            given.usual["defocus"] = defocus
        if self.ind is not None:
            if given is None:
                raise InputError("ind: chooses rows of --poses or --ctf; name one of them")
            given = given.take(read_indices(self.ind, given.size))
        return given


def _of(run: Latents, given: Columns | None, against: tuple[str, ...]) -> Columns:
    """Poses and columns of the particles of a run: its own, but for what is given."""
    from pyrocryo.io.tables import Columns

    told = Columns(len(run.z)) if run.beside is None else run.beside
    if given is None:
        given = Columns(len(run.z))
    if given.size != len(run.z):
        raise InputError(
            f"{run.name}: {len(run.z)} rows of z, but {given.size} particles in the files named; "
            "--ind says which rows"
        )
    told.rotation = given.rotation if given.rotation is not None else told.rotation
    told.image = given.image if given.image is not None else told.image
    usual = {k: v for k, v in (told.usual | given.usual).items() if _varies(np.asarray(v))}
    told.usual = usual | {name: given.columns[name] for name in against}
    return told


def _varies(values: np.ndarray) -> bool:
    """Whether what was not asked for is worth a test."""
    if values.dtype.kind in "iuf":
        return bool(np.ptp(values, axis=0).max() != 0)  # NaN is told as a mistake
    return 1 < len(np.unique(values)) < len(values)
