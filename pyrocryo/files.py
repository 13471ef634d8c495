"""Files are read if they are files, and written whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError

__all__ = [
    "contents",
    "read_json",
    "regular",
    "replacing",
    "understood",
    "unpacked",
    "unreadable",
]

UNPACKED = 100  # times its size, that a gzipped file may hold; text takes about 5


def regular(path: str | Path) -> None:
    """Raises InputError unless ``path`` is a file: pipes and devices never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a name with a null in it
        raise unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: cannot read it (it is a folder)")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: cannot read it (it is not a regular file)")


def contents(path: str | Path) -> bytes:
    """All bytes of a file; InputError where it cannot be read."""
    regular(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; InputError where it cannot be read, or holds none."""
    raw = contents(path)
    try:
        content = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object of names and values")
    return content


@contextmanager
def understood(what: str | Path) -> Iterator[None]:
    """Raises InputError in place of what goes wrong with the content of a file of ours.

    For files whose form is too rich to be checked entry by entry, such as the verdicts in a run
    folder: whatever somebody has changed in them, it is not a bug that they cannot be shown.
    """
    try:
        with np.errstate(all="ignore"):  # of numbers that nobody measured
            yield
    except InputError:
        raise
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{what}: something in it is not as pyrocryo writes it ({said})"
        ) from error


def unreadable(path: str | Path, error: Exception) -> InputError:
    """What to raise where the system does not let us read."""
    return InputError(f"{path}: cannot read it ({getattr(error, 'strerror', None) or error})")


def unpacked(path: str | Path) -> bytes:
    """What a file holds, plain or gzipped; InputError where it holds far more than it takes."""
    raw = contents(path)
    if raw[:2] != b"\x1f\x8b":
        return raw
    most = UNPACKED * len(raw)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            text = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be unpacked ({error})") from error
    if len(text) > most:
        raise InputError(f"{path}: unpacks to more than {UNPACKED} times its size")
    return text


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path``, renamed to it once the block ends without error.

    The temporary name keeps the suffix, for writers that go by it. What stood at ``path`` stays
    until then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
