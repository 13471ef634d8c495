"""Priors on the conformation z: one distribution, and its KL, a file.

Anything that maps a context to a Pyro distribution over `z` is a prior: a distribution, a function
or an `nn.Module` whose parameter names are the particle fields it wants. There is nothing to
register.
"""

from pyrocryo.priors.boltzmann import Boltzmann, BoltzmannNormal
from pyrocryo.priors.energies import DoubleWell, Harmonic, LearnedEnergy
from pyrocryo.priors.laplace import LaplaceTransition
from pyrocryo.priors.normal import IsotropicNormal
from pyrocryo.priors.wells import BoltzmannWells

__all__ = [
    "Boltzmann",
    "BoltzmannNormal",
    "BoltzmannWells",
    "DoubleWell",
    "Harmonic",
    "IsotropicNormal",
    "LaplaceTransition",
    "LearnedEnergy",
]
