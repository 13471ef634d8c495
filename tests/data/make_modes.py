"""Makes modes.npz: ProDy's eigenvalues, which tests/test_modes.py compares ours with.

    python tests/data/make_modes.py

Needs ProDy 2.6 (its ANM). The structure is the package's own: Cα of open adenylate kinase (4AKE).
"""

from pathlib import Path

import numpy as np
from prody import ANM

import pyrocryo as pc

LAWS = {"constant": 1.0, "inverse-square": lambda square, i, j: 3.8**2 / square}
CASES = [("constant", 15.0), ("constant", 10.0), ("inverse-square", 15.0), ("inverse-square", 1e3)]

ca = pc.molecules.AdenylateKinase().ca_open
found = []
for law, cutoff in CASES:
    network = ANM("adenylate kinase")
    network.buildHessian(ca, cutoff=cutoff, gamma=LAWS[law])
    network.calcModes(20)
    found.append(network.getEigvals())
laws, cutoffs = zip(*CASES, strict=True)
np.savez(
    Path(__file__).with_name("modes.npz"),
    law=np.array(laws),
    cutoff=np.array(cutoffs),
    eigenvalues=np.array(found),
)
