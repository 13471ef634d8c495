"""CryoDRGN's pickles: read without running what a pickle asks to run, and latents written."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import replacing

__all__ = ["read_pickle", "read_pickles", "read_poses", "write_cryodrgn_latents"]


class _Dtype:
    """Stands in for numpy's dtype: plain numbers only."""

    def __init__(self, code: str) -> None:
        if not (isinstance(code, str) and code[:1] in tuple("biuf") and code[1:].isdigit()):
            raise pickle.UnpicklingError(f"refused: it asks for an array of dtype {code!r}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """Stands in for a numpy array while its pickle is read."""

    numpy: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.numpy = _buffer(raw, dtype, shape, "F" if fortran else "C").numpy


def _buffer(raw: bytes, dtype: _Dtype, shape: tuple, order: str, *_: Any) -> _Array:
    array = _Array()
    array.numpy = np.frombuffer(raw, dtype.numpy).reshape(shape, order=order).copy()
    return array


class _Restricted(pickle.Unpickler):
    """Knows numpy arrays and numbers, built by our stand-ins, and nothing else.

    Numpy's own reconstruction would be handed flags and buffers that the file is free to forge.
    The functions are made anew for each request, since a pickle may set attributes on them.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("multiarray", "_reconstruct"): lambda *_: _Array(),
            ("multiarray", "scalar"): lambda dtype, raw: _buffer(raw, dtype, (), "C"),
            ("numeric", "_frombuffer"): lambda *args: _buffer(*args),
            ("numpy", "dtype"): lambda code, *_: _Dtype(code),
            ("numpy", "ndarray"): lambda *_: _Array(),
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
        }
        for core in ("numpy.core.", "numpy._core."):  # before and since numpy 2
            if module.startswith(core):
                module = module.removeprefix(core)
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}")
        return allowed[module, name]


def read_pickle(path: str | Path) -> Any:
    """Reads a pickle of numpy arrays, numbers, strings, lists, tuples and dicts.

    Pickles are programs; this reads data and runs nothing. Of several pickles in one file the
    first is read.

    Raises:
        InputError: If the file cannot be read, or asks for anything else than data.
    """
    return read_pickles(path)[0]


def read_pickles(path: str | Path, most: int = 1) -> list[Any]:
    """Reads up to ``most`` pickles that stand in one file, as :func:`read_pickle` does.

    CryoDRGN's ``z.N.pkl`` holds two: posterior means, and logarithms of posterior variances.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror or error})") from error
    stream, found = io.BytesIO(raw), []
    try:
        while len(found) < most and (not found or stream.tell() < len(raw)):
            found.append(_unwrapped(_Restricted(stream).load()))
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a file that is not a pickle fails in any way it likes
        raise InputError(f"{path}: not a pickle of arrays ({error})") from error
    return found


def _unwrapped(value: Any) -> Any:
    """Puts arrays where their stand-ins are."""
    if isinstance(value, _Array):
        return value.numpy if value.numpy.ndim else value.numpy[()]
    if isinstance(value, list | tuple):
        return type(value)(map(_unwrapped, value))
    if isinstance(value, dict):
        return {key: _unwrapped(entry) for key, entry in value.items()}
    return value


def read_poses(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads cryoDRGN's poses: a pickled pair (rot, trans), or rot alone.

    cryoDRGN's rotation is ours: a point `p` of the molecule is seen at `rot @ p`. Its translation
    is what must be added to the image to centre it, so the molecule's displacement from the box
    centre is -trans * box * pixel size.

    Returns:
        Rotations `(N, 3, 3)` and translations `(N, 2)` (x, y) as fractions of the box, float64;
        zeros where the file holds rotations alone.

    Raises:
        InputError: If the pickle is refused, or does not hold rotations.
    """
    content = read_pickle(path)
    content = content if isinstance(content, tuple | list) else (content,)
    if len(content) not in (1, 2) or not all(isinstance(a, np.ndarray) for a in content):
        raise InputError(f"{path}: expected rotations, or a pair (rotations, translations)")
    rotation = np.array(content[0], dtype=np.float64)
    if rotation.ndim != 3 or rotation.shape[1:] != (3, 3):
        raise InputError(f"{path}: expected rotations (N, 3, 3), got {rotation.shape}")
    n = len(rotation)
    trans = np.asarray(content[1], dtype=np.float64) if len(content) == 2 else np.zeros((n, 2))
    if trans.shape != (n, 2):
        raise InputError(f"{path}: expected translations ({n}, 2), got {trans.shape}")
    finite = np.isfinite(rotation).all(axis=(1, 2))
    rotation[~finite] = 0.0
    error = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max(axis=(1, 2), initial=0)
    bad = np.flatnonzero((error > 1e-3) | (np.linalg.det(rotation) < 0))
    if bad.size:
        raise InputError(
            f"{path}: matrix {bad[0] + 1} is not a rotation (A A^T differs from 1 by "
            f"{error[bad[0]]:.2g}, or its determinant is negative)"
        )
    if not np.isfinite(trans).all():
        row = np.argwhere(~np.isfinite(trans))[0][0]
        raise InputError(f"{path}: translation {row + 1} is not a finite number")
    return rotation, trans


def write_cryodrgn_latents(path: str | Path, z: np.ndarray, sd: np.ndarray | None = None) -> None:
    """Writes latents as cryoDRGN does, ``z.pkl``: means, and log-variances if given.

    Two pickles of float32 arrays, one after the other, of which ``cryodrgn analyze`` reads the
    first; name it ``z.N.pkl`` (N is the epoch it asks for) where that is to find it.

    Args:
        path: File to write; one that is there is replaced.
        z: Means `(N, K)`, one row an image, in the order of the particles cryoDRGN is given.
        sd: Standard deviations `(N, K)`.

    Raises:
        InputError: If shapes are others, or a number is not finite.
    """
    arrays = []
    for name, value in (("z", z), ("sd", sd)):
        if value is None:
            continue
        value = np.asarray(value)
        if value.ndim != 2 or 0 in value.shape or value.dtype.kind not in "iuf":
            raise InputError(f"{name}: expected numbers (N, K), got {value.dtype} {value.shape}")
        if arrays and value.shape != arrays[0].shape:
            raise InputError(f"sd: expected the shape of z, {arrays[0].shape}, got {value.shape}")
        good = np.isfinite(value) & ((value > 0) | (name == "z"))
        if not good.all():
            row = np.argwhere(~good)[0][0]
            more = "" if name == "z" else ", more than 0"
            raise InputError(
                f"{name}: row {row + 1} is {value[row].tolist()}, expected finite numbers{more}"
            )
        value = 2 * np.log(value) if name == "sd" else value
        arrays.append(np.ascontiguousarray(value, dtype=np.float32))
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            for array in arrays:
                pickle.dump(array, file, protocol=4)  # of 5, numpy 1.26 lacks a part
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error.strerror or error})") from error
