"""Stochastic variational inference: the ELBO of a pair, maximised over several seeds."""

from pyrocryo.svi.train import Fit, Settings, fit
from pyrocryo.svi.weights import Weights

__all__ = ["Fit", "Settings", "Weights", "fit"]
