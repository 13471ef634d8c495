"""What is said of particles whose properties are known, and of real ones."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from pyrocryo import inspection, io, simulate
from pyrocryo.cli import main
from pyrocryo.errors import InputError
from pyrocryo.io.facts import facts
from pyrocryo.molecules import TwoArms
from pyrocryo.particles import Particles
from pyrocryo.rotations import matrix_from_euler, random_in_plane, random_in_space

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PYROCRYO_TEST_DATA", "no folder"))
real_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="PYROCRYO_TEST_DATA does not name the folder of others' test data"
)


@pytest.mark.parametrize("ctf", [False, True])
@pytest.mark.parametrize("snr", [0.1, 1.0])
@pytest.mark.parametrize("box", [48, 49])
def test_snr_and_sign(snr, ctf, box):
    particles = simulate.poses(TwoArms(), 400, 3, snr=snr, ctf=ctf, box=box)
    found = inspection.summary(particles, most=400)
    assert found["snr"]["box"] == pytest.approx(snr, rel=0.3)
    assert abs(found["snr"]["box"] - snr) < 5 * found["snr"]["se"] + 0.05 * snr
    assert found["sign"]["verdict"] == "bright"
    assert found["images"]["normalised"]
    assert not inspection.looks_dark(particles)
    dark = inspection.summary(particles.inverted(), most=400)
    assert dark["sign"]["verdict"] == "dark"
    assert dark["sign"]["t"] == pytest.approx(-found["sign"]["t"])
    assert dark["snr"]["box"] == pytest.approx(found["snr"]["box"])


def test_scaled_images_have_the_same_snr_and_are_not_normalised():
    particles = simulate.poses(TwoArms(), 100, 0, snr=0.5, box=32)
    before = inspection.summary(particles)
    particles.images = 30 * particles.images + 7
    after = inspection.summary(particles)
    assert not after["images"]["normalised"]
    assert after["images"]["background_mean"] == pytest.approx(7, abs=1.5)
    assert after["images"]["background_sd"] == pytest.approx(30, rel=0.1)
    assert after["snr"]["box"] == pytest.approx(before["snr"]["box"], rel=1e-4)
    assert inspection.summary(particles.standardised())["images"]["normalised"]


def test_noise_alone_says_nothing():
    verdicts = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=(60, 24, 24)).astype(np.float32)
        found = inspection.summary(Particles(noise))
        verdicts.append(found["sign"]["verdict"])
        assert abs(found["snr"]["box"]) < 5 * found["snr"]["se"]
        assert abs(found["images"]["neighbour_correlation"]) < 0.05
    assert verdicts.count("unclear") >= 18  # each told wrongly once in a hundred


def test_coloured_noise_is_seen():
    box = 32
    found = simulate.poses(
        TwoArms(), 60, 0, snr=0.01, box=box, spectrum=lambda k: 1 / (0.01 + k) ** 2
    )
    assert inspection.summary(found)["images"]["neighbour_correlation"] > 0.3


def test_bad_images_are_named():
    images = np.random.default_rng(0).normal(size=(12, 16, 16)).astype(np.float32)
    images[4, 3, 3] = np.nan
    images[7] = 2.0
    images[9, 0], images[9, 1:] = images[2, 0], images[2, 1:]
    images[9, 8, 8] += 1  # inside: the background is still that of the other
    found = inspection.summary(Particles(images))["images"]
    assert found["not_finite"] == {"count": 1, "first": [4]}
    assert found["constant"] == {"count": 1, "first": [7]}
    assert found["repeated"] == {"count": 1, "first": [[2, 9]]}
    nothing = inspection.summary(Particles(np.ones((3, 8, 8), np.float32)))
    assert nothing["snr"] is None
    assert nothing["sign"]["verdict"] == "unclear"
    assert json.dumps(nothing)


def test_views():
    rng = np.random.default_rng(0)
    even = inspection.views(random_in_space((3000,), rng))
    assert even["uniform_p"] > 0.01
    assert even["largest_moment"] == pytest.approx(1 / 3, abs=0.03)
    assert even["filled"] == 1
    assert not even["in_plane_only"]
    p = [inspection.views(random_in_space((200,), rng))["uniform_p"] for _ in range(200)]
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.07)
    angles = np.column_stack(
        [rng.uniform(-180, 180, 500), rng.normal(0, 8, 500), rng.uniform(-180, 180, 500)]
    )
    top = inspection.views(matrix_from_euler(angles))
    assert top["uniform_p"] < 1e-9
    assert top["largest_moment"] > 0.9
    assert top["filled"] < 0.3
    assert top["angle_p"] > 1e-3
    side = angles * [1, 0, 0] + [0, 90, 20]  # a belt, all seen with one turn in the plane
    belt = inspection.views(matrix_from_euler(side))
    assert belt["largest_moment"] == pytest.approx(0.5, abs=0.06)
    assert belt["angle_resultant"] == pytest.approx(1)
    assert belt["angle_p"] < 1e-9
    flat = inspection.views(random_in_plane((500,), rng))
    assert flat["in_plane_only"]
    assert "uniform_p" not in flat
    assert flat["angle_p"] > 1e-3


def test_ctf_and_fields():
    n = 30
    ctf = np.tile([15_000.0, 14_000, 10, 300, 2.7, 0.07, 0], (n, 1))
    ctf[:, :2] += np.linspace(-5000, 5000, n)[:, None]
    ctf[3, 6] = 90
    images = np.random.default_rng(0).normal(size=(n, 8, 8)).astype(np.float32)
    particles = Particles(
        images,
        pixel_size=2.0,
        ctf=ctf,
        shift=np.tile([3.0, -4.0], (n, 1)),
        temperature=np.repeat([80.0, 300.0], n // 2),
        time=np.linspace(0, 2, n),
    )
    found = inspection.summary(particles)
    assert found["ctf"]["defocus_in_angstroms"] == {
        "least": 9500.0,
        "median": 14_500.0,
        "most": 19_500.0,
    }
    assert found["ctf"]["astigmatism_in_angstroms"]["most"] == pytest.approx(1000)
    assert found["ctf"]["voltage_in_kilovolts"] == [300.0]
    assert found["ctf"]["phase_plate"]
    assert found["ctf"]["phase_shift_in_degrees"] == [0, 90]
    assert found["shift"]["rms_in_angstroms"] == pytest.approx(5)
    assert found["temperature"]["particles"] == {"80.0": 15, "300.0": 15}
    assert found["time"] == {"range_in_seconds": [0.0, 2.0]}
    assert inspection.summary(particles, most=7)["images"]["read"] == 7
    with pytest.raises(InputError, match="images: expected at least 1"):
        inspection.summary(particles, most=0)


def test_facts_of_a_star_file(tmp_path):
    particles = simulate.poses(TwoArms(), 6, 0, box=16, ctf=True)
    io.save(particles, tmp_path / "p.star")
    blocks = io.relion.star.read(tmp_path / "p.star")
    for column in blocks["optics"].values():
        column.append(column[0])
    blocks["optics"]["rlnOpticsGroup"][1] = "2"
    blocks["optics"]["rlnOpticsGroupName"][1] = "empty"
    blocks["optics"]["rlnImagePixelSize"] = ["3.1", "3.1"]
    names = blocks["particles"]["rlnImageName"]
    names[5] = names[0]
    io.relion.star.write(tmp_path / "p.star", blocks)
    found = facts(tmp_path / "p.star", io.load(tmp_path / "p.star"))
    assert found["format"] == "STAR (RELION 3.1 or later)"
    assert [group["particles"] for group in found["optics_groups"]] == [6, 0]
    assert found["stacks"] == {"files": 1, "images": 6, "types": {"float32": 1}}
    assert found["oddities"] == [
        "optics group empty has no particles",
        "1 images are listed more than once, such as 000001@p.mrcs",
        "the stack's header has another pixel size than 3.1 Å, which counts: 3 Å in p.mrcs",
    ]


def test_command(tmp_path, capsys):
    star = tmp_path / "p.star"
    io.save(simulate.time_resolved(TwoArms(), 30, 0, box=72, ctf=True, snr=0.5), star)
    assert main(["inspect", str(star), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for words in (
        "30 of 2 frames, in 1 stack",
        "72 px of 3 Å: 216 Å wide",
        "rotation, shift, ctf, time, truth",
        "300 kV, Cs 2.7 mm",
        "in the plane only",
        ": normalised",
        "bright particles",
    ):
        assert words in printed
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["sign"]["verdict"] == "bright"
    assert written["snr"]["box"] == pytest.approx(0.5, rel=0.3)
    for name in ("montage", "views", "defocus"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 2000
    assert main(["inspect", str(star), "--out", str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "p.mrcs")]) == 0
    assert "poses       none in the file" in capsys.readouterr().out
    assert main(["inspect", str(star), "--passthrough", "x.cs"]) == 2
    assert main(["inspect", str(tmp_path / "q.star")]) == 2
    assert main(["inspect", str(tmp_path / "p.mrcs"), "--folder", "x"]) == 2
    assert main(["inspect", str(star), "--folder", str(tmp_path)]) == 0


def test_fit_of_dark_particles_in_a_smaller_box(tmp_path, caplog, capsys):
    bright = simulate.time_resolved(TwoArms(), 40, 0, box=48, pixel_size=2.0)
    io.save(bright.inverted(), tmp_path / "dark.star")
    io.save(bright, tmp_path / "bright.star")
    (tmp_path / "moved").mkdir()
    (tmp_path / "dark.mrcs").rename(tmp_path / "moved/dark.mrcs")
    short = ("--steps", "3", "--batch-size", "16", "--draws", "3")
    fit = ["fit", str(ROOT / "models" / "slowvae.py"), *short, "--downsample", "32"]
    fit += ["--folder", str(tmp_path / "moved")]
    caplog.set_level(logging.WARNING, "pyrocryo")
    for name, more, warned in (
        ("dark", ["--invert"], False),
        ("dark", [], True),
    ):
        out = tmp_path / f"{name}{len(more)}"
        caplog.clear()
        data = ["--data", str(tmp_path / f"{name}.star"), "--out", str(out)]
        assert main([*fit, *data, *more]) == 0
        assert ("darker than their background" in caplog.text) == warned
    _, particles = io.load_fit(tmp_path / "dark1")
    assert (particles.box, particles.pixel_size) == (32, 3.0)
    expected = bright.downsampled(32).standardised().batch(np.arange(5)).images
    np.testing.assert_allclose(particles.batch(np.arange(5)).images, expected, atol=1e-5)
    assert main([*fit[:2], "--invert"]) == 2
    assert "go with --data" in capsys.readouterr().err


@real_data
@pytest.mark.parametrize(
    ("file", "n", "box", "pixel", "sign", "defocus"),
    [
        ("relion31/relion31.star", 5, 256, 2.806, "unclear", 12_600),
        ("relion31/relion31.v2.star", 5, 256, 2.806, "unclear", 12_600),
        ("empiar10076/empiar_10076_7.star", 7, 320, 1.31, "dark", 15_100),
        ("toy/toy_projections.star", 1000, 30, 1.0, "bright", 0),
    ],
)
def test_real_files(file, n, box, pixel, sign, defocus):
    particles = io.load(DATA / file)
    found = inspection.summary(particles, most=100)
    assert (found["particles"], found["box"]) == (n, box)
    assert found["pixel_size_in_angstroms"] == pytest.approx(pixel, rel=1e-3)
    assert found["sign"]["verdict"] == sign
    assert found["ctf"]["defocus_in_angstroms"]["median"] == pytest.approx(defocus, abs=200)
    if "relion31" in file:
        assert found["sign"]["leans"] == "bright"
        assert found["images"]["repeated"]["first"] == [[0, 1]]
    if "toy" in file:
        assert found["snr"] is None
    else:
        assert found["images"]["normalised"]
        assert -0.01 < found["snr"]["box"] < 0.1


@real_data
def test_cryosparc_particles_are_bright():
    """The .cs file says that its images are dark, and they are turned when read."""
    folder = DATA / "empiar10076"
    particles = io.load(folder / "empiar_10076_7.cs", folder=folder)
    assert inspection.summary(particles)["sign"]["verdict"] == "bright"
    found = facts(folder / "empiar_10076_7.cs", particles)
    assert found["format"] == "cryoSPARC .cs"
    assert found["stacks"]["images"] == 7
    assert not [line for line in found["oddities"] if "another row" in line]


def test_facts_of_copies_and_maps(tmp_path):
    io.write_map(tmp_path / "map.mrc", np.random.default_rng(0).normal(size=(6, 6, 6)), 2.0)
    table = np.zeros(4, [("blob/path", "S9"), ("blob/idx", "u4"), ("blob/psize_A", "f4")])
    table["blob/path"], table["blob/idx"], table["blob/psize_A"] = b"map.mrc", [0, 3, 0, 0], 2
    with (tmp_path / "p.cs").open("wb") as file:
        np.save(file, table)
    cube = "map.mrc is a cube: a map, rather than images?"
    for name, copies in (
        ("p.cs", ["2 rows show an image that another row has shown"]),
        ("map.mrc", []),
    ):
        found = facts(tmp_path / name, io.load(tmp_path / name))
        assert found["oddities"][: len(copies) + 1] == [*copies, cube]
