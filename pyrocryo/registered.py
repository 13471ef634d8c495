"""Modules whose parameters ``pyro.infer.SVI`` finds, each under names of its own."""

from __future__ import annotations

import copy
import itertools
import weakref
from typing import Any

import pyro
from torch import nn

__all__ = ["Registered"]

_numbers = itertools.count()


class Registered(nn.Module):
    """A module with a prefix of its own in Pyro's global parameter store.

    Two modules with parameters of the same names would share them there; copies and what is
    unpickled get new prefixes, and values go with the module.
    """

    def __init__(self) -> None:
        super().__init__()
        self._take_name()

    def register(self) -> None:
        """Puts the trained parameters into the store, where ``pyro.infer.SVI`` looks for them."""
        for name, parameter in self.named_parameters():
            # (what stands in for a parameter while gradients are taken is not one)
            if parameter.requires_grad and isinstance(parameter, nn.Parameter):
                pyro.param(f"{self._name}.{name}", parameter)

    def __deepcopy__(self, memo: dict) -> Registered:
        """A copy under a name of its own, so that Pyro's parameter store keeps the two apart."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        new._take_name()
        return new

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._take_name()

    def _take_name(self) -> None:
        """A prefix of its own in Pyro's global parameter store, given up with the pair."""
        self._name = f"pair{next(_numbers)}"
        weakref.finalize(self, _forget, self._name).atexit = False


def _forget(name: str) -> None:
    store = pyro.get_param_store()
    for key in [key for key in store if key.startswith(f"{name}.")]:
        del store[key]
