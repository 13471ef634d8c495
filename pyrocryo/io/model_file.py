"""Model files: an experiment as a Python file with a Config and a pair."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from pyrocryo.errors import InputError
from pyrocryo.files import replacing

__all__ = ["KEPT", "SIMULATED", "keep_model", "load_model"]

KEPT = "model.py"  # the copy in a run folder
FOCUS = "focus.mrc"  # the mask, in a run folder
SIMULATED = "simulated by the model file"  # the source of its particles, in config.json


def load_model(path: Path) -> ModuleType:
    """Runs a model file and returns it as a module.

    Raises:
        InputError: If there is no such Python file, its syntax is wrong, or it lacks a dataclass
            ``Config`` or a function ``pair``; what running it raises is passed on.
    """
    if not path.is_file():
        raise InputError(f"model: there is no file {path}")
    if path.suffix != ".py":
        raise InputError(f"model: expected a Python file, got {path}; particles go to --data")
    spec = importlib.util.spec_from_file_location(f"pyrocryo_model_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise InputError(f"model: {where}: {error.msg}") from None
    for name, kind in (("pair", inspect.isfunction), ("Config", dataclasses.is_dataclass)):
        if not kind(getattr(module, name, None)):
            raise InputError(
                f"model: {path} defines no {name}; a model file has a dataclass Config and a "
                "function pair(config, particles)"
            )
    return module


def keep_model(path: Path, folder: Path) -> None:
    """Copies a model file into a run folder, which can then be opened when the file changes."""
    if path.resolve() == (folder / KEPT).resolve():
        return
    with replacing(folder / KEPT) as temporary:
        temporary.write_bytes(path.read_bytes())
