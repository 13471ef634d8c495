"""From words to a command: options as dataclasses, bad input in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Annotated, Any, get_type_hints

import tyro

from pyrocryo.errors import InputError

__all__ = ["options", "parsed", "unset"]

UNSET = tyro.conf.arg(help_behavior_hint=lambda default: "")

OPTION = r"(?<!\S)(--[a-z][\w-]*)(?= \{|, --no-| [A-Z])"
VALUE = (
    r"^Error parsing (--?[\w-]+): .*? matching (?:\{None\}\|)?(.+?) could be .*? from "
    r"\[(.*?)\]\..*"
)


def parsed(commands: Mapping[str, type], argv: Sequence[str], description: str) -> Any:
    """The command that ``argv`` names, with its options.

    Raises:
        InputError: In one line, for words that name none.
    """
    if argv and argv[0] in commands:  # alone, so that no other one's options are suggested
        return options(unset(commands[argv[0]]), argv[1:], None, prog=f"pyrocryo {argv[0]}")
    union = Any
    for n, (name, command) in enumerate(commands.items()):
        about = (command.__doc__ or "").partition("\n")[0]
        called = tyro.conf.subcommand(name, prefix_name=False, description=about)
        member = Annotated[unset(command), called]
        union = member if n == 0 else union | member
    return options(union, argv, description)


def options(
    kind: Any, argv: Sequence[str], description: str | None, *, prog: str = "pyrocryo"
) -> Any:
    """A ``kind`` as ``argv`` gives its options; else as for :func:`parsed`."""
    said = StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, description=description, args=list(argv))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_line(said.getvalue())) from None


def unset(kind: type) -> type:
    """A dataclass of options, the help of which ends in no "(default: None)" and "(default: )".

    What is done where such an option is not given it says in words, or it goes without saying.
    """
    hints = get_type_hints(kind, include_extras=True)
    silent = {
        field.name: Annotated[hints[field.name], UNSET]
        for field in dataclasses.fields(kind)
        if field.default in (None, (), dataclasses.MISSING)
        and field.default_factory is dataclasses.MISSING
    }
    known = {"__annotations__": silent, "__doc__": kind.__doc__, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), known)


def _line(said: str) -> str:
    """What tyro says in a box, or between lines, of several parts under a title, in one line."""
    title, *rest = said.strip().splitlines()
    parts: list[list[str]] = [[]]
    for row in rest:
        text = re.sub("[─│╭╮╰╯]+|-{4,}", " ", row).strip()
        if not text and re.search("─|-{4,}", row):
            parts.append([])
        elif text:
            parts[-1].append(text)
    told = [" ".join(part) for part in parts if part] or [title]
    line = told[0].replace(" (required)", "")
    line = re.sub(VALUE, r"\1: expected \2, got \3", line).rstrip(".")
    for part in told[1:]:
        if part.startswith("Perhaps you meant"):
            names = dict.fromkeys(re.findall(OPTION, part))
            line += f"; did you mean {' or '.join(names)}?" if names else ""
        elif found := re.match(r"For full helptext, (?:run|see):? (.*)", part):
            line += f"{'' if line.endswith('?') else ';'} see {found[1]}"
        elif part.startswith("Available subcommands"):
            line += f". {part}"
    return line
