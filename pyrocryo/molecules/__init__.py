"""Molecules whose motions are known: the ground truth of benchmarks."""

from pyrocryo.molecules.adenylate_kinase import AdenylateKinase
from pyrocryo.molecules.arms import Arms, TwoArms
from pyrocryo.molecules.arms3d import Arms3D

__all__ = ["AdenylateKinase", "Arms", "Arms3D", "TwoArms"]
