import os
from pathlib import Path

import numpy as np
import pytest
from gemmi import cif

import pyrocryo as pc
from pyrocryo import io
from pyrocryo.cli import main
from pyrocryo.draws import moments
from pyrocryo.errors import InputError
from pyrocryo.io import cryosparc, star
from pyrocryo.io.cryodrgn import read_pickle
from pyrocryo.particles import Particles
from pyrocryo.rotations import vector_from_matrix
from pyrocryo.to_arviz import to_arviz

DATA = Path(os.environ.get("PYROCRYO_TEST_DATA", "no folder"))
real_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="PYROCRYO_TEST_DATA does not name the folder of others' test data"
)
STAR = b"""
# version 30001, kept

data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1  1.5

# version 30001
data_particles

loop_\x20
_rlnImageName #1\x20
_rlnOpticsGroup #2\x20
_rlnNote #3\x20
_rlnDefocusU #4\x20
000001@s.mrcs 1  'a # b'   1.50\x20
000002@s.mrcs\t1\t"it's"\t2.5000000001
  000003@s.mrcs  1 c#d  3e4   # a remark
# between
000004@s.mrcs  1 'e f'  -4\x20

data_further
_answer  42
# the end
"""
CS = np.array(
    [(2**63 + k, b"s.mrc", k, [k, np.nan], b"x\x00y") for k in range(4)],
    dtype=[
        ("uid", "<u8"), ("blob/path", "S7"), ("blob/idx", ">u4"), ("odd", "<f4", (2,)),
        ("note", "S3"),
    ],
)  # fmt: skip


def posterior(rows, frames=(), chains=(0,), dim=2, seed=0):
    z = np.random.default_rng(seed).normal(size=(len(chains), 30, len(rows), *frames, dim))
    dims = {"z": ["particle", *["frame"] * len(frames), "latent"]}
    coords = {"particle": np.asarray(rows), "chain": list(chains)}
    return to_arviz({"posterior": {"z": z}}, dims=dims, coords=coords), z


def files(folder):
    (folder / "p.star").write_bytes(STAR)
    np.save(folder / "p.npy", CS)
    (folder / "p.npy").rename(folder / "p.cs")
    return folder


def column(path, name):
    table = star.read(path)["particles"]
    return np.array(table[name], dtype=float)


def test_star_keeps_every_other_byte(tmp_path):
    files(tmp_path)
    post, z = posterior([3, 0, 1])
    k_hat = np.array([0.3, 0.1, 0.7])
    io.annotate(tmp_path / "p.star", tmp_path / "o.star", post, further={"k_hat": k_hat})
    out = (tmp_path / "o.star").read_bytes()
    names = ["ZMean1", "ZMean2", "ZSd1", "ZSd2", "KHat"]
    heads = b"".join(b"_pyrocryo%s #%d \n" % (n.encode(), k) for k, n in enumerate(names, 5))
    assert out.count(heads) == 1
    out = out.replace(heads, b"")
    for line in STAR.splitlines():
        if b"@" not in line:
            continue
        body = line.split(b" # ")[0].rstrip() if b"remark" in line else line.rstrip()
        start = out.index(body)
        added = out[start + len(body) :].split(b"\n")[0].split(b"#")[0].split()
        assert len(added) == 5
        out = out.replace(body + b" " + b" ".join(added), body)
    assert out == STAR
    mean, sd = z[0].mean(0), z[0].std(0, ddof=1)
    for k in range(2):
        found = column(tmp_path / "o.star", f"pyrocryoZMean{k + 1}")
        np.testing.assert_allclose(found[[3, 0, 1]], mean[:, k], rtol=1e-6)
        assert np.isnan(found[2])
        found = column(tmp_path / "o.star", f"pyrocryoZSd{k + 1}")
        np.testing.assert_allclose(found[[3, 0, 1]], sd[:, k], rtol=1e-6)
    found = column(tmp_path / "o.star", "pyrocryoKHat")
    np.testing.assert_array_equal(found[[3, 0, 1]].astype(np.float32), k_hat.astype(np.float32))
    old, new = star.read(tmp_path / "p.star"), star.read(tmp_path / "o.star")
    assert {n: v for n, v in new["particles"].items() if "pyro" not in n} == old["particles"]
    assert {n: v for n, v in new.items() if n != "particles"} == {
        n: v for n, v in old.items() if n != "particles"
    }


