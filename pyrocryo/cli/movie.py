"""``pyrocryo movie``: the motion along one axis of a run, as maps, structures and a script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

from pyrocryo.cli.latents import posterior
from pyrocryo.errors import InputError

if TYPE_CHECKING:
    from pyrocryo.io import Structure
    from pyrocryo.pair import Pair

__all__ = ["Movie", "named"]

KINDS = ("CA", "backbone", "all")


@dataclass
class Movie:
    """The motion along one axis of a run: maps, structures and a script for ChimeraX.

    The axis goes from its 5th to its 95th percentile over the posterior means, the other latents
    stay at their mean. Writes z1_01_first.mrc to z1_20_last.mrc; where the volume has atoms,
    z1.pdb with one model a frame, at its place in the maps; and z1.cxc, which opens and plays them
    and records z1.mp4 (chimerax z1.cxc). Of a flat volume, z1.mrcs: no structures and no script.
    Runs the model file kept in the run folder.
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path
    """A new folder to write to."""
    axis: int = 1
    """Which latent, from 1."""
    seed: int | None = None
    """Which seed of the run; by default its first."""
    frames: int = 20
    """Conformations along the axis."""
    structure: Path | None = None
    """PDB or mmCIF file that names the volume's atoms: of its Cα, its backbone or all its atoms,
    those that are as many; by default Cα of alanines."""
    chain: str | None = None
    """Which chain of the file; by default all."""

    def run(self) -> None:
        """Writes the files."""
        from pyrocryo import io
        from pyrocryo.diagnose.conformations import has_atoms
        from pyrocryo.io.annotated import chain_of

        _, z = posterior(self.run_folder)
        fit, _ = io.load_fit(self.run_folder)
        seed = fit.seeds[0] if self.seed is None else self.seed
        chain = chain_of(fit.seeds, seed)
        pair = fit.pairs[chain]
        if not 1 <= self.axis <= pair.dim:
            raise InputError(f"axis: expected 1 to {pair.dim}, got {self.axis}")
        if self.frames < 2:
            raise InputError(f"frames: expected two or more, got {self.frames}")
        names = None if self.structure is None else named(self.structure, pair, self.chain)
        io.new_folder(self.out)
        files = io.write_motion(
            self.out,
            fit,
            self.axis - 1,
            latents=z[chain],
            frames=self.frames,
            structure=names,
            seed=seed,
        )
        print("\n".join(str(path) for path in files if path.suffix != ".mrc"))
        maps = [path for path in files if path.suffix == ".mrc"]
        print(f"{maps[0]} to {maps[-1].name}")
        if pair.volume.dim == 2:
            print(f"the volume ({type(pair.volume).__name__}) is flat: images only")
        elif not has_atoms(pair):
            print(f"the volume ({type(pair.volume).__name__}) has no atoms: maps only")


def named(path: Path, pair: Pair, chain: str | None = None) -> Structure:
    """The atoms of a PDB or mmCIF file, or of one chain, that are as many as the volume's.

    Raises:
        InputError: If there are none, or the volume has no atoms.
    """
    from pyrocryo import io
    from pyrocryo.diagnose.conformations import atoms, has_atoms

    if not has_atoms(pair):
        what = type(pair.volume).__name__
        raise InputError(f"structure: the volume ({what}) has no atoms in space to give names to")
    count = atoms(pair, np.zeros(pair.dim)).shape[-2]
    held = {}
    for kind in KINDS:
        try:
            found = io.read_structure(path, atoms=kind, chain=chain)
        except InputError:
            if kind == "all":
                raise
            continue
        if len(found) == count:
            return found
        held[kind] = len(found)
    told = ", ".join(f"{kind} {number}" for kind, number in held.items())
    raise InputError(f"structure: the volume has {count} atoms, {path} holds others ({told})")
