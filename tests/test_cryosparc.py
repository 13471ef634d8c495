import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import pyrocryo as pc
from pyrocryo import io
from pyrocryo.errors import InputError
from pyrocryo.io import cryosparc
from pyrocryo.io.cryodrgn import read_pickle, read_poses
from pyrocryo.io.mrc import write_stack
from pyrocryo.rotations import angle_between, vector_from_matrix

DATA = Path(os.environ.get("PYROCRYO_TEST_DATA", "no folder"))
real_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="PYROCRYO_TEST_DATA does not name the folder of others' test data"
)
N, BOX, PIXEL = 12, 9, 2.5


def records(n=N, **changed):
    """Columns as cryoSPARC names them, and what they should be read as."""
    rng = np.random.default_rng(0)
    pixel = np.full(n, PIXEL, np.float32)
    columns = {
        "uid": rng.integers(1, 2**63, n).astype(np.uint64) * 2 + 1,
        "blob/path": np.array([b"J1/s.mrc"] * n),
        "blob/idx": np.arange(n, dtype=np.uint32)[::-1],
        "blob/shape": np.full((n, 2), BOX, np.uint32),
        "blob/psize_A": pixel,
        "blob/sign": np.where(np.arange(n) % 3, -1, 1).astype(np.float32),
        "ctf/accel_kv": np.full(n, 300, np.float32),
        "ctf/cs_mm": np.full(n, 2.7, np.float32),
        "ctf/amp_contrast": np.full(n, 0.1, np.float32),
        "ctf/df1_A": rng.uniform(1e4, 2e4, n).astype(np.float32),
        "ctf/df2_A": rng.uniform(1e4, 2e4, n).astype(np.float32),
        "ctf/df_angle_rad": rng.uniform(-3, 3, n).astype(np.float32),
        "ctf/phase_shift_rad": rng.uniform(0, 3, n).astype(np.float32),
        "ctf/anisomag": np.zeros((n, 4), np.float32),
        "alignments3D/pose": rng.normal(size=(n, 3)).astype(np.float32),
        "alignments3D/shift": rng.normal(size=(n, 2)).astype(np.float32),
        "alignments3D/psize_A": 2 * pixel,
    }
    columns |= changed
    return {name: value for name, value in columns.items() if value is not None}


def packed(columns):
    dtype = [(name, value.dtype, value.shape[1:]) for name, value in columns.items()]
    table = np.empty(len(next(iter(columns.values()))), dtype)
    for name, value in columns.items():
        table[name] = value
    return table


def write(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, packed(columns))
    return path


@pytest.fixture
def project(tmp_path):
    """A project's folder with a stack of N images."""
    (tmp_path / "J1").mkdir()
    images = np.random.default_rng(1).normal(size=(N, BOX, BOX)).astype(np.float32)
    write_stack(tmp_path / "J1/s.mrc", images, PIXEL)
    return tmp_path, images


def test_fields(project):
    folder, images = project
    columns = records()
    particles = io.load(write(folder / "J2/p.cs", columns), test_fraction=0.25, split_seed=3)
    assert particles.pixel_size == PIXEL
    assert (len(particles), particles.box, len(particles.test)) == (N, BOX, 3)
    sign = columns["blob/sign"][:, None, None]
    np.testing.assert_array_equal(particles.raw(np.arange(N)), sign * images[::-1])
    some = np.array([7, 2, 2])
    np.testing.assert_array_equal(particles.raw(some), (sign * images[::-1])[some])
    # the vector of the transposed matrix; shifts in pixels of their own size, to centre the image
    back = vector_from_matrix(np.swapaxes(particles.rotation, 1, 2))
    np.testing.assert_allclose(back, columns["alignments3D/pose"], atol=1e-6)
    expected = -2 * PIXEL * columns["alignments3D/shift"]
    np.testing.assert_allclose(particles.shift, expected, rtol=1e-6)
    names = ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm", "amp_contrast")
    ctf = np.stack([columns[f"ctf/{n}"] for n in (*names, "phase_shift_rad")], axis=1)
    ctf[:, [2, 6]] = np.rad2deg(ctf[:, [2, 6]])
    np.testing.assert_allclose(particles.ctf, ctf, rtol=1e-6)


