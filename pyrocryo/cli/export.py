"""``pyrocryo export``: the posterior of a run in the file its particles came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from pyrocryo.cli.device import there
from pyrocryo.errors import InputError

if TYPE_CHECKING:
    from pyrocryo.io.clusters import Clusters
    from pyrocryo.particles import Particles
    from pyrocryo.svi import Fit

__all__ = ["Export"]


@dataclass
class Export:
    """Write a copy of a run's .star or .cs file with the posterior of all its particles.

    Means and standard deviations of z are further columns; rows, their order and all else stay.
    With --where only some rows, for other programs to go on with. To a .pkl, z as cryoDRGN
    writes it. To a folder, maps at the centres of clusters. Runs the copy of the model file that
    the run folder keeps.
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder of pyrocryo fit."""
    out: Path | None = None
    """File to write: .star or .cs as the particles' own file, or .pkl for cryodrgn analyze; or,
    with --clusters, a new folder."""
    particles: Path | None = None
    """The same particles, in the same rows, in another file (default: the one that was fitted)."""
    seed: int | None = None
    """Which seed, where the run has several: their axes need not be the same."""
    where: str | None = None
    """Keep only rows for which this is true, such as "z1 > 1.5 and sd1 < 0.3"."""
    clusters: int | None = None
    """Clusters of posterior means (k-means): to a folder, a map at the particle nearest to each
    centre, lists of particles and clusters.cxc for ChimeraX; to a .star or .cs, a column cluster,
    from 1, which --where can ask for."""
    flatiron: Path | None = None
    """Also, or only, maps and populations for the Flatiron heterogeneity challenge: a .pt file, or
    a new folder of .mrc files with populations.txt; of --clusters centres, by default 80."""
    device: str = "cpu"
    """Where to look at the particles: cpu, cuda, cuda:1, ..."""

    def run(self) -> None:
        """Writes the files, and prints their names."""
        from pyrocryo import io
        from pyrocryo.io.annotated import chain_of
        from pyrocryo.io.clusters import write_clusters

        device, kind = there(self.device), self._checked()
        if kind in (".star", ".cs"):
            source = self._source()
        fit, fitted = io.load_fit(self.run_folder)
        for pair in fit.pairs:
            pair.to(device)
        found = self._clustered(fit, fitted) if self.clusters or self.flatiron else None
        if kind == ".pkl":
            from pyrocryo import draws

            chain = chain_of(fit.seeds, self.seed)
            mean, sd = draws.moments(fit, fitted, chain=chain)
            flat = (-1, mean.shape[-1])
            io.write_cryodrgn_latents(self.out, mean.reshape(flat), sd.reshape(flat))
        elif kind in (".star", ".cs"):
            if self.particles is not None:
                self._check_rows(len(fitted) * (fitted.frames or 1))
            further = None
            if self.clusters:
                label = found.label + 1
                shape = (len(fitted), fitted.frames) if fitted.frames else (len(fitted),)
                further = {"cluster": label.reshape(shape)}
            io.annotate(
                source, self.out, fit, fitted, seed=self.seed, where=self.where, further=further
            )
        elif kind == "":
            write_clusters(self.out, fit, fitted, self.clusters, seed=self.seed, of=found)
        if self.out is not None:
            print(self.out)
        if self.flatiron is not None:
            from pyrocryo.io.clusters import decoded
            from pyrocryo.io.flatiron import write_flatiron

            pair = fit.pairs[chain_of(fit.seeds, self.seed)]
            maps, voxel = decoded(pair, found.centre, fitted.pixel_size)
            name = self.run_folder.resolve().name
            write_flatiron(self.flatiron, maps, found.count, voxel_size=voxel, name=name)
            print(self.flatiron)

    def _checked(self) -> str | None:
        """The kind of file to write; None for none, '' for a folder."""
        if self.clusters is not None and self.clusters < 1:
            raise InputError(f"clusters: expected at least 1, got {self.clusters}")
        if self.flatiron is not None:
            if self.flatiron.suffix not in ("", ".pt"):
                raise InputError(f"flatiron: expected a .pt file or a folder: {self.flatiron}")
            if self.flatiron.exists():
                raise InputError(f"flatiron: {self.flatiron} is there already; name another")
        if self.out is None:
            if self.flatiron is None:
                raise InputError("out: name a file or a folder to write to")
            if self.where or self.particles:
                raise InputError("where and particles: are for a .star or .cs file, see --out")
            return None
        kind = self.out.suffix.lower()
        if kind not in (".star", ".cs", ".pkl") and (kind or self.clusters is None):
            raise InputError(
                "out: expected a name that ends in .star, .cs or .pkl, or a folder for "
                f"--clusters: {self.out}"
            )
        if self.out.exists():
            raise InputError(f"out: {self.out} is there already; name another, or remove it first")
        if not self.out.parent.is_dir():
            raise InputError(f"out: there is no folder {self.out.parent}")
        if kind == ".pkl" and (self.where or self.particles):
            raise InputError("out: a .pkl holds all particles of the run, in their order")
        if not kind and (self.where or self.particles):
            raise InputError("where and particles: are for a .star or .cs file")
        return kind

    def _source(self) -> Path:
        from pyrocryo.io.model_file import SIMULATED
        from pyrocryo.report.page import read_run

        source = self.particles or read_run(self.run_folder)["config"].get("source")
        if source in (None, SIMULATED):
            raise InputError(f"particles: {self.run_folder} simulated its own; there is no file")
        return source

    def _clustered(self, fit: Fit, fitted: Particles) -> Clusters:
        from pyrocryo import draws
        from pyrocryo.io.annotated import chain_of
        from pyrocryo.io.clusters import clusters
        from pyrocryo.io.flatiron import MAPS

        chain = chain_of(fit.seeds, self.seed)
        if self.flatiron is not None and fit.pairs[chain].volume.dim != 3:
            what = type(fit.pairs[chain].volume).__name__
            raise InputError(f"flatiron: asks for maps in space, and the volume ({what}) is flat")
        mean, _ = draws.moments(fit, fitted, chain=chain)
        return clusters(mean.reshape(-1, mean.shape[-1]), self.clusters or MAPS)

    def _check_rows(self, fitted: int) -> None:
        from pyrocryo.io.copies import names_and_rows

        _, rows = names_and_rows(self.particles)
        if rows != fitted:
            raise InputError(
                f"particles: {self.particles} has {rows} rows, but the run is of {fitted} images"
            )
