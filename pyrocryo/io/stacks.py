"""Where the stacks of images are that a file names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pyrocryo.errors import InputError
from pyrocryo.files import contents

__all__ = ["found_stack", "listed_stacks", "project_folders"]


def project_folders(path: Path, folder: str | Path | None) -> list[Path]:
    """Where relative names in a file may start: the folder that is given, else those around."""
    if folder is not None:
        return [Path(folder)]
    _, *above = path.absolute().parents
    return list(dict.fromkeys([path.parent, Path.cwd(), *above]))


def found_stack(name: str, folders: Sequence[Path], source: str) -> Path:
    """The stack ``name`` in the first of the folders that has it."""
    for folder in folders:
        if os.path.isfile(folder / name):  # of Path's, names that are too long are an error
            return folder / name
    where = ", ".join(map(str, folders))
    raise InputError(
        f"{source}: image stack {name} is not in any of {where}; say with folder= "
        "(--folder on the command line) where the project's folder is"
    )


def listed_stacks(path: Path, folder: str | Path | None) -> list[Path]:
    """The stacks that a text file names, a line each."""
    try:
        lines = contents(path).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a text file that names a stack a line") from None
    names = [(n, line.strip()) for n, line in enumerate(lines, start=1) if line.strip()]
    if not names:
        raise InputError(f"{path}: names no stacks")
    folders = project_folders(path, folder)
    return [found_stack(name, folders, f"line {n} of {path}") for n, name in names]
