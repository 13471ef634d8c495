"""Which latents mean something, and up to which symmetry."""

from pyrocryo.identify.automorphisms import Automorphism, automorphism
from pyrocryo.identify.check_prior import check_prior
from pyrocryo.identify.consistency import Consistency, consistency
from pyrocryo.identify.falsify import Falsified, falsify
from pyrocryo.identify.flows import HamiltonianFlow, Rotation, Twist
from pyrocryo.identify.frame import PoseFrame, frame
from pyrocryo.identify.ica import LinearICA, linear_ica
from pyrocryo.identify.increments import Increments, increments, inferred
from pyrocryo.identify.jacobian import Jacobian, ima_contrast, jacobian
from pyrocryo.identify.plain import plain
from pyrocryo.identify.power import Power, power
from pyrocryo.identify.prior_check import PriorCheck
from pyrocryo.identify.sharpness import posterior_sd
from pyrocryo.identify.verdict import report, rotation_gap

__all__ = [
    "Automorphism",
    "Consistency",
    "Falsified",
    "HamiltonianFlow",
    "Increments",
    "Jacobian",
    "LinearICA",
    "PoseFrame",
    "Power",
    "PriorCheck",
    "Rotation",
    "Twist",
    "automorphism",
    "check_prior",
    "consistency",
    "falsify",
    "frame",
    "ima_contrast",
    "increments",
    "inferred",
    "jacobian",
    "linear_ica",
    "plain",
    "posterior_sd",
    "power",
    "report",
    "rotation_gap",
]
