"""Stochastic variational inference: the ELBO of a pair, maximised over several seeds."""

from pyrocryo.svi.devices import first_process
from pyrocryo.svi.plan import prepare
from pyrocryo.svi.reopen import reopen
from pyrocryo.svi.settings import Settings
from pyrocryo.svi.train import Fit, fit
from pyrocryo.svi.weights import Weights

__all__ = ["Fit", "Settings", "Weights", "first_process", "fit", "prepare", "reopen"]
