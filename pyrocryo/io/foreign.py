"""Folders that no run of pyrocryo left, and who reads them."""

from __future__ import annotations

from pathlib import Path

from pyrocryo.errors import InputError

__all__ = ["no_run"]

MARKS = {  # files of other programs, and what reads them
    "cryoDRGN's": (("z.pkl", "z.*.pkl", "weights*.pkl"), "pyrocryo audit reads these"),
    "RELION's or cryoSPARC's": (
        ("*.star", "*.cs"),
        "its particles are for pyrocryo inspect and fit --data",
    ),
}


def no_run(folder: Path, lacks: str) -> InputError:
    """The error to raise of a folder without a file that finished runs of pyrocryo have."""
    text = f"{folder} is not a finished run folder: it has no {lacks}"
    if (folder / "checkpoint.pt").is_file():
        return InputError(f"{text}; its fit was stopped and goes on with --resume")
    for whose, (names, reader) in MARKS.items():
        if any(next(folder.glob(name), None) for name in names):
            return InputError(f"{text}; it looks like {whose}: {reader}")
    return InputError(text)
