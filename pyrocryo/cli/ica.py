"""``pyrocryo ica``: linear ICA of latents, and whether it can have told them apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

from pyrocryo.cli.latents import array, posterior
from pyrocryo.cli.movie import named
from pyrocryo.errors import InputError

if TYPE_CHECKING:
    from pyrocryo.identify import LinearICA

__all__ = ["Ica"]


@dataclass
class Ica:
    """PCA and FastICA of latents: negentropies, and which components are told apart.

    Of a run folder (each seed by itself), of a .npy array (N, K), or of cryoDRGN's z.N.pkl (read
    as data, not run). With --out also lists of the particles at both ends of each component and,
    of a run, maps and structures along it, which runs the model file kept in its folder.
    """

    latents: tyro.conf.Positional[Path]
    """Run folder, .npy array, or .pkl file."""
    components: int | float | None = None
    """Principal components to keep, or, below 1, the share of variance; by default all."""
    method: str = "fastica"
    """fastica, or pca to leave the principal components unturned."""
    subspaces: int | None = None
    """Groups to put dependent components into; by default as they come."""
    bins: int = 10
    """Bins along a component, of equally many particles."""
    seed: int = 0
    """Draws starts and halves."""
    structure: Path | None = None
    """PDB or mmCIF file that names the volume's atoms; by default Cα of alanines."""
    chain: str | None = None
    """Which chain of that file; by default all."""
    out: Path | None = None
    """Also write ica.json, sources.npy, lists of particles, maps, structures where the volume has
    atoms, and scripts for ChimeraX to this folder."""

    def run(self) -> None:
        """Prints the components."""
        from pyrocryo import identify, io
        from pyrocryo.report.page import read_run

        if self.bins < 2:
            raise InputError(f"bins: expected two or more, got {self.bins}")
        if self.structure is not None and (self.out is None or not self.latents.is_dir()):
            raise InputError("structure: names the atoms that a run decodes; give a run and --out")
        latents: dict[int | None, np.ndarray] = {}
        images, frames, fit = None, 1, None
        if self.latents.is_dir():
            seeds = read_run(self.latents)["config"]["seeds"]
            rows, z = posterior(self.latents)
            frames = z.shape[2] if z.ndim == 4 else 1
            images = (frames * rows[:, None] + np.arange(frames)).reshape(-1)
            flat = z.reshape(len(z), -1, z.shape[-1])
            latents |= zip(seeds, flat, strict=True)
        else:
            latents[None] = array(self.latents)
        found = {}
        for seed, z in latents.items():
            found[seed] = ica = identify.linear_ica(
                z,
                components=self.components,
                method=self.method,
                subspaces=self.subspaces,
                frames=frames,
                seed=self.seed,
            )
            of = "" if seed is None else f" seed {seed}"
            print(f"{self.latents}{of}: {ica.sentence}")
            print("\n".join(f"  {line}" for line in _table(ica)), end="\n\n")
        if self.out is None:
            return
        if self.latents.is_dir():
            fit, _ = io.load_fit(self.latents)
        names = None
        if self.structure is not None:
            names = named(self.structure, fit.pairs[0], self.chain)
        io.new_folder(self.out)
        for seed, ica in found.items():
            folder = self.out if seed is None else self.out / f"seed{seed}"
            io.write_components(
                folder, fit, ica, count=self.bins, seed=seed, structure=names, rows=images
            )
        print(self.out)


def _table(ica: LinearICA) -> list[str]:
    from pyrocryo.report.differences import aligned

    lines = [["component", "negentropy", "p Gaussian", "stability", "told apart"]]
    for k, apart in enumerate(ica.separated):
        lines.append(
            [
                str(k + 1),
                f"{ica.negentropy[k]:.4f} ± {ica.negentropy_se[k]:.4f}",
                f"{ica.gaussian_p[k]:.2g}",
                f"{ica.stability[k]:.3f}",
                "yes" if apart else "no",
            ]
        )
    for k, (j, se) in enumerate(zip(ica.pca_negentropy, ica.pca_negentropy_se, strict=True)):
        lines.append([f"PC {k + 1}", f"{j:.4f} ± {se:.4f}", "", "", ""])
    return aligned(lines)