def test_windows_line_ends_and_plain_names(tmp_path):
    text = STAR.replace(b" #1", b"").replace(b" #2", b"").replace(b" #3", b"").replace(b" #4", b"")
    (tmp_path / "p.star").write_bytes(text.replace(b"\n", b"\r\n"))
    post, _ = posterior(range(4), dim=1)
    io.annotate(tmp_path / "p.star", tmp_path / "o.star", post)
    raw = (tmp_path / "o.star").read_bytes()
    assert raw.count(b"\n") == raw.count(b"\r\n") == text.count(b"\n") + 2
    assert b"_pyrocryoZMean1 \r\n_pyrocryoZSd1 \r\n" in raw
    assert np.isfinite(column(tmp_path / "o.star", "pyrocryoZSd1")).all()


def test_cs_keeps_every_other_byte(tmp_path):
    files(tmp_path)
    post, z = posterior([3, 0, 1], dim=1)
    cluster = {"cluster": np.array([2, 0, 1])}
    io.annotate(tmp_path / "p.cs", tmp_path / "o.cs", post, further=cluster)
    with (tmp_path / "o.cs").open("rb") as file:
        new = np.load(file, allow_pickle=False)
    added = ("pyrocryo/z_mean", "pyrocryo/z_sd", "pyrocryo/cluster")
    assert new.dtype.names == (*CS.dtype.names, *added)
    for name in CS.dtype.names:
        assert new.dtype[name] == CS.dtype[name]
        assert new[name].tobytes() == CS[name].tobytes()
    assert new["pyrocryo/z_mean"].shape == (4, 1)
    np.testing.assert_allclose(new["pyrocryo/z_mean"][[3, 0, 1]], z[0].mean(0), rtol=1e-6)
    np.testing.assert_allclose(new["pyrocryo/z_sd"][[3, 0, 1]], z[0].std(0, ddof=1), rtol=1e-6)
    assert np.isnan(new["pyrocryo/z_sd"][2])
    np.testing.assert_array_equal(new["pyrocryo/cluster"], [0, 1, np.nan, 2])
    assert new.dtype["pyrocryo/z_mean"].base == np.float32


def test_whole_numbers_keep_their_digits(tmp_path):
    files(tmp_path)
    post, _ = posterior([3, 0])  # some rows: NaN elsewhere, which whole numbers have not
    many = [2**53, 2**24 + 1]
    io.annotate(tmp_path / "p.cs", tmp_path / "o.cs", post, further={"many": many})
    np.testing.assert_array_equal(
        cryosparc.read(tmp_path / "o.cs")["pyrocryo/many"], [many[1], np.nan, np.nan, many[0]]
    )


@pytest.mark.parametrize("kind", ["star", "cs"])
def test_rows_without_a_posterior_left_out(tmp_path, kind):
    files(tmp_path)
    post, z = posterior([3, 0])
    path, out = tmp_path / f"p.{kind}", tmp_path / f"o.{kind}"
    io.annotate(path, out, post, further={"cluster": [5, 6]}, missing="drop")
    if kind == "cs":
        new = cryosparc.read(out)
        np.testing.assert_array_equal(new["uid"], CS["uid"][[0, 3]])
        found, clusters = new["pyrocryo/z_mean"][:, 0], new["pyrocryo/cluster"].tolist()
    else:
        table = star.read(out)["particles"]
        assert table["rlnNote"] == ["a # b", "e f"]
        found, clusters = column(out, "pyrocryoZMean1"), table["pyrocryoCluster"]
    np.testing.assert_allclose(found, z[0].mean(0)[::-1, 0], rtol=1e-6)
    assert list(map(float, clusters)) == [6, 5]


