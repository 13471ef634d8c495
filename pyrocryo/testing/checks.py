"""Runs checks one after another and gathers what each of them found."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["CheckFailed", "Checks", "Fault", "first_line", "mapped", "seeded", "tensors"]

LIBRARIES = ("torch", "pyro", "numpy", "scipy")


class CheckFailed(AssertionError):
    """Every fault that was found, one line each.

    Attributes:
        faults: A sentence by the name of the check.
    """

    def __init__(self, what: str, faults: Mapping[str, str]) -> None:
        self.faults = dict(faults)
        count = f"{len(self.faults)} fault" + "s" * (len(self.faults) > 1)
        lines = [f"{name}: {sentence}" for name, sentence in self.faults.items()]
        super().__init__("\n".join([f"{what} has {count}", *lines]))


class Fault(Exception):
    """What a check raises: one sentence."""


class Checks:
    """Runs checks by name; a check whose needs have not passed is left out.

    Args:
        what: Whose checks these are, for the message.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.passed: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        self._crash: Exception | None = None

    def run(self, name: str, check: Callable[[], str], *, needs: tuple[str, ...] = ()) -> None:
        """Runs ``check``, which says what it measured or raises; a crash is a fault as well."""
        if any(need not in self.passed for need in needs):
            return
        try:
            self.passed[name] = check()
        except Fault as fault:
            self.faults[name] = str(fault)
        except Exception as error:  # whatever the code under test may raise
            self.faults[name] = first_line(error)
            self._crash = self._crash or error

    def result(self) -> dict[str, str]:
        """What was measured, by check; raises CheckFailed if there is any fault."""
        if self.faults:
            raise CheckFailed(self.what, self.faults) from self._crash
        return self.passed


def first_line(error: Exception) -> str:
    """The exception in one line, with the last place that belongs to no library."""
    text = str(error).strip().splitlines() or [""]
    ours = Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.parent != ours and not set(LIBRARIES) & set(path.parts):
            return f"{type(error).__name__}: {text[0]} ({path.name}:{frame.lineno})"
    return f"{type(error).__name__}: {text[0]}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws from ``seed`` inside; random numbers, parameter store and validation as they were."""
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        torch.default_generator.manual_seed(seed)
        with pyro.validation_enabled(False), torch.enable_grad():
            yield


def mapped(law: Distribution, change: Callable[[Tensor], Tensor] | None = None) -> Any:
    """A copy that validates nothing, with ``change`` applied to every tensor that it holds."""
    new = copy.copy(law)
    new._validate_args = False
    for name, value in vars(law).items():
        if isinstance(value, Distribution):
            new.__dict__[name] = mapped(value, change)
        elif isinstance(value, Tensor) and change:
            new.__dict__[name] = change(value)
    return new


def tensors(law: Distribution) -> list[Tensor]:
    """Every tensor that a distribution holds, also inside its base distributions."""
    held = []
    for value in vars(law).values():
        if isinstance(value, Distribution):
            held += tensors(value)
        elif isinstance(value, Tensor):
            held.append(value)
    return held
