"""Probabilistic modelling of cryo-EM heterogeneity, with latents that can be identified."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "diagnose", "errors", "frames", "guides", "halves", "identify", "imaging", "inspection",
    "interventions", "io", "metrics", "molecules", "noise", "optics", "penalties", "plots",
    "poses", "preprocess", "priors", "report", "rotations", "simulate", "svi", "testing",
    "volumes",
)  # fmt: skip
_NAMES = {
    "Fit": "svi",
    "InputError": "errors",
    "Interventions": "interventions",
    "Pair": "pair",
    "Particles": "particles",
    "elpd": "evidence",
    "fit": "svi",
    "nuts": "sampling",
    "posed": "draws",
    "posterior": "draws",
    "refined": "semi_amortised",
}

__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    """Loads what is asked for when it is asked for: importing pyrocryo alone costs nothing."""
    if name in _MODULES:
        return importlib.import_module(f"pyrocryo.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"pyrocryo.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pyrocryo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
