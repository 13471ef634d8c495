"""Probabilistic modelling of cryo-EM heterogeneity, with latents that can be identified.

Data goes one way, and no stage reaches back:

1. **Load or simulate** `pyrocryo.Particles`: `pyrocryo.io.load`, or `pyrocryo.simulate` with one
   of `pyrocryo.molecules`.
2. **Pair** a model with its guide, `pyrocryo.Pair`: one of `pyrocryo.priors`, `pyrocryo.poses`,
   `pyrocryo.volumes`, `pyrocryo.guides`, with `pyrocryo.optics` and `pyrocryo.noise`;
   `pyrocryo.testing` says what is wrong with one of your own.
3. **Fit**: `pyrocryo.fit` gives a `pyrocryo.Fit` of several seeds.
4. **Posterior**: `pyrocryo.posterior`, for ArviZ; better ones by `pyrocryo.refined` and
   `pyrocryo.nuts`, and `pyrocryo.elpd` to compare models.
5. **Diagnose**: `pyrocryo.diagnose.check` asks whether it is the posterior, and the model that of
   the images.
6. **Identify**: `pyrocryo.identify.report` says whether axes may be read, `pyrocryo.metrics` how
   far they are from a truth that is known.
7. **Export and report**: `pyrocryo.io.export` and `pyrocryo.report.write` make run folders, maps,
   movies and one page.

The command line has the same names: `pyrocryo simulate`, `fit`, `diagnose`, `identify`, `export`,
`report`. Pages with one question each are in the folder docs of the repository.
"""

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
    "modes": "peaks",
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
