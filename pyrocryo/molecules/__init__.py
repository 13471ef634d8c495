"""Molecules whose motions are known: the ground truth of benchmarks."""

from pyrocryo.molecules.adenylate_kinase import AdenylateKinase
from pyrocryo.molecules.arms import Arms, TwoArms
from pyrocryo.molecules.arms3d import Arms3D
from pyrocryo.molecules.domains import DomainMotions, domain_angles
from pyrocryo.molecules.elastic import Elastic, Modes, normal_modes

__all__ = [
    "AdenylateKinase", "Arms", "Arms3D", "DomainMotions", "Elastic", "Modes", "TwoArms",
    "domain_angles", "normal_modes",
]  # fmt: skip
