import builtins
import os
import pickle

import numpy as np
import pytest

from pyrocryo.errors import InputError
from pyrocryo.io.cryodrgn import read_pickle, read_poses
from pyrocryo.rotations import matrix_from_euler


def poses(n=7):
    rng = np.random.default_rng(0)
    rotation = matrix_from_euler(rng.uniform(0, 180, size=(n, 3))).astype(np.float32)
    return rotation, rng.uniform(-0.1, 0.1, size=(n, 2)).astype(np.float32)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_what_pickle_reads(tmp_path, protocol):
    content = {
        "f4": poses(),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(5, dtype=">i4"),
        "strided": np.arange(20)[::3],
        "scalars": [np.float64(1.5), np.int32(-2), np.bool_(True), 3, "text", None],
        "bool": np.array([True, False]),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(tmp_path / "a.pkl")
    assert read.keys() == content.keys()
    np.testing.assert_equal(read, content)
    assert read["big"].dtype == content["big"].dtype
    assert type(read["scalars"][0]) is np.float64


def test_pickles_of_older_numpy(tmp_path):
    raw = pickle.dumps(poses()[0], protocol=0)
    old = raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "a.pkl").write_bytes(old)
    np.testing.assert_array_equal(read_pickle(tmp_path / "a.pkl"), poses()[0])


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


HOSTILE = {
    "posix.system": lambda mark: Call(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Call(builtins.eval, f"open({str(mark)!r}, 'w').close()"),
    "io.open": lambda mark: (poses(), Call(open, str(mark), "w")),
    "builtins.getattr": lambda mark: Call(getattr, os.PathLike, "mro"),
    "numpy.lib.*": lambda mark: Call(np.lib.npyio.DataSource, str(mark)),
    "numpy.load": lambda mark: Call(np.load, str(mark), None, True),
    "numpy.memmap": lambda mark: Call(np.memmap, str(mark), "u1", "w+", 0, (8,)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_run_nothing(tmp_path, name):
    mark = tmp_path / "ran"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(HOSTILE[name](mark)))
    with pytest.raises(InputError, match=rf"a\.pkl: refused: it asks for {name}"):
        read_pickle(tmp_path / "a.pkl")
    assert not mark.exists()


def test_arrays_of_objects_are_refused(tmp_path):
    mark = tmp_path / "ran"
    hidden = np.array([Call(os.system, f"touch {mark}")], dtype=object)
    for content in (hidden, np.array(["a", 1], dtype=object)):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match="refused"):
            read_pickle(tmp_path / "a.pkl")
    assert not mark.exists()


def test_forged_array_states_are_refused(tmp_path):
    # Bytes as an object array would be read as pointers; numpy's own dtype lets a file do that.
    forged = {
        "object pointers": Call(np.ndarray, (1,), "O", b"\x41" * 8),
        "flags": Call(np.dtype, "O", False, True),
        "too short": Call(np._core.multiarray.scalar, np.dtype("f8"), b"123"),
    }
    for content in forged.values():
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(InputError):
            read_poses(tmp_path / "a.pkl")


def test_attributes_set_on_our_functions_do_not_last(tmp_path):
    evil = (
        b"cnumpy.core.multiarray\n_reconstruct\n"  # push the function,
        b"(N}S'__defaults__'\n(I1\ntstb."  # and set an attribute on it
    )
    pickle_bytes = pickle.dumps(poses())
    (tmp_path / "evil.pkl").write_bytes(evil)
    (tmp_path / "good.pkl").write_bytes(pickle_bytes)
    read_pickle(tmp_path / "evil.pkl")
    np.testing.assert_equal(read_pickle(tmp_path / "good.pkl"), poses())


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04", bytes(100), b"PK\x03\x04 zip"])
def test_not_a_pickle(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pkl: "):
        read_pickle(tmp_path / "a.pkl")
    with pytest.raises(InputError, match="cannot read it"):
        read_pickle(tmp_path / "gone.pkl")


@pytest.mark.parametrize("alone", [False, True])
def test_poses(tmp_path, alone):
    rotation, trans = poses()
    content = rotation if alone else (rotation, trans)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    read = read_poses(tmp_path / "a.pkl")
    np.testing.assert_array_equal(read[0], rotation)
    np.testing.assert_array_equal(read[1], 0 * trans if alone else trans)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "expected rotations"),
        ((1, 2), "expected rotations"),
        (np.zeros((4, 9)), r"expected rotations \(N, 3, 3\), got \(4, 9\)"),
        ((poses()[0], np.zeros((7, 3))), r"expected translations \(7, 2\), got \(7, 3\)"),
        (np.stack([np.eye(3), 2 * np.eye(3)]), "matrix 2 is not a rotation"),
        (-np.eye(3)[None], "matrix 1 is not a rotation"),
        (np.full((1, 3, 3), np.nan), "matrix 1 is not a rotation"),
        ((poses()[0], np.full((7, 2), np.inf)), "translation 1 is not a finite number"),
    ],
)
def test_poses_refused(tmp_path, content, message):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=message):
        read_poses(tmp_path / "a.pkl")
