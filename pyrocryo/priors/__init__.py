"""Priors on the conformation z: one distribution, and its KL, a file.

Anything that maps a context to a Pyro distribution over `z` is a prior: a distribution, a function
or an `nn.Module` whose parameter names (or whose attribute ``fields``) are the particle fields it
wants. There is nothing to register.
"""

from pyrocryo.priors.blurred import Blurred
from pyrocryo.priors.boltzmann import Boltzmann, BoltzmannNormal
from pyrocryo.priors.conditional import Conditional
from pyrocryo.priors.energies import DoubleWell, Harmonic, LearnedEnergy, SingleWell
from pyrocryo.priors.gaussian import GaussianTransition
from pyrocryo.priors.jump import JumpTransition
from pyrocryo.priors.kinetics import Kinetics
from pyrocryo.priors.laplace import LaplaceTransition
from pyrocryo.priors.normal import IsotropicNormal
from pyrocryo.priors.pseudo_huber import PseudoHuberTransition
from pyrocryo.priors.shared import SharedFactors
from pyrocryo.priors.student import StudentTransition
from pyrocryo.priors.switching import SwitchingTransition
from pyrocryo.priors.transition import Transition
from pyrocryo.priors.wells import BoltzmannWells

__all__ = [
    "Blurred",
    "Boltzmann",
    "BoltzmannNormal",
    "BoltzmannWells",
    "Conditional",
    "DoubleWell",
    "GaussianTransition",
    "Harmonic",
    "IsotropicNormal",
    "JumpTransition",
    "Kinetics",
    "LaplaceTransition",
    "LearnedEnergy",
    "PseudoHuberTransition",
    "SharedFactors",
    "SingleWell",
    "StudentTransition",
    "SwitchingTransition",
    "Transition",
]