@pytest.mark.parametrize("chosen", [[3, 1], [False, True, False, True]])
def test_select(tmp_path, chosen):
    files(tmp_path)
    io.select(tmp_path / "p.star", tmp_path / "o.star", np.array(chosen))
    lines = STAR.split(b"\n")
    expected = [line for line in lines if b"000001@" not in line and b"000003@" not in line]
    assert (tmp_path / "o.star").read_bytes() == b"\n".join(expected)
    io.select(tmp_path / "p.cs", tmp_path / "o.cs", np.array(chosen))
    new = cryosparc.read(tmp_path / "o.cs")
    assert new.dtype == CS.dtype
    assert new.tobytes() == CS[[1, 3]].tobytes()


def test_all_rows_is_the_file_itself(tmp_path):
    files(tmp_path)
    io.select(tmp_path / "p.star", tmp_path / "o.star", np.arange(4))
    assert (tmp_path / "o.star").read_bytes() == STAR


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([4], "has rows 0 to 3, got 4"),
        ([-1], "has rows 0 to 3, got -1"),
        ([1, 1], "named more than once"),
        ([], "none of the 4 rows"),
        ([False] * 4, "none of the 4 rows"),
        ([True] * 3, r"expected a mask \(4,\)"),
        ([0.5], "expected a mask or positions"),
    ],
)
def test_select_refuses(tmp_path, rows, message):
    files(tmp_path)
    for kind in ("star", "cs"):
        with pytest.raises(InputError, match=message):
            io.select(tmp_path / f"p.{kind}", tmp_path / f"o.{kind}", np.array(rows))
        assert not (tmp_path / f"o.{kind}").exists()


def test_refuses(tmp_path):
    files(tmp_path)
    path, out = tmp_path / "p.star", tmp_path / "o.star"
    one, _ = posterior([0, 1])
    two, _ = posterior([0, 1], chains=(3, 7))
    cases = [
        ({}, two, r"seed: name one of 3, 7, as the axes"),
        ({"seed": 2}, one, "seed: expected one of 0, got 2"),
        ({"missing": "zero"}, one, "missing: expected 'nan' or 'drop'"),
        ({"further": {"time": [1, 2]}}, one, "'time' cannot be the name"),
        ({"further": {"z_mean2": [1, 2]}}, one, "'z_mean2' cannot be the name"),
        ({"further": {"zSd1": [1, 2]}}, one, "'zSd1' cannot be the name"),
        ({"further": {"truth1": [1, 2]}}, one, "'truth1' cannot be the name"),
        ({"further": {"a b": [1, 2]}}, one, "'a b' cannot be the name"),
        ({"further": {"uid": np.array([1, 2**64 - 1], "u8")}}, one, r"uid has .* beyond 2\*\*53"),
        ({"further": {"k_hat": [1]}}, one, r"expected k_hat of shape \(2,\)"),
        ({}, posterior([0, 4])[0], "has rows 0 to 3, got 4"),
        ({}, posterior([0, 0])[0], "a particle is in it more than once"),
        ({}, posterior([0], frames=(2,))[0], "is of 2 frames a molecule, but .* of single images"),
        ({}, {"z": 1}, "expected a fit or a posterior, got dict"),
    ]
    for options, post, message in cases:
        with pytest.raises(InputError, match=message):
            io.annotate(path, out, post, **options)
        assert not out.exists()
    with pytest.raises(InputError, match=r"o\.cs: expected a name that ends in \.star"):
        io.annotate(path, tmp_path / "o.cs", one)
    with pytest.raises(InputError, match="is there already"):
        io.annotate(path, path, one)
    io.annotate(path, out, two, seed=7)
    with pytest.raises(InputError, match="has a column pyrocryoZMean1 already"):
        io.annotate(out, tmp_path / "again.star", one)
    assert path.read_bytes() == STAR
    split = STAR.replace(b"c#d  3e4", b"c#d\n3e4")
    (tmp_path / "split.star").write_bytes(split)
    with pytest.raises(InputError, match="line 21 is neither one column's name nor one whole row"):
        io.annotate(tmp_path / "split.star", tmp_path / "s.star", one)
    with pytest.raises(InputError, match=r"expected a file that ends in \.star or \.cs"):
        io.select(tmp_path / "p.mrcs", out, np.array([0]))


