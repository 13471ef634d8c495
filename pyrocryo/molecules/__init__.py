"""Molecules: those whose motions are known, and what structures and maps tell of motions."""

from pyrocryo.molecules.adenylate_kinase import AdenylateKinase
from pyrocryo.molecules.arms import Arms, TwoArms
from pyrocryo.molecules.arms3d import Arms3D
from pyrocryo.molecules.docking import Docked, dock
from pyrocryo.molecules.domains import DomainMotions, domain_angles
from pyrocryo.molecules.elastic import Elastic, Modes, normal_modes
from pyrocryo.molecules.mixture import Mixture, mixture
from pyrocryo.molecules.trajectory import Landscape, Well, amplitudes, anharmonic, overlap

__all__ = [
    "AdenylateKinase",
    "Arms",
    "Arms3D",
    "Docked",
    "DomainMotions",
    "Elastic",
    "Landscape",
    "Mixture",
    "Modes",
    "TwoArms",
    "Well",
    "amplitudes",
    "anharmonic",
    "dock",
    "domain_angles",
    "mixture",
    "normal_modes",
    "overlap",
]
