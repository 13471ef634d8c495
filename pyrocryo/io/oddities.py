"""Columns of star files that make images mean something else: refused, or warned of in one line.

Refused is what would make the model of the images wrong throughout (images multiplied by their
CTF, sheared or mirrored ones, stacks of tilts). Warned of is what the model leaves out, and what
it loses is resolution or a symmetry (beam tilt, aberrations, helices).
"""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["check_columns", "check_optics"]

log = logging.getLogger("pyrocryo")

REQUIRED = {  # value of the column, and why
    "rlnCtfDataAreCtfPremultiplied": (0, "images multiplied by their CTF are not supported"),
    "rlnCtfDataArePhaseFlipped": (0, "phase-flipped images are not supported"),
    "rlnImageDimensionality": (2, "only 2-D images are supported"),
    "rlnIsFlip": (0, "mirrored particles are not supported"),
    "rlnMagMat00": (1, "anisotropic magnification is not supported"),
    "rlnMagMat01": (0, "anisotropic magnification is not supported"),
    "rlnMagMat10": (0, "anisotropic magnification is not supported"),
    "rlnMagMat11": (1, "anisotropic magnification is not supported"),
    "rlnTomoSubTomogramsAre2DStacks": (0, "stacks of the tilts of a particle are not supported"),
}
NOT_MODELLED = {"rlnCtfScalefactor": 1, "rlnBeamTiltX": 0, "rlnBeamTiltY": 0}  # but for these
ABERRATIONS = ("rlnOddZernike", "rlnEvenZernike")  # lists, such as [0,0.1,-0.02]
KINDS = {  # columns that say by being there what particles are
    "rlnHelicalTubeID": "helical segments; neighbours in a tube and the symmetry are not used",
    "rlnTomoName": "from tomograms; the tilts of one molecule count as particles of their own",
}


def check_columns(rows: Any) -> None:
    """Refuses or warns of what stands in the columns of a star file, before an image is read.

    Args:
        rows: What has `columns` (strings by name), `path`, `numbers` (of a column) and `check`.

    Raises:
        InputError: If a column has a value under which the images mean something else.
    """
    for name, (value, reason) in REQUIRED.items():
        if name in rows.columns:
            ok = np.abs(rows.numbers(name) - value) < 1e-6
            rows.check(name, ok, f"{value}: {reason}")
    for name, kind in KINDS.items():
        if name in rows.columns:
            log.warning("%s: %s is %s: %s", rows.path, name, rows.columns[name][0], kind)


def check_optics(rows: Any) -> None:
    """Warns of the optics that the CTF of the model leaves out."""
    for name, value in NOT_MODELLED.items():
        if name in rows.columns:
            found = rows.numbers(name)
            odd = found[found != value]
            if odd.size:
                said = "%s: %s other than %g is not modelled, and it is %g in %d rows"
                log.warning(said, rows.path, name, value, odd[0], odd.size)
    for name in ABERRATIONS:
        if name in rows.columns:
            for text in dict.fromkeys(rows.columns[name]):
                if any(_terms(rows, name, text)):
                    log.warning(
                        "%s: %s is %s; aberrations are not modelled", rows.path, name, text
                    )
                    break


def _terms(rows: Any, name: str, text: str) -> list[float]:
    """The numbers of a list as RELION writes it."""
    try:
        return [float(term) for term in re.split(r"[,\s]+", text.strip("[] ")) if term]
    except ValueError:
        raise InputError(
            f"{rows.path}: {name} is {text!r}, expected a list such as [0,0.1]"
        ) from None
