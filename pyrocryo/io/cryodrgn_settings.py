"""What the settings in a run folder of cryoDRGN's say."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pyrocryo.errors import InputError
from pyrocryo.files import contents
from pyrocryo.io.cryodrgn import read_pickles

__all__ = ["found_beside", "read_settings"]

WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Section → name → value of ``config.yaml``, or of the ``config.pkl`` of older versions.

    Of YAML only what cryoDRGN writes is understood: sections of names with a number, a word or a
    list of these. Deeper sections are left out.

    Raises:
        InputError: If there are no settings, or they cannot be read.
    """
    text, old = folder / "config.yaml", folder / "config.pkl"
    if text.is_file():
        return _sections(contents(text).decode("utf-8", errors="replace"))
    if old.is_file():
        told = read_pickles(old)[0]
        told = told if isinstance(told, dict) else {}
        return {name: args for name, args in told.items() if isinstance(args, dict)}
    raise InputError(f"{folder}: no config.yaml")


def found_beside(folder: Path, named: str) -> Path | None:
    """A file that settings name, where it was or in the folder itself; None if it is not there."""
    places = [Path(named), folder / named, folder / Path(named).name]
    return next((place for place in places if os.path.isfile(place)), None)


def _sections(text: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    section: dict[str, Any] = {}
    name = None
    for line in text.splitlines():
        if line[:1].strip():
            name, match = None, re.fullmatch(r"(\w+):\s*", line)
            section = found.setdefault(match[1], {}) if match else {}
        elif match := re.fullmatch(r"  (\w+):(?: (.*))?", line):
            name, section[match[1]] = match[1], _value(match[2] or "")
        elif name is not None and (match := re.fullmatch(r"  - (.*)", line)):
            held = section[name] if isinstance(section[name], list) else []
            section[name] = [*held, _value(match[1])]
    return found


def _value(text: str) -> Any:
    text = text.strip()
    if text in WORDS:
        return WORDS[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text.strip("'\"")