def test_what_is_not_there_is_left_out(project):
    folder, _ = project
    names = [name for name in records() if name.startswith(("ctf", "align", "blob/s", "blob/ps"))]
    columns = records(**dict.fromkeys(names))
    extra = {"pyrocryo/time": np.arange(N) / 7, "pyrocryo/temperature": np.full(N, 290.0)}
    particles = io.load(write(folder / "p.cs", columns | extra))
    assert particles.fields.keys() == {"time", "temperature"}
    assert particles.pixel_size == PIXEL  # by the stack's header
    np.testing.assert_array_equal(particles.time, np.arange(N) / 7)


def test_passthrough_is_joined_by_uid(project):
    folder, images = project
    columns = records()
    whole = io.load(write(folder / "whole.cs", columns))
    align = {n: v for n, v in columns.items() if n == "uid" or n.startswith("alignments3D")}
    rest = {n: v for n, v in columns.items() if not n.startswith("alignments3D")}
    rest["alignments3D/pose"] = np.zeros((N, 3), np.float32)  # an earlier job's: not the one
    order = np.random.default_rng(2).permutation(N)
    main = write(folder / "J3/p.cs", {n: v[2:] for n, v in align.items()})
    other = write(folder / "J3/J3_passthrough_p.cs", {n: v[order] for n, v in rest.items()})
    with pytest.raises(InputError, match=r"no field blob/.*J3_passthrough_p\.cs is beside it"):
        io.load(main)
    particles = io.load(main, passthrough=other)
    assert particles.fields.keys() == whole.fields.keys()
    for name, value in whole.fields.items():
        np.testing.assert_array_equal(particles.fields[name], value[2:])
    rows = np.arange(N - 2)
    np.testing.assert_array_equal(particles.raw(rows), whole.raw(rows + 2))


def test_passthrough_of_another_job(project):
    folder, _ = project
    columns = records()
    main = write(folder / "p.cs", columns)
    uid = columns["uid"].copy()
    uid[4] += 1
    other = write(folder / "o.cs", {"uid": uid, "x": uid})
    with pytest.raises(InputError, match=rf"no row for 1 of the 12 .*uid {columns['uid'][4]}\)"):
        io.load(main, passthrough=other)
    twice = write(folder / "t.cs", {"uid": np.r_[uid, uid[:1]], "x": np.r_[uid, uid[:1]]})
    with pytest.raises(InputError, match=rf"two rows have the uid {uid[0]}"):
        io.load(main, passthrough=twice)
    none = write(folder / "n.cs", {"x": uid})
    with pytest.raises(InputError, match=r"n\.cs: no field uid"):
        io.load(main, passthrough=none)


def full(value, *shape, dtype=np.float32):
    return np.full((N, *shape), value, dtype)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"blob/path": None}, "no field blob/path; the passthrough file"),
        ({"blob/path": full(1)}, "blob/path holds float32, expected text"),
        (
            {"blob/path": np.array([b"J9/gone.mrc"] * N)},
            r"J9/gone\.mrc is not in any .*folder=",
        ),
        ({"blob/idx": full(N, dtype=np.uint32)}, r"asks for image 13 of s\.mrc, which holds 12"),
        ({"blob/idx": full(0, 2)}, "blob/idx holds 2 of float32 a row"),
        ({"blob/shape": full(10, 2, dtype=np.uint32)}, r"blob/shape is \[10, 10\], expected 9 x"),
        ({"blob/psize_A": np.linspace(1, 2, N)}, r"groups of images differ .*1 \(1 Å/px, box 9\)"),
        ({"blob/psize_A": full(0)}, "blob/psize_A is 0.0, expected more than 0"),
        ({"blob/sign": full(2)}, "blob/sign is 2.0, expected 1 or -1"),
        ({"ctf/anisomag": full(0.01, 4)}, "anisotropic magnification is not supported"),
        ({"ctf/df1_A": full(np.nan)}, "row 1 of .*ctf/df1_A is nan, expected finite"),
        ({"ctf/df1_A": np.array([b"x"] * N)}, "ctf/df1_A holds 1 of |S1 a row, expected 1 number"),
        ({"alignments3D/pose": full(0)}, "alignments3D/pose holds 1 of float32 a row, expected 3"),
        ({"alignments3D/psize_A": full(-1)}, "alignments3D/psize_A is -1.0, expected more than 0"),
        ({"pyrocryo/temperature": full(0)}, "pyrocryo/temperature is 0.0, expected kelvin"),
    ],
)
def test_one_clear_line(project, changed, message):
    path = write(project[0] / "p.cs", records(**changed))
    with pytest.raises(InputError, match=message) as error:
        io.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ctf/trefoil_A": full(3, 2)}, "ctf/trefoil_A other than 0 is not modelled"),
        ({"ctf/scale": full(0.5)}, "ctf/scale other than 1 is not modelled"),
        ({"ctf/cs_mm": None}, "CTF not read, no field ctf/cs_mm"),
        (
            {"alignments3D/pose": None, "alignments2D/pose": full(1)},
            "poses of alignments2D are not read",
        ),
    ],
)
def test_warnings(project, changed, message, caplog):
    io.load(write(project[0] / "p.cs", records(**changed)))
    assert message in caplog.text


