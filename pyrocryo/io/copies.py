"""Copies of the user's own .star and .cs files: rows left out, columns added, all else kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gemmi import cif

from pyrocryo.errors import InputError
from pyrocryo.files import contents, replacing
from pyrocryo.io import cryosparc, star

__all__ = ["copied", "names_and_rows"]

VALUE = re.compile(rb"'.*?'(?=\s|$)|\".*?\"(?=\s|$)|(?:^|(?<=\s))#.*|\S+")


def names_and_rows(path: str | Path) -> tuple[list[str], int]:
    """Names of the columns of particles in a .star or .cs file, and how many rows it has."""
    path = Path(path)
    suffix = _suffix(path)
    if suffix == ".cs":
        table = cryosparc.read(path)
        return list(table.dtype.names or ()), len(table)
    tags, size, _ = _particles(path, contents(path))
    return [tag[1:] for tag in tags], size


def copied(
    path: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, np.ndarray] | None = None,
    keep: np.ndarray | None = None,
) -> None:
    """Writes a copy of a .star or .cs file, whole or not at all.

    Of a star file every byte stays but for the rows left out, the names of the new columns after
    those of the particles' table, and their values at the end of its rows. Of a .cs file the
    records' bytes stay.

    Args:
        path: The file.
        out: The copy, of the same kind.
        columns: New columns by name: `(N,)`, or, in a .cs file, `(N, K)`.
        keep: Which rows to keep `(N,)` bool; by default all.

    Raises:
        InputError: If the file cannot be read or copied so, ``out`` is there already or of
            another kind, or a column is.
    """
    path, out = Path(path), Path(out)
    suffix = _suffix(path)
    if out.suffix.lower() != suffix:
        raise InputError(f"{out}: expected a name that ends in {suffix}, as {path.name} does")
    if out.exists():
        raise InputError(f"{out}: is there already; name another, or remove it first")
    write = _copy_cs if suffix == ".cs" else _copy_star
    try:
        write(path, out, dict(columns or {}), keep)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot write there ({error.strerror})") from error


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".star", ".cs"):
        raise InputError(f"{path}: expected a file that ends in .star or .cs")
    return suffix


def _fresh(path: Path, there: Any, columns: Mapping[str, np.ndarray]) -> None:
    if taken := [name for name in columns if name in there]:
        raise InputError(f"{path}: has a column {taken[0]} already; start from the file without")


def _copy_cs(
    path: Path, out: Path, columns: dict[str, np.ndarray], keep: np.ndarray | None
) -> None:
    old = cryosparc.read(path)
    names = old.dtype.names or ()
    _fresh(path, names, columns)
    chosen = slice(None) if keep is None else keep
    fields: list[Any] = [(name, old.dtype.fields[name][0]) for name in names]  # type: ignore[index]
    fields += [(name, value.dtype, value.shape[1:]) for name, value in columns.items()]
    part = old[chosen]
    new = np.empty(len(part), dtype=fields) if columns else part
    if columns:
        for name in names:
            new[name] = part[name]
        for name, value in columns.items():
            new[name] = value[chosen]
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(new), allow_pickle=False)


def _copy_star(
    path: Path, out: Path, columns: dict[str, np.ndarray], keep: np.ndarray | None
) -> None:
    raw = contents(path)
    tags, size, line = _particles(path, raw)
    _fresh(path, [tag[1:] for tag in tags], columns)
    lines = raw.split(b"\n")
    last, rows = _rows(lines, line, [tag.encode() for tag in tags], size, path)
    values = zip(*map(star.formatted, columns.values()), strict=True) if columns else None
    dropped = set()
    for n, i in enumerate(rows):
        more = "" if values is None else " ".join(next(values))
        if keep is not None and not keep[n]:
            dropped.add(i)
        elif more:
            lines[i] = _with(lines[i], more.encode())
    if columns:
        lines[last] = b"\n".join(_headed(lines[last], len(tags), columns))
    text = b"\n".join(line for i, line in enumerate(lines) if i not in dropped)
    with replacing(out) as temporary:
        temporary.write_bytes(text)


def _particles(path: Path, raw: bytes) -> tuple[list[str], int, int]:
    """The table of particles: that of data_particles, or the only one that names images.

    Returns:
        The names of its columns, how many rows it has, and the line of its ``loop_``, from 1.
    """
    try:
        loops = {
            block.name.strip(): (list(item.loop.tags), item.loop.length(), item.line_number)
            for block in cif.read_string(raw)
            for item in block
            if item.loop is not None and "_rlnImageName" in item.loop.tags
        }
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not a STAR file ({' '.join(str(error).split())})") from error
    if "particles" not in loops and len(loops) != 1:
        found = f"{len(loops)} tables have" if loops else "no table has"
        raise InputError(f"{path}: {found} a column rlnImageName, expected one")
    return loops["particles"] if "particles" in loops else next(iter(loops.values()))


def _rows(
    lines: list[bytes], start: int, tags: list[bytes], count: int, path: Path
) -> tuple[int, list[int]]:
    """Where the last name of a column is, and each row, given the line of ``loop_`` (from 1)."""
    last, found, rows = -1, 0, []
    for i in range(start, len(lines)):
        words = _words(lines[i])
        if not words:
            continue
        if found < len(tags):
            if words != [tags[found]]:
                break
            last, found = i, found + 1
            continue
        if len(rows) == count:
            break
        if len(words) != len(tags):
            break
        rows.append(i)
    if len(rows) != count:
        raise InputError(
            f"{path}: line {i + 1} is neither one column's name nor one whole row; only tables "
            "of one row a line can be copied"
        )
    return last, rows


def _words(line: bytes) -> list[bytes]:
    if any(mark in line for mark in (b"'", b'"', b"#")):
        return [word for word in VALUE.findall(line) if not word.startswith(b"#")]
    return line.split()


def _with(line: bytes, more: bytes) -> bytes:
    """A row with values added, before any comment and the space at its end."""
    end = len(line.rstrip())
    if b"#" in line:
        end = max(m.end() for m in VALUE.finditer(line) if not m[0].startswith(b"#"))
    return line[:end] + b" " + more + line[end:]


def _headed(line: bytes, count: int, columns: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The line of the last column's name, and those of new ones in its style."""
    yield line
    numbered, end = b"#" in line, line[len(line.rstrip()) :]
    for n, name in enumerate(columns, start=count + 1):
        yield f"_{name}{f' #{n}' if numbered else ''}".encode() + end
