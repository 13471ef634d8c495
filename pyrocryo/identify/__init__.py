"""Which latents mean something, and up to which symmetry."""

from pyrocryo.identify.automorphisms import Automorphism, automorphism
from pyrocryo.identify.consistency import Consistency, consistency
from pyrocryo.identify.falsify import Falsified, falsify
from pyrocryo.identify.flows import HamiltonianFlow, Rotation, Twist
from pyrocryo.identify.increments import Increments, increments, inferred
from pyrocryo.identify.power import Power, power
from pyrocryo.identify.sharpness import posterior_sd
from pyrocryo.identify.verdict import report, rotation_gap

__all__ = [
    "Automorphism",
    "Consistency",
    "Falsified",
    "HamiltonianFlow",
    "Increments",
    "Power",
    "Rotation",
    "Twist",
    "automorphism",
    "consistency",
    "falsify",
    "increments",
    "inferred",
    "posterior_sd",
    "power",
    "report",
    "rotation_gap",
]