def test_frames_find_their_rows(tmp_path):
    """Frames of molecules, in rows that stand in any order."""
    rng = np.random.default_rng(0)
    saved = Particles(np.zeros((5, 3, 4, 4), np.float32))
    io.save(saved, tmp_path / "p.star")
    text = (tmp_path / "p.star").read_text().splitlines(keepends=True)
    at = [i for i, line in enumerate(text) if "@" in line]
    shuffled = [text[i] for i in rng.permutation(at)]
    for i, line in zip(at, shuffled, strict=True):
        text[i] = line
    (tmp_path / "q.star").write_text("".join(text))
    particles = io.load(tmp_path / "q.star")
    post, z = posterior(range(5), frames=(3,))
    cluster = np.arange(5)
    io.annotate(tmp_path / "q.star", tmp_path / "o.star", post, further={"cluster": cluster})
    table = star.read(tmp_path / "o.star")["particles"]
    molecules = np.array(table["pyrocryoMolecule"], dtype=int)
    frame = np.array(table["pyrocryoFrame"], dtype=int)
    place = {m: k for k, m in enumerate(dict.fromkeys(molecules.tolist()))}  # as they appear
    order = np.array([place[m] for m in molecules])
    found = column(tmp_path / "o.star", "pyrocryoZMean2")
    np.testing.assert_allclose(found, z[0].mean(0)[order, frame, 1], rtol=1e-6)
    np.testing.assert_array_equal(column(tmp_path / "o.star", "pyrocryoCluster"), order)
    assert len(particles) == 5
    with pytest.raises(InputError, match="is of single images, but .* of 3 frames a molecule"):
        io.annotate(tmp_path / "q.star", tmp_path / "r.star", posterior(range(5))[0])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    simulated = pc.simulate.poses(pc.molecules.TwoArms(), n=40, seed=0, box=16, pixel_size=6.0)
    io.save(simulated, folder / "p.star")
    particles = io.load(folder / "p.star")
    fits = []
    for pose in (pc.poses.Known(), pc.poses.InPlane()):
        pair = pc.Pair(pc.priors.IsotropicNormal(2), pose=pose, volume=pc.volumes.Grid(), box=16)
        fits.append(pc.fit(pair, particles, steps=3, batch_size=8, seeds=2))
    return folder, particles, fits


@pytest.mark.parametrize("unknown", [False, True])
def test_moments_are_those_of_the_posterior(fitted, unknown):
    _, particles, fits = fitted
    part = particles.take(np.array([5, 2, 31]))
    post = pc.posterior(fits[unknown], part, draws=2000, predictive=0)
    z = np.asarray(post["posterior"]["z"])[1]
    mean, sd = moments(fits[unknown], part, chain=1, draws=2000)
    assert mean.shape == sd.shape == (3, 2)
    error = sd / np.sqrt(1000)  # two samples of 2000, or a little less
    assert (np.abs(mean - z.mean(0)) < 5 * error).all()
    np.testing.assert_allclose(sd, z.std(0), rtol=0.12)


def test_a_fit_annotates_all_particles(fitted):
    folder, particles, (fit, _) = fitted
    io.annotate(folder / "p.star", folder / "all.star", fit, particles, seed=1)
    mean, sd = moments(fit, particles, chain=1)
    for k in range(2):
        np.testing.assert_array_equal(
            column(folder / "all.star", f"pyrocryoZMean{k + 1}").astype(np.float32), mean[:, k]
        )
        np.testing.assert_array_equal(
            column(folder / "all.star", f"pyrocryoZSd{k + 1}").astype(np.float32), sd[:, k]
        )
    again = io.load(folder / "all.star")  # its columns are not fields that a model could read
    assert again.fields.keys() == particles.fields.keys()
    assert again.digest() == particles.digest()
    io.annotate(folder / "p.star", folder / "test.star", fit, particles.test, seed=1)
    rows = np.flatnonzero(np.isfinite(column(folder / "test.star", "pyrocryoZSd1")))
    np.testing.assert_array_equal(rows, particles.test.index)
    with pytest.raises(InputError, match="a fit needs the particles"):
        io.annotate(folder / "p.star", folder / "none.star", fit, seed=1)


