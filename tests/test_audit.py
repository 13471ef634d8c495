"""pyrocryo audit: folders, arrays and poses of other programs, from files to the page."""

import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from sklearn.decomposition import PCA

import pyrocryo as pc
from pyrocryo import rotations
from pyrocryo.cli.app import main
from pyrocryo.diagnose.leak import psi
from pyrocryo.errors import InputError
from pyrocryo.io.cryodrgn import read_pickles, read_poses
from pyrocryo.io.others import read_ctf, read_indices, read_latents
from pyrocryo.io.tables import read_columns
from pyrocryo.report.audit import audit
from pyrocryo.report.audit_page import page

MODELS = Path(__file__).parents[1] / "models"
N = 600
FEW = ["--permutations", "59"]


def _dump(path, *values):
    with path.open("wb") as file:
        for value in values:
            pickle.dump(value, file)
    return path


def _latents(rotation, seed, *, leaky=False, turn=0.0):
    """Two sparse motions, the same for all seeds, and a collapsed latent."""
    motions = np.random.default_rng(0).laplace(size=(len(rotation), 2)) / np.sqrt(2)
    rng = np.random.default_rng(seed)
    c, s = np.cos(turn), np.sin(turn)
    z = motions @ [[c, s], [-s, c]] + 0.1 * rng.standard_normal(motions.shape)
    if leaky:
        z[:, 0] += 0.7 * np.cos(psi(rotation))
    return np.column_stack([z, 0.01 * rng.standard_normal(len(rotation))]).astype("f4")


@pytest.fixture
def rotation():
    return rotations.random_in_space((N,), np.random.default_rng(1))


@pytest.fixture
def folder(tmp_path, rotation):
    """A run folder as cryoDRGN leaves it, of a leaky encoder; poses of more particles beside."""
    run = tmp_path / "run"
    run.mkdir()
    rows = np.sort(np.random.default_rng(2).choice(N + 100, N, replace=False))
    every = rotations.random_in_space((N + 100,), np.random.default_rng(3))
    every[rows] = rotation
    ctf = np.tile([64, 1.0, 0, 0, 0, 300, 2.7, 0.1, 0], (N + 100, 1))
    ctf[:, 2:4] = np.random.default_rng(4).uniform(1e4, 2e4, (N + 100, 1)) + [0, 200]
    _dump(tmp_path / "pose.pkl", (every, np.zeros((N + 100, 2))))
    _dump(tmp_path / "ctf.pkl", ctf)
    _dump(tmp_path / "ind.pkl", rows)
    logvar = np.log(np.tile([0.01, 0.01, 0.98], (N, 1))).astype("f4")
    for epoch in (9, 10):
        z = _latents(rotation, 5, leaky=epoch == 10)
        _dump(run / f"z.{epoch}.pkl", z, logvar)
    (run / "config.yaml").write_text(
        f"cmd: []\ndataset_args:\n  ctf: {tmp_path}/ctf.pkl\n  datadir: null\n"
        f"  ind: '{tmp_path}/ind.pkl'\n  poses: {tmp_path}/pose.pkl\nlattice_args:\n  D: 65\n"
    )
    return run


def test_a_run_folder_leads_to_its_poses(folder, rotation):
    run = read_latents(folder)
    assert run.name == f"{folder} (epoch 10)"
    assert run.z.shape == run.sd.shape == (N, 3)
    np.testing.assert_allclose(run.sd[0], np.sqrt([0.01, 0.01, 0.98]), rtol=1e-6)
    np.testing.assert_array_equal(run.beside.rotation, rotation)
    assert run.beside.usual["defocus"].shape == (N, 2)
    assert not run.notes
    assert read_latents(folder, epoch=9).name.endswith("(epoch 9)")
    _dump(folder / "pose.10.pkl", (rotation[::-1].copy(), np.ones((N, 2))))  # trained ones
    np.testing.assert_array_equal(read_latents(folder).beside.rotation, rotation[::-1])
    (folder / "pose.10.pkl").unlink()
    (folder.parent / "pose.pkl").unlink()
    run = read_latents(folder)
    assert run.beside.rotation is None
    assert "pose.pkl (poses), which is not there" in run.notes[0]
    (folder / "config.yaml").unlink()
    assert read_latents(folder).beside is None
    _dump(folder / "config.pkl", {"dataset_args": {"poses": f"{folder}/poses.pkl", "ind": None}})
    _dump(folder / "poses.pkl", rotation)
    np.testing.assert_array_equal(read_latents(folder).beside.rotation, rotation)
    _dump(folder / "config.pkl", Path("a"))
    assert "settings not read" in read_latents(folder).notes[0]


