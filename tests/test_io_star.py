import numpy as np
import pytest

from pyrocryo.errors import InputError
from pyrocryo.io import star


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    single = (rng.normal(size=50) * 10.0 ** rng.integers(-30, 30, 50)).astype(np.float32)
    double = rng.normal(size=50)
    names = [f"{i:06d}@a folder/it's #{i}.mrcs" for i in range(50)]
    table = {"rlnA": single, "rlnB": double, "rlnC": np.arange(50), "rlnImageName": names}
    star.write(tmp_path / "p.star", {"optics": {"rlnOpticsGroup": [1]}, "particles": table})
    read = star.read(tmp_path / "p.star")
    assert list(read) == ["optics", "particles"]
    assert read["optics"] == {"rlnOpticsGroup": ["1"]}
    particles = read["particles"]
    np.testing.assert_array_equal(np.array(particles["rlnA"], dtype=np.float32), single)
    np.testing.assert_array_equal(np.array(particles["rlnB"], dtype=float), double)
    assert particles["rlnC"] == [str(i) for i in range(50)]
    assert particles["rlnImageName"] == names
    assert [p.name for p in tmp_path.iterdir()] == ["p.star"]


def test_looks_like_relions(tmp_path):
    star.write(tmp_path / "p.star", {"particles": {"rlnA": [1, 2], "rlnB": [0.5, -1e-7]}})
    assert (tmp_path / "p.star").read_text().split("\n") == [
        "", "# version 30001", "", "data_particles", "", "loop_", "_rlnA #1", "_rlnB #2",
        "1 0.5", "2 -1e-07", "", "",
    ]  # fmt: skip


def test_reads_relions_ways(tmp_path):
    (tmp_path / "p.star").write_text(
        "\n# version 30001\n\ndata_general\n\n_rlnTable particles # pair\n_rlnN 2\n"
        "data_\n\nloop_ \n_rlnImageName #1 \n_rlnOddZernike #2 \n_rlnX\n"
        "   1@a.mrcs   [0,1,2]  1.500000 \n 2@a.mrcs 'a b' nan\n \ndata_empty\n"
    )
    read = star.read(tmp_path / "p.star")
    assert read["general"] == {"rlnTable": ["particles"], "rlnN": ["2"]}
    assert read[""] == {
        "rlnImageName": ["1@a.mrcs", "2@a.mrcs"],
        "rlnOddZernike": ["[0,1,2]", "a b"],
        "rlnX": ["1.500000", "nan"],
    }
    assert read["empty"] == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world\n",
        b"\x00\x01\xff\xfe" * 300,
        b"data_x\nloop_\n_a\n_b\n1 2 3\n",
        b"data_x\n_a 1\ndata_x\n_a 2\n",
        b"data_x\n_a 1\nloop_\n_b\n1\n",
        b"data_x\nloop_\n_a\n1\nloop_\n_b\n1\n",
    ],
)
def test_not_star(tmp_path, content):
    (tmp_path / "p.star").write_bytes(content)
    with pytest.raises(
        InputError, match=r"p\.star: (not a STAR file|block data_x holds)"
    ) as caught:
        star.read(tmp_path / "p.star")
    assert "\n" not in str(caught.value)


def test_missing_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"gone\.star: cannot read it \(No such file"):
        star.read(tmp_path / "gone.star")
    with pytest.raises(InputError, match="cannot read it"):
        star.read(tmp_path)


def test_columns_of_different_length(tmp_path):
    with pytest.raises(InputError, match="data_x: columns differ in length"):
        star.write(tmp_path / "p.star", {"x": {"a": [1], "b": [1, 2]}})
    assert not (tmp_path / "p.star").exists()


def test_long_tables_hold_no_strings_until_asked(tmp_path, monkeypatch):
    n = star.MANY + 1
    columns = {"rlnX": np.arange(n) / 8, "rlnName": [f"{i}@a b.mrcs" for i in range(n)]}
    star.write(tmp_path / "p.star", {"optics": {"rlnX": [2]}, "particles": columns})
    asked = []
    plain = star._plain
    monkeypatch.setattr(star, "_plain", lambda value: asked.append(value) or plain(value))
    read = star.read(tmp_path / "p.star")
    table = read["particles"]
    assert list(table) == ["rlnX", "rlnName"]
    assert len(table) == 2
    assert "rlnName" in table
    assert "rlnY" not in table
    assert asked == ["2"]  # of the short table
    assert table["rlnName"][-1] == f"{n - 1}@a b.mrcs"
    assert len(asked) == n + 1
    np.testing.assert_array_equal(np.array(table["rlnX"], dtype=float), columns["rlnX"])
    assert (
        (table | {"rlnX": 3})["rlnX"] == ({"rlnX": 3, "a": 1} | table | {"rlnX": 3})["rlnX"] == 3
    )
    with pytest.raises(KeyError):
        table["rlnY"]


def test_a_million_rows_would_not_be_read_twice(tmp_path, monkeypatch):
    """Loading asks for each column that matters, and for no other."""
    import pyrocryo as pc

    monkeypatch.setattr(star, "MANY", 3)
    path = tmp_path / "p.star"
    pc.io.save(pc.simulate.poses(pc.molecules.TwoArms(), n=9, box=8), path)
    blocks = {name: dict(table) for name, table in star.read(path).items()}
    blocks["particles"]["rlnMicrographName"] = ["a/long/name.mrc"] * 9
    star.write(path, blocks)
    asked = []
    get = star._Loop.__getitem__
    monkeypatch.setattr(star._Loop, "__getitem__", lambda s, k: asked.append(k) or get(s, k))
    pc.io.load(path)
    assert "rlnMicrographName" not in asked
    assert max(map(asked.count, set(asked) - {"rlnOpticsGroup", "rlnImageName"})) == 1
