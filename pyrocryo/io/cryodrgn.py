"""CryoDRGN's pickles: read without running what a pickle asks to run, and latents written."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import contents, replacing

__all__ = ["read_pickle", "read_pickles", "read_poses", "write_cryodrgn_latents"]


class _Dtype:
    """Stands in for numpy's dtype: plain numbers only."""

    def __init__(self, code: str) -> None:
        if type(code) is not str:  # whose repr may be endless
            raise pickle.UnpicklingError("refused: it asks for an array of no dtype")
        if not (code[:1] in tuple("biuf") and code[1:].isdigit()):
            raise pickle.UnpicklingError(f"refused: it asks for an array of dtype {code!r}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """Stands in for a numpy array while its pickle is read."""

    numpy: np.ndarray

    def __init__(self, reader: _Restricted) -> None:
        self._reader = reader

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.numpy = self._reader.array(raw, dtype, shape, "F" if fortran else "C").numpy


# what pickles of arrays, numbers, strings, lists, tuples and dicts are made of
OPCODES = (
    pickle.MARK + pickle.STOP + pickle.POP + pickle.POP_MARK + pickle.DUP + pickle.FLOAT
    + pickle.INT + pickle.BININT + pickle.BININT1 + pickle.LONG + pickle.BININT2 + pickle.NONE
    + pickle.REDUCE + pickle.STRING + pickle.BINSTRING + pickle.SHORT_BINSTRING + pickle.UNICODE
    + pickle.BINUNICODE + pickle.APPEND + pickle.BUILD + pickle.GLOBAL + pickle.DICT
    + pickle.EMPTY_DICT + pickle.APPENDS + pickle.GET + pickle.BINGET + pickle.LONG_BINGET
    + pickle.LIST + pickle.EMPTY_LIST + pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT
    + pickle.SETITEM + pickle.TUPLE + pickle.EMPTY_TUPLE + pickle.SETITEMS + pickle.BINFLOAT
    + pickle.PROTO + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3 + pickle.NEWTRUE
    + pickle.NEWFALSE + pickle.LONG1 + pickle.LONG4 + pickle.BINBYTES + pickle.SHORT_BINBYTES
    + pickle.SHORT_BINUNICODE + pickle.BINUNICODE8 + pickle.BINBYTES8 + pickle.STACK_GLOBAL
    + pickle.MEMOIZE + pickle.FRAME + pickle.BYTEARRAY8
)  # fmt: skip


class _Restricted(pickle._Unpickler):
    """Knows numpy arrays and numbers, built by our stand-ins, and nothing else.

    Numpy's own reconstruction would be handed flags and buffers that the file is free to forge.
    The functions are made anew for each request, since a pickle may set attributes on them.
    The base class is pickle's in Python: the one in C makes room for whatever place in its memory
    a file names (64 GB for five bytes).
    """

    dispatch: ClassVar = {
        code: function for code, function in pickle._Unpickler.dispatch.items() if code in OPCODES
    }

    def __init__(self, stream: io.BytesIO, size: int) -> None:
        super().__init__(stream)
        self._size = size
        self._left = 4 * size  # bytes that arrays may take: one buffer may be named often

    def array(self, raw: bytes, dtype: _Dtype, shape: tuple, order: str, *_: Any) -> _Array:
        """The stand-in of an array over ``raw``."""
        self._take(len(raw))
        array = _Array(self)
        array.numpy = np.frombuffer(raw, dtype.numpy).reshape(shape, order=order).copy()
        return array

    def _encoded(self, text: str) -> bytes:
        self._take(len(text))
        return text.encode("latin1")

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("refused: it asks for much more memory than it fills")

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("multiarray", "_reconstruct"): lambda *_: _Array(self),
            ("multiarray", "scalar"): lambda dtype, raw: self.array(raw, dtype, (), "C"),
            ("numeric", "_frombuffer"): lambda *args: self.array(*args),
            ("numpy", "dtype"): lambda code, *_: _Dtype(code),
            ("numpy", "ndarray"): lambda *_: _Array(self),
            ("_codecs", "encode"): lambda text, _: self._encoded(text),
        }
        for core in ("numpy.core.", "numpy._core."):  # before and since numpy 2
            if module.startswith(core):
                module = module.removeprefix(core)
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}")
        return allowed[module, name]

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        if size > self._size:
            raise pickle.UnpicklingError("pickle data was truncated")
        self.append(bytearray(self.read(size)))

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_dict()

    def _check_keys(self, keys: list[Any]) -> None:
        # hashes of tuples of tuples of ... take as long as the file likes
        if not all(isinstance(key, str | int | float | None) for key in keys):
            raise pickle.UnpicklingError("refused: keys other than strings and numbers")

    dispatch |= {
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }


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
    raw = contents(path)
    stream, found = io.BytesIO(raw), []
    try:
        while len(found) < most and (not found or stream.tell() < len(raw)):
            found.append(_unwrapped(_Restricted(stream, len(raw)).load(), {}))
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a file that is not a pickle fails in any way it likes
        raise InputError(f"{path}: not a pickle of arrays ({error})") from error
    return found


def _unwrapped(value: Any, done: dict[int, Any]) -> Any:
    """Puts arrays where their stand-ins are; what is shared in the pickle stays shared."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Array):
        done[id(value)] = value.numpy if value.numpy.ndim else value.numpy[()]
    elif isinstance(value, list | tuple):
        done[id(value)] = type(value)(_unwrapped(entry, done) for entry in value)
    elif isinstance(value, dict):
        done[id(value)] = {key: _unwrapped(entry, done) for key, entry in value.items()}
    else:
        return value
    return done[id(value)]


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
    rotation = _doubles(content[0], path)
    if rotation.ndim != 3 or rotation.shape[1:] != (3, 3):
        raise InputError(f"{path}: expected rotations (N, 3, 3), got {rotation.shape}")
    n = len(rotation)
    trans = _doubles(content[1], path) if len(content) == 2 else np.zeros((n, 2))
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


def _doubles(array: np.ndarray, path: str | Path) -> np.ndarray:
    """A copy in double precision."""
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path}: expected numbers, got {array.dtype}")
    with np.errstate(invalid="ignore"):  # of signalling NaN; what is not finite is told later
        return array.astype(np.float64)


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
