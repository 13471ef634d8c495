"""``pyrocryo export``: the posterior of a run in the file its particles came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from pyrocryo.cli.device import there
from pyrocryo.errors import InputError

__all__ = ["Export"]


@dataclass
class Export:
    """Write a copy of a run's .star or .cs file with the posterior of all its particles.

    Means and standard deviations of z are further columns; rows, their order and all else stay.
    With --where only some rows, for other programs to go on with. To a .pkl, z as cryoDRGN
    writes it. Runs the copy of the model file that the run folder keeps.
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder of pyrocryo fit."""
    out: Path
    """File to write: .star or .cs as the particles' own file, or .pkl for cryodrgn analyze."""
    particles: Path | None = None
    """The same particles, in the same rows, in another file (default: the one that was fitted)."""
    seed: int | None = None
    """Which seed, where the run has several: their axes need not be the same."""
    where: str | None = None
    """Keep only rows for which this is true, such as "z1 > 1.5 and sd1 < 0.3"."""
    device: str = "cpu"
    """Where to look at the particles: cpu, cuda, cuda:1, ..."""

    def run(self) -> None:
        """Writes the file, and prints its name."""
        from pyrocryo import draws, io
        from pyrocryo.io.annotated import chain_of
        from pyrocryo.io.model_file import SIMULATED
        from pyrocryo.report.page import read_run

        device, kind = there(self.device), self.out.suffix.lower()
        if kind not in (".star", ".cs", ".pkl"):
            raise InputError(f"out: expected a name that ends in .star, .cs or .pkl: {self.out}")
        if self.out.exists():
            raise InputError(f"out: {self.out} is there already; name another, or remove it first")
        if not self.out.parent.is_dir():
            raise InputError(f"out: there is no folder {self.out.parent}")
        if kind == ".pkl" and (self.where or self.particles):
            raise InputError("out: a .pkl holds all particles of the run, in their order")
        source = self.particles or read_run(self.run_folder)["config"].get("source")
        if kind != ".pkl" and source in (None, SIMULATED):
            raise InputError(f"particles: {self.run_folder} simulated its own; there is no file")
        fit, fitted = io.load_fit(self.run_folder)
        for pair in fit.pairs:
            pair.to(device)
        if kind == ".pkl":
            chain = chain_of(fit.seeds, self.seed)
            mean, sd = draws.moments(fit, fitted, chain=chain)
            flat = (-1, mean.shape[-1])
            io.write_cryodrgn_latents(self.out, mean.reshape(flat), sd.reshape(flat))
        else:
            if self.particles is not None:
                self._check_rows(len(fitted) * (fitted.frames or 1))
            io.annotate(source, self.out, fit, fitted, seed=self.seed, where=self.where)
        print(self.out)

    def _check_rows(self, fitted: int) -> None:
        from pyrocryo.io.copies import names_and_rows

        _, rows = names_and_rows(self.particles)
        if rows != fitted:
            raise InputError(
                f"particles: {self.particles} has {rows} rows, but the run is of {fitted} images"
            )