def test_where_stacks_are_looked_for(project, tmp_path_factory, monkeypatch):
    folder, images = project
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    deep = write(folder / "a/b/c/p.cs", records(**{"blob/path": np.array([b">J1/s.mrc"] * N)}))
    assert len(io.load(deep)) == N
    far = write(elsewhere / "p.cs", records())
    with pytest.raises(InputError, match=str(elsewhere)):
        io.load(far)
    assert len(io.load(far, folder=folder)) == N
    with pytest.raises(InputError, match="passthrough: goes with a .cs file"):
        io.load(folder / "J1/s.mrc", passthrough=far)


def test_poses_of_cryodrgn(project):
    folder, _ = project
    path = write(folder / "p.cs", records())
    own = io.load(path)
    trans = -own.shift / (BOX * PIXEL)
    (folder / "poses.pkl").write_bytes(pickle.dumps((own.rotation, trans)))
    particles = io.load(path, poses=folder / "poses.pkl")
    np.testing.assert_allclose(particles.shift, own.shift)
    np.testing.assert_array_equal(particles.rotation, own.rotation)


class Run:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_hostile_and_broken_files(tmp_path):
    mark = tmp_path / "ran"
    whole = write(tmp_path / "good.cs", records()).read_bytes()
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([Run(mark)], dtype=[("uid", object)]), allow_pickle=True)
    np.savez(tmp_path / "zip.npz", uid=np.arange(3))
    start = whole.index(b"(12,)")
    header = whole.index(b"\n") + 1
    contents = {
        "objects": (objects.read_bytes(), "Python objects"),
        "pickle": (pickle.dumps(Run(mark)), "not a .cs file"),
        "zip": ((tmp_path / "zip.npz").read_bytes(), "not a .cs file"),
        "truncated": (whole[:-1], "truncated"),
        "header alone": (whole[:header], "not a .cs file"),
        "half a header": (whole[:40], "not a .cs file"),
        "more than there is": (whole.replace(b"(12,), }       ", b"(99999999999,),}"), "not a"),
        "negative": (whole.replace(b"(12,)", b"(-1,)"), "not a"),
        "program": (whole[:start] + b"exit(" + whole[start + 5 :], "not a .cs file"),
        "empty": (b"", "not a .cs file"),
        "text": (b"data_particles\n", "not a .cs file"),
    }
    for name, (raw, message) in contents.items():
        path = tmp_path / f"{name}.cs"
        path.write_bytes(raw)
        with pytest.raises(InputError, match=message) as error:
            cryosparc.read(path)
        assert "\n" not in str(error.value)
    assert not mark.exists()
    for name, array in {"plain": np.zeros(3), "2-D": packed(records())[None]}.items():
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match="expected records"):
            cryosparc.read(tmp_path / "a.npy")
        assert name
    np.save(tmp_path / "a.npy", packed(records())[:0])
    with pytest.raises(InputError, match=r"a\.npy: (holds no particles|not a \.cs file)"):
        cryosparc.read(tmp_path / "a.npy")
    with pytest.raises(InputError, match="cannot read it"):
        cryosparc.read(tmp_path / "gone.cs")


