"""STAR files as RELION writes them: named blocks, each one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gemmi import cif

from pyrocryo.errors import InputError
from pyrocryo.files import contents, replacing

__all__ = ["Table", "formatted", "read", "write"]

MANY = 10_000  # rows, from where on columns are not kept as Python's strings

Table = Mapping[str, list[str]]
"""Column name, without the leading underscore, to the values as they stand in the file."""


def read(path: str | Path) -> dict[str, Table]:
    """Reads all blocks of a STAR file.

    Args:
        path: The file.

    Returns:
        Tables by block name (``"particles"`` for ``data_particles``, ``""`` for ``data_``). A
        block without a loop is a table of one row. The columns of long loops become Python's
        strings each time they are asked for: a million rows of all columns take gigabytes.

    Raises:
        InputError: If the file cannot be read, or is not a STAR file of one table a block.
    """
    try:
        raw = contents(path)
        if not raw.isascii():
            raw.decode("utf-8")
        blocks = list(cif.read_string(raw))
        tables = {block.name.strip(): _table(block, path) for block in blocks}
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:  # of names and values that are not UTF-8, too
        raise InputError(f"{path}: not a STAR file ({' '.join(str(error).split())})") from error
    if not blocks:
        raise InputError(f"{path}: not a STAR file (it holds no data_ block)")
    return tables


def _table(block: cif.Block, path: str | Path) -> Table:
    loops = [item.loop for item in block if item.loop is not None]
    pairs = [item.pair for item in block if item.pair is not None]
    if len(loops) + bool(pairs) > 1:
        raise InputError(f"{path}: block data_{block.name.strip()} holds more than one table")
    if pairs:
        return {name[1:]: [_plain(value)] for name, value in pairs}
    if not loops:
        return {}
    loop = _Loop(block, loops[0].tags)
    return loop if loops[0].length() > MANY else dict(loop)


class _Loop(Table):
    """The columns of a long loop, kept as they were parsed."""

    def __init__(self, block: cif.Block, tags: Iterable[str]) -> None:
        self._block = block
        self._tags = {tag[1:]: tag for tag in tags}

    def __getitem__(self, name: str) -> list[str]:
        return [_plain(value) for value in self._block.find_loop(self._tags[name])]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tags)

    def __len__(self) -> int:
        return len(self._tags)

    def __contains__(self, name: object) -> bool:
        return name in self._tags

    def __or__(self, other: Table) -> Table:
        return {**self, **other}

    def __ror__(self, other: Table) -> Table:
        return {**other, **self}


def _plain(value: str) -> str:
    return cif.as_string(value) if value[0] in "'\";" else value


def write(path: str | Path, blocks: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    """Writes tables as RELION 3.1 does, whole or not at all.

    Numbers keep all the digits that their type carries.

    Args:
        path: File to write.
        blocks: Columns by name, by block name.

    Raises:
        InputError: If the columns of a block differ in length.
    """
    lines = []
    for block, table in blocks.items():
        lengths = {name: len(column) for name, column in table.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"data_{block}: columns differ in length: {lengths}")
        lines += ["", "# version 30001", "", f"data_{block}", "", "loop_"]
        lines += [f"_{name} #{i}" for i, name in enumerate(table, start=1)]
        lines += map(" ".join, zip(*map(formatted, table.values()), strict=True))
        lines += [""]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def formatted(column: Sequence[Any]) -> Iterable[str]:
    """Values as words of a star file, with all the digits that their type carries."""
    values = np.asarray(column)
    if values.dtype.kind == "f":
        return [f"{x:.9g}" for x in values] if values.itemsize <= 4 else map(repr, values.tolist())
    if values.dtype.kind in "iu":
        return map(str, values.tolist())
    return (cif.quote(str(value)) for value in column)
