"""Molecules whose motions are known: the ground truth of benchmarks."""

from pyrocryo.molecules.adenylate_kinase import AdenylateKinase
from pyrocryo.molecules.arms import Arms, TwoArms

__all__ = ["AdenylateKinase", "Arms", "TwoArms"]