def test_any_damage_is_told_in_one_line(project):
    """Bytes changed, cut and repeated, mostly in the header, where they can do harm."""
    folder, _ = project
    whole = write(folder / "p.cs", records()).read_bytes()
    header = whole.index(b"\n")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            i = int(rng.integers(min(header if rng.random() < 0.8 else len(whole), len(raw))))
            change = rng.integers(4)
            if change == 0:
                raw[i] = rng.integers(256)
            elif change == 1:
                raw[i] = int(rng.choice(list(b"0123456789(),'[]<>|OVfiu-")))
            elif change == 2:
                del raw[i : i + int(rng.integers(1, 20))]
            else:
                raw[i:i] = raw[: int(rng.integers(1, 20))]
        (folder / "q.cs").write_bytes(raw)
        said = None
        try:
            io.load(folder / "q.cs")
        except InputError as error:
            said = str(error)
        refused += said is not None
        assert "\n" not in (said or "")
    assert 100 < refused < 300  # what hits a number goes through


@real_data
def test_the_same_particles_in_both_forms():
    stem = DATA / "empiar10076/empiar_10076_7"
    cs, star = io.load(f"{stem}.cs"), io.load(f"{stem}.star")
    assert cs.pixel_size == pytest.approx(star.pixel_size, rel=1e-5)
    np.testing.assert_allclose(cs.ctf, star.ctf, rtol=1e-6)
    rows = np.arange(7)
    np.testing.assert_array_equal(cs.raw(rows), -star.raw(rows))  # dark, and the .cs file says so
    centre = (slice(None), slice(120, 200), slice(120, 200))
    assert cs.raw(rows)[centre].mean() > cs.raw(rows).mean()


@real_data
def test_poses_and_ctf_as_cryodrgn_reads_them(tmp_path):
    table = cryosparc.read(DATA / "cs/cryosparc_P12_J24_001_particles.cs")
    for path in sorted(set(table["blob/path"].tolist())):
        file = tmp_path / path.decode()
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():  # no images come with it: a hole of the right size
            most = int(table["blob/idx"][table["blob/path"] == path].max()) + 1
            write_stack(file, np.zeros((1, 180, 180), np.float32), 2.95)
            with file.open("r+b") as stack:
                stack.seek(8)
                stack.write(np.int32(most).tobytes())
                stack.truncate(1024 + 4 * 180 * 180 * most)
    particles = io.load(DATA / "cs/cryosparc_P12_J24_001_particles.cs", folder=tmp_path)
    rotation, trans = read_poses(DATA / "cs/pose.cs.pkl")
    assert angle_between(particles.rotation, rotation).max() < 1e-4
    np.testing.assert_allclose(particles.shift, -trans * 180 * 2.95, atol=1e-5)
    theirs = read_pickle(DATA / "cs/ctf2.pkl")
    assert (particles.box, particles.pixel_size) == (theirs[0, 0], pytest.approx(theirs[0, 1]))
    np.testing.assert_allclose(particles.ctf, theirs[:, 2:], rtol=1e-6, atol=1e-5)


def test_latents_for_cryodrgn(tmp_path):
    z = np.random.default_rng(0).normal(size=(7, 2))
    path = tmp_path / "z.3.pkl"
    pc.io.write_cryodrgn_latents(path, z, 0.1 + z**2)
    with path.open("rb") as file:  # as cryoDRGN's utils.load_pkl does
        first, second = pickle.load(file), pickle.load(file)
        assert file.read() == b""
    assert type(first) is np.ndarray
    assert first.dtype == second.dtype == np.float32
    np.testing.assert_array_equal(first, z.astype(np.float32))
    np.testing.assert_allclose(np.exp(0.5 * second), 0.1 + z**2, rtol=1e-6)
    np.testing.assert_array_equal(read_pickle(path), first)
    pc.io.write_cryodrgn_latents(path, z)
    assert path.read_bytes() == pickle.dumps(z.astype(np.float32), protocol=4)
    for bad, message in ((z[0], r"z: expected numbers \(N, K\)"), (z * np.nan, "z: row 1 is")):
        with pytest.raises(InputError, match=message):
            pc.io.write_cryodrgn_latents(path, bad)
    with pytest.raises(InputError, match="sd: row 1 .* more than 0"):
        pc.io.write_cryodrgn_latents(path, z, 0 * z)
    with pytest.raises(InputError, match="sd: expected the shape of z"):
        pc.io.write_cryodrgn_latents(path, z, z[:3])