def test_settings_that_name_no_file(folder):
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("pose.pkl", "p" * 5000))
    run = read_latents(folder)
    assert "(poses), which is not there" in run.notes[0]


def test_copies_among_the_particles_of_a_run_folder(folder):
    listed = folder.parent / "particles.star"
    names = [f"{n // 2 + 1:06d}@s.mrcs" for n in range(N + 100)]
    listed.write_text("data_\nloop_\n_rlnImageName\n" + "\n".join(names) + "\n")
    settings = folder / "config.yaml"
    settings.write_text(settings.read_text().replace("  poses", f"  particles: {listed}\n  poses"))
    run = read_latents(folder)
    (rows,) = read_pickles(folder.parent / "ind.pkl")
    _, expected = np.unique(rows // 2, return_inverse=True)
    np.testing.assert_array_equal(np.unique(run.beside.image, return_inverse=True)[1], expected)
    listed.write_text("data_\nloop_\n_rlnImageName\n" + "\n".join(names[:9]) + "\n")
    run = read_latents(folder)
    assert run.beside.image is None
    assert run.beside.rotation is not None
    assert "more than once: " in run.notes[0]


@pytest.mark.parametrize(
    "words",
    [
        ("identify",), ("identify", "{}"), ("diagnose",), ("landscape",), ("report",), ("ica",),
        ("compare",), ("movie", "--out", "{}/movie"), ("export", "--out", "{}/z.star"),
        ("rehearse", "--models", f"{MODELS}/vae.py", "--out", "{}/rehearsal"),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_commands_for_our_runs_send_those_of_others_to_audit(folder, words, capsys):
    command, *more = (word.format(folder) for word in words)
    assert main([command, str(folder), *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pyrocryo: {folder} is not a finished run folder: it has no ")
    assert said.endswith("; it looks like cryoDRGN's: pyrocryo audit reads these\n")


def test_folders_of_particles_are_told_where_to_go(tmp_path, capsys):
    (tmp_path / "run_data.star").touch()
    assert main(["report", str(tmp_path)]) == 2
    assert "its particles are for pyrocryo inspect and fit --data" in capsys.readouterr().err


def test_audit_of_a_run_folder(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["audit", str(folder), *FEW, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "pose: z depends on the turn in the image's plane" in printed
    assert "2 of 3 latents vary (collapsed: z3)" in printed
    assert "these numbers cannot tell which" in printed
    assert "no sign that z depends on defocus" in printed
    assert "agreement of runs: there is one run alone" in printed
    told = json.loads((out / "audit.json").read_text())
    run = told["runs"][0]
    assert run["particles"] == N
    assert run["pose"]["latents"] == [0, 1]
    _, turn, _ = run["pose"]["tests"]
    assert turn["share"][0] == pytest.approx(0.7**2 / 2 / (1.01 + 0.7**2 / 2), abs=0.06)
    assert run["ica"]["sources"] is None
    text = (out / "audit.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,iVBOR', text)
    assert len(pictures) == 4
    assert not re.findall(r'(src|href)="(?!data:)', text)
    assert "which explains" in text
    assert "it needs the program&#x27;s encoder" in text
    assert main(["audit", str(folder), "--epoch", "9", *FEW]) == 0
    printed = capsys.readouterr().out
    assert "pose: no sign that z depends on the pose" in printed
    assert "these numbers cannot tell which" not in printed


def test_several_runs_agree_up_to(rotation, tmp_path, capsys):
    paths = []
    for name, z in {
        "a.npy": _latents(rotation, 1),
        "b.npy": _latents(rotation, 2)[:, [2, 1, 0]],
        "c.npy": _latents(rotation, 3, turn=0.6),
        "noise.npy": np.random.default_rng(9).standard_normal((N, 3)) * [1, 1, 0.01],
        "short.npy": _latents(rotation, 4)[:-1],
        "wide.npy": np.random.default_rng(10).standard_normal((N, 5)),
        "alive.npy": _latents(rotation, 2) * [1, 1, 100],  # else: a turn, by the dead one
    }.items():
        np.save(tmp_path / name, z)
        paths.append(str(tmp_path / name))
    same, turned, nothing, short, wide = (
        "the runs agree on every axis, up to order and sign",
        "the runs agree up to a rotation of the axes",
        "the runs found different things",
        "different numbers of particles",
        "explains 0 % of those of",
    )
    alive = "explains 98 % of those of"
    for other, told in zip(paths[1:], (same, turned, nothing, short, wide, alive), strict=True):
        assert main(["audit", paths[0], other, *FEW]) == 0
        printed = capsys.readouterr().out
        assert told in printed
        assert "not done: pose: no poses are known" in printed
        assert "no posterior widths are given" in printed


def test_poses_and_columns_of_star_and_cs(rotation, tmp_path, capsys):
    rng = np.random.default_rng(6)
    angles = rotations.euler_from_matrix(rotation)
    mics, snr = rng.integers(0, 20, N), rng.standard_normal(N)
    names = (*"rlnAngleRot rlnAngleTilt rlnAnglePsi rlnMicrographName mySNR rlnDefocusU".split(),)
    rows = [
        f"{a:.6f} {b:.6f} {c:.6f} m{mic}.mrc {s:.5f} 1.0"
        for (a, b, c), mic, s in zip(angles, mics, snr, strict=True)
    ]
    head = "".join(f"_{name} #{i + 1}\n" for i, name in enumerate(names))
    star = tmp_path / "p.star"
    star.write_text(f"data_particles\n\nloop_\n{head}" + "\n".join(rows) + "\n")
    cs = tmp_path / "p.cs"
    table = np.zeros(
        N,
        [
            ("alignments3D/pose", "f4", 3),
            ("ctf/df1_A", "f4"),
            ("ctf/df2_A", "f4"),
            ("ctf/exp_group_id", "u4"),
        ],
    )
    table["alignments3D/pose"] = rotations.vector_from_matrix(np.swapaxes(rotation, 1, 2))
    with cs.open("wb") as file:
        np.save(file, table)
    for path in (star, cs):
        np.testing.assert_allclose(read_columns(path).rotation, rotation, atol=1e-5)
    z = _latents(rotation, 7, leaky=True)
    z[:, 1] += 0.5 * snr
    np.save(tmp_path / "z.npy", z)
    line = ["audit", str(tmp_path / "z.npy"), *FEW]
    assert main([*line, "--poses", str(star), "--against", "mySNR"]) == 0
    printed = capsys.readouterr().out
    assert "z depends on the turn in the image's plane" in printed
    assert "mySNR: z depends on mySNR" in printed
    assert "micrograph: no sign" in printed
    assert "defocus:" not in printed  # the same for all
    assert main([*line, "--poses", str(cs)]) == 0
    assert "z depends on the turn in the image's plane" in capsys.readouterr().out
    assert main([*line, "--poses", str(star), "--against", "rlnNone"]) == 2
    assert "no column rlnNone; the file has rlnAngleRot" in capsys.readouterr().err
    assert main([*line, "--against", "mySNR"]) == 2
    assert "with --poses" in capsys.readouterr().err


def test_which_of_several_poses_of_a_cs_file(rotation, tmp_path):
    names = ["alignments3D_multi/pose", "alignments_class_0/pose", "alignments3D/pose"]
    kinds = [("f4", (2, 3)), ("f4", 3), ("f4", 3)]
    table = np.zeros(N, [(name, *kind) for name, kind in zip(names, kinds, strict=True)])
    vector = rotations.vector_from_matrix(np.swapaxes(rotation, 1, 2))
    for count, column in ((3, names[2]), (2, names[1])):
        table[column] = vector
        np.save(tmp_path / "p.npy", table[names[:count]].copy())
        path = (tmp_path / "p.npy").rename(tmp_path / f"p{count}.cs")
        np.testing.assert_allclose(read_columns(path).rotation, rotation, atol=1e-5)
    np.save(tmp_path / "p.npy", table[names[:1]].copy())
    path = (tmp_path / "p.npy").rename(tmp_path / "p1.cs")
    assert read_columns(path).rotation is None  # one pose a class: which is not said


def test_columns_are_made_when_asked_for(tmp_path):
    table = np.zeros(4, [("location/micrograph_path", "S9"), ("a", "f4"), ("b", "u8")])
    table["location/micrograph_path"] = [b"\xe9.mrc", b"b.mrc", b"b.mrc", b"c.mrc"]
    table["b"] = 2**63 + np.arange(4, dtype=np.uint64)
    np.save(tmp_path / "p.npy", table)
    seen = read_columns((tmp_path / "p.npy").rename(tmp_path / "p.cs"))
    assert list(seen.columns) == list(table.dtype.names)
    some = seen.take(np.array([2, 0]))
    np.testing.assert_array_equal(some.columns["b"], table["b"][[2, 0]])
    np.testing.assert_array_equal(some.usual["micrograph"], [b"b.mrc", b"\xe9.mrc"])
    assert "c" not in some.columns


def test_copies_of_particles_are_tested_once(tmp_path, capsys):
    """As cryoSPARC and RELION write them after symmetry expansion, here of C4."""
    alarms = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        few = rotations.random_in_space((200,), rng)
        turns = rotations.in_plane(np.arange(4) * np.pi / 2)
        every = (few[:, None] @ np.swapaxes(turns, 1, 2)).reshape(-1, 3, 3)
        z = np.repeat(rng.standard_normal((200, 2)), 4, axis=0)
        z += 0.3 * rng.standard_normal(z.shape)
        image = np.repeat(np.arange(200), 4)
        for images in ({}, {"a": image}):
            found = audit({"a": z}, rotations={"a": every}, images=images, permutations=59)
            alarms.append(found.runs[0].leak.verdict != "none seen")
    assert sum(alarms[::2]) >= 3  # what copies do
    assert sum(alarms[1::2]) <= 2
    angles = rotations.euler_from_matrix(every)
    rows = [f"{i + 1:06d}@s.mrcs {a} {b} {c}" for i, (a, b, c) in zip(image, angles, strict=True)]
    head = "_rlnImageName\n_rlnAngleRot\n_rlnAngleTilt\n_rlnAnglePsi\n"
    (tmp_path / "p.star").write_text("data_\nloop_\n" + head + "\n".join(rows) + "\n")
    table = np.zeros(800, [("blob/path", "S9"), ("blob/idx", "u4")])
    table["blob/path"] = np.where(image % 2, b"a.mrc", b"b.mrc")
    table["blob/idx"] = image // 2
    np.save(tmp_path / "z.npy", z)
    np.save(tmp_path / "p.npy", table)
    (tmp_path / "p.npy").rename(tmp_path / "p.cs")
    for name in ("p.star", "p.cs"):
        seen = read_columns(tmp_path / name).take(np.arange(8, 16))
        assert len(np.unique(seen.image[:4])) == len(np.unique(seen.image[4:])) == 1
        assert len(np.unique(seen.image)) == 2
        words = ["audit", str(tmp_path / "z.npy"), "--poses", str(tmp_path / name), *FEW]
        assert main(words) == 0
        assert "not done: tests of 600 rows that show an image again" in capsys.readouterr().out


def test_a_column_that_passes_by_chance_is_said_to(rotation):
    z = _latents(rotation, 7)
    found = audit({"a": z}, columns={"a": {"x": z[:, 0]}}, permutations=59)
    run = found.runs[0]
    (sure,) = run.others
    assert "by chance" not in " ".join(found.lines())
    run.others = [replace(sure, p=p) for p in (0.001, 0.02, 0.3)]
    told = [line for line in found.lines() if line.startswith("x: ")]
    assert ["by chance, one of 3 columns" in line for line in told] == [False, True, False]
    assert page(found).count("<p class=verdict>z depends on x") == 1


def test_mistakes_from_the_shell(rotation, tmp_path, capsys):
    z = _latents(rotation, 8)
    np.save(tmp_path / "z.npy", z)
    holes = z.copy()
    holes[4] = np.nan
    np.save(tmp_path / "nan.npy", holes)
    np.save(tmp_path / "cube.npy", np.zeros((3, 4, 5)))
    _dump(tmp_path / "pose.pkl", (rotation[:-1], np.zeros((N - 1, 2))))
    _dump(tmp_path / "evil.pkl", print)
    _dump(tmp_path / "odd.pkl", z, z[:-1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "not.cs").write_text("no")
    for words, told in (
        (["nan.npy"], "not finite for 1 of 600 particles, the first in row 5"),
        (["cube.npy"], "expected latents (N, K), got (3, 4, 5)"),
        (["evil.pkl"], "refused"),
        (["odd.pkl"], "log-variances of the shape of z"),
        (["empty"], "expected files z.N.pkl"),
        (["none.npy"], "none.npy: cannot read it (No such file or directory)"),
        (["z.npy", "z.npy"], "twice"),
        (["z.npy", "--poses", "pose.pkl"], "600 rows of z, but 599 particles"),
        (["z.npy", "--poses", "not.cs"], "not.cs: not a .cs file"),
        (["z.npy", "--permutations", "5"], "59 or more"),
        (["z.npy", "--ind", "pose.pkl"], "name one of them"),
    ):
        line = [str(tmp_path / word) if "." in word or word == "empty" else word for word in words]
        assert main(["audit", *line]) == 2
        assert told in capsys.readouterr().err
    rows = _dump(tmp_path / "ind.pkl", np.array([0, 700]))
    with pytest.raises(InputError, match="particle 700 of 600"):
        read_indices(rows, N)


def test_what_cannot_be_done_is_said_and_the_rest_done(rotation):
    one = audit({"one": np.ones((1, 2))}, rotations={"one": rotation[:1]}, permutations=59)
    assert one.runs[0].dims is None
    assert len(one.runs[0].skipped) == 3
    assert "What was not done" in page(one)
    still = audit({"still": np.ones((N, 2))}, rotations={"still": rotation}, permutations=59)
    assert "pose: z: no latent varies" in still.runs[0].skipped
    assert "0 of 2 latents vary" in still.lines()[0]
    assert page(still)
    plane = rotations.in_plane(np.linspace(-3, 3, N))
    flat = audit({"flat": _latents(rotation, 9)}, rotations={"flat": plane}, permutations=59)
    assert len(flat.runs[0].leak.tests) == 2
    assert page(flat).count("data:image/png") == 4


def test_real_files():
    if "PYROCRYO_TEST_DATA" not in os.environ:
        pytest.skip("PYROCRYO_TEST_DATA is not set")
    data = Path(os.environ["PYROCRYO_TEST_DATA"])
    seen = read_columns(data / "cs/cryosparc_P12_J24_001_particles.cs")
    expected, _ = read_poses(data / "cs/pose.cs.pkl")
    np.testing.assert_allclose(seen.rotation, expected, atol=1e-5)
    np.testing.assert_allclose(seen.usual["defocus"], read_ctf(data / "cs/ctf2.pkl"), rtol=1e-6)
    assert read_columns(data / "relion31/relion31.star").rotation.shape == (5, 3, 3)
    assert read_columns(data / "empiar10076/empiar_10076_7.cs").rotation is None


def test_pickles_in_a_row(tmp_path):
    path = _dump(tmp_path / "a.pkl", np.arange(3), np.arange(4), np.arange(5))
    assert [len(a) for a in read_pickles(path, most=2)] == [3, 4]
    assert len(read_pickles(path)) == 1
    assert len(read_pickles(path, most=9)) == 3


def _turned_back(images, angle, centre):
    """Images turned by -angle about a pixel, within a disc."""
    y, x = np.mgrid[: images.shape[1], : images.shape[2]] - float(centre)
    disc, found = x**2 + y**2 < 50, []
    for image, a in zip(images, angle, strict=True):
        at = [np.cos(a) * y + np.sin(a) * x + centre, np.cos(a) * x - np.sin(a) * y + centre]
        found.append(map_coordinates(image, at, order=3) * disc)
    return np.stack(found)


def test_images_turned_about_the_right_pixel_tell_nothing_of_their_pose():
    seen = pc.simulate.poses(pc.molecules.TwoArms(), 1500, 0, snr=1.0, box=16, pixel_size=6.0)
    images, rotation = np.asarray(seen.images), np.asarray(seen.rotation)
    angle = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
    z = {
        name: PCA(3).fit_transform(pictures.reshape(len(images), -1))
        for name, pictures in (
            ("as they are", images),
            ("about the centre", _turned_back(images, angle, 8)),
            ("half a pixel off", _turned_back(images, angle, 7.5)),
        )
    }
    found = audit(z, rotations=dict.fromkeys(z, rotation), permutations=99)
    raw, right, off = (run.leak for run in found.runs)
    assert raw.verdict == off.verdict == "depends"
    assert raw.share > 0.5
    assert off.share > 0.2
    assert right.verdict == "none seen"
    assert found.agreement is not None


def test_shares_of_all_the_variance_are_no_powers_of_ten():
    from pyrocryo.report.audit_page import _percent

    assert [_percent(x) for x in (0.999, 0.172, 0.0213, -0.2)] == [
        "100 %",
        "17 %",
        "2.1 %",
        "-20 %",
    ]