@real_data
@pytest.mark.parametrize(
    "name",
    [
        "relion31/relion31.star",
        "relion31/relion31.v2.star",
        "empiar10076/empiar_10076_7.star",
        "toy/toy_projections.star",
        "empiar10076/empiar_10076_7.cs",
        "cs/cryosparc_P12_J24_001_particles.cs",
    ],
)
def test_real_files_round_trip(tmp_path, name):
    path = DATA / name
    out = tmp_path / path.name
    _, n = io.copies.names_and_rows(path)
    post, z = posterior(range(n))
    io.annotate(path, out, post)
    keep = np.arange(n) % 3 == 1
    part = tmp_path / f"part{path.suffix}"
    io.select(path, part, keep)
    mean = z[0].mean(0).astype(np.float32)
    if path.suffix == ".cs":
        with path.open("rb") as a, out.open("rb") as b, part.open("rb") as c:
            old, new, some = np.load(a), np.load(b), np.load(c)
        for field in old.dtype.names:
            assert old[field].tobytes() == new[field].tobytes()
        np.testing.assert_array_equal(new["pyrocryo/z_mean"], mean)
        assert some.tobytes() == old[keep].tobytes()
        return
    old, new, some = (cif.read(str(file)) for file in (path, out, part))
    assert [block.name for block in old] == [block.name for block in new]
    for before, after, less in zip(old, new, some, strict=True):
        for item, copy, kept in zip(before, after, less, strict=True):
            for tag in item.loop.tags:
                values = list(before.find_loop(tag))
                assert list(after.find_loop(tag)) == values
                chosen = values if len(values) != n else np.array(values)[keep].tolist()
                assert list(less.find_loop(tag)) == chosen
            more = copy.loop.tags[len(item.loop.tags) :]
            assert len(more) in (0, 4)
            assert kept.loop.tags == item.loop.tags
            for k, tag in enumerate(more[:2]):
                found = np.array(list(after.find_loop(tag)), dtype=np.float32)
                np.testing.assert_array_equal(found, mean[:, k])


def test_where(tmp_path, caplog):
    caplog.set_level("INFO")
    files(tmp_path)
    post, z = posterior([3, 0, 1])
    mean, sd = z[0].mean(0), z[0].std(0, ddof=1)
    k_hat = np.array([0.3, 0.9, 0.1])
    middle = np.sort(mean[:, 1])[1] - 1e-3
    for kind in ("star", "cs"):
        out = tmp_path / f"o.{kind}"
        where = f"z2>= {middle} and sd1<{sd[:, 0].max() + 1:.3e} and k_hat < 0.7"
        io.annotate(tmp_path / f"p.{kind}", out, post, further={"k_hat": k_hat}, where=where)
        expected = sorted(np.array([3, 0, 1])[(mean[:, 1] >= middle) & (k_hat < 0.7)])
        if kind == "cs":
            found = (cryosparc.read(out)["uid"] - np.uint64(2**63)).tolist()
        else:
            found = [int(x.split("@")[0]) - 1 for x in star.read(out)["particles"]["rlnImageName"]]
        assert found == expected
        assert f"{out}: {len(expected)} of the" in caplog.text
        out.unlink()
    io.annotate(tmp_path / "p.cs", out, post, further={"c": [4, 5, 6]}, where="c == 5")
    assert cryosparc.read(out)["uid"] == 2**63
    for where, message in {
        "z3 > 1": "there is no z3, only z1, z2, sd1, sd2",
        "z1 > 1000": r"is true of none of the 4 rows of .*; z1 is -?[\d.]+ to -?[\d.]+",
        "z1 > z2": "expected comparisons like",
        "z1 > 1 or z2 > 1": "expected comparisons like",
        "__import__('os') > 1": "expected comparisons like",
        "z1 > nan": "expected comparisons like",
        "": "expected comparisons like",
    }.items():
        with pytest.raises(InputError, match=message):
            io.annotate(tmp_path / "p.cs", tmp_path / "w.cs", post, where=where)
    assert not (tmp_path / "w.cs").exists()


MODEL = """
import dataclasses
import pyrocryo as pc

@dataclasses.dataclass
class Config:
    latents: int = 2

def pair(config, particles):
    prior = pc.priors.IsotropicNormal(config.latents)
    return pc.Pair(prior, volume=pc.volumes.Grid(), box=particles.box)
"""


