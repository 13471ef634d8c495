"""Molecules whose motions are known: the ground truth of benchmarks."""

from pyrocryo.molecules.adenylate_kinase import AdenylateKinase
from pyrocryo.molecules.arms import Arms, TwoArms
from pyrocryo.molecules.arms3d import Arms3D
from pyrocryo.molecules.elastic import Elastic, Modes, normal_modes
from pyrocryo.molecules.trajectory import amplitudes, anharmonic, overlap

__all__ = [
    "AdenylateKinase",
    "Arms",
    "Arms3D",
    "Elastic",
    "Modes",
    "TwoArms",
    "amplitudes",
    "anharmonic",
    "normal_modes",
    "overlap",
]
