"""From words to a command: options as dataclasses, bad input in one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Annotated, Any

import tyro

from pyrocryo.errors import InputError

__all__ = ["options", "parsed"]


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
        member = Annotated[command, called]
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