@pytest.fixture(scope="module")
def of_cryosparc(fitted, tmp_path_factory):
    """The same particles as cryoSPARC would have them, in two files, and a run on them."""
    folder = tmp_path_factory.mktemp("project")
    star_file, particles, _ = fitted
    stack = (star_file / "p.mrcs").read_bytes()
    (folder / "p.mrcs").write_bytes(stack)
    n = len(particles)
    uid = np.random.default_rng(0).permutation(n).astype(np.uint64) + np.uint64(10**18)
    pose = vector_from_matrix(np.swapaxes(particles.rotation, 1, 2))
    shift = -particles.shift / 6.0
    aligned = np.array(
        list(zip(uid, pose, shift, strict=True)),
        dtype=[("uid", "<u8"), ("alignments3D/pose", "<f4", (3,)),
               ("alignments3D/shift", "<f4", (2,))],
    )  # fmt: skip
    other = np.array(
        [(u, b"p.mrcs", k, 6.0) for k, u in enumerate(uid)][::-1],
        dtype=[("uid", "<u8"), ("blob/path", "S6"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")],
    )
    for name, table in (("p.cs", aligned), ("p_passthrough.cs", other)):
        with (folder / name).open("wb") as file:
            np.save(file, table)
    (folder / "model.py").write_text(MODEL)
    words = ["fit", folder / "model.py", "--data", folder / "p.cs", "--out", folder / "run"]
    words += ["--passthrough", folder / "p_passthrough.cs", "--seeds", 2, "--steps", 3]
    assert main_command([*words, "--batch-size", 8, "--draws", 3]) == 0
    return folder


def main_command(words):
    return main([str(word) for word in words])


def test_from_cryosparc_and_back(of_cryosparc, fitted, capsys):
    folder = of_cryosparc
    fit, particles = io.load_fit(folder / "run")
    np.testing.assert_allclose(particles.rotation, fitted[1].rotation, atol=1e-6)
    np.testing.assert_allclose(particles.shift, fitted[1].shift, atol=1e-5)
    mean, sd = moments(fit, particles, chain=1)
    middle = float(np.median(mean[:, 0]))
    words = ["export", folder / "run", "--seed", 1]
    assert main_command([*words, "--out", folder / "all.cs"]) == 0
    new = cryosparc.read(folder / "all.cs")
    np.testing.assert_array_equal(new["pyrocryo/z_mean"], mean)
    np.testing.assert_array_equal(new["pyrocryo/z_sd"], sd)
    assert main_command([*words, "--out", folder / "h.cs", "--where", f"z1 > {middle}"]) == 0
    half = cryosparc.read(folder / "h.cs")
    np.testing.assert_array_equal(half["uid"], new["uid"][mean[:, 0] > middle])
    assert main_command([*words, "--out", folder / "z.3.pkl"]) == 0
    np.testing.assert_array_equal(read_pickle(folder / "z.3.pkl"), mean)
    star_file = ["--particles", fitted[0] / "p.star", "--out", folder / "all.star"]
    assert main_command([*words, *star_file]) == 0
    found = column(folder / "all.star", "pyrocryoZMean2").astype(np.float32)
    np.testing.assert_array_equal(found, mean[:, 1])
    capsys.readouterr()
    for more, message in (
        (["--out", folder / "all.cs"], "is there already"),
        (["--out", folder / "new.cs", "--where", "z1"], "where: expected comparisons"),
        (["--out", folder / "none" / "new.cs"], "there is no folder"),
        (["--out", folder / "new.txt"], "expected a name that ends in .star, .cs or .pkl"),
        (["--out", folder / "new.pkl", "--where", "z1 > 0"], "a .pkl holds all particles"),
        (["--out", folder / "new.cs", "--particles", folder / "h.cs"], "rows, but the run is of"),
    ):
        assert main_command([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert main_command([*words[:2], "--out", folder / "new.cs"]) == 2
    assert "seed: name one of 0, 1, as the axes" in capsys.readouterr().err
    assert not (folder / "new.cs").exists()
