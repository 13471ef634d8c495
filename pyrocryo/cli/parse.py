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


def parsed(commands: Mapping[str, type], argv: Sequence[str], description: str) -> Any:
    """The command that ``argv`` names, with its options.

    Raises:
        InputError: In one line, for words that name none.
    """
    union = Any
    listed = not argv or argv[0].startswith("-")  # all of them: the first line of each will do
    for n, (name, command) in enumerate(commands.items()):
        about = (command.__doc__ or "").partition("\n")[0] if listed else None
        called = tyro.conf.subcommand(name, prefix_name=False, description=about)
        member = Annotated[unset(command), called]
        union = member if n == 0 else union | member
    return options(union, argv, description)


def options(kind: Any, argv: Sequence[str], description: str) -> Any:
    """A ``kind`` as ``argv`` gives its options; else as for :func:`parsed`."""
    said = StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog="pyrocryo", description=description, args=list(argv))
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro draws a box, or lines, around several lines under a title; bad input gets one
        title, _, text = said.getvalue().strip().partition("\n")
        text = " ".join(re.sub("[─│╭╮╰╯]+|-{4,}", " ", text or title).split())
        raise InputError(text) from None


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
