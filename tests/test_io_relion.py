import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyrocryo import io, simulate
from pyrocryo.errors import InputError
from pyrocryo.imaging import resample_projection
from pyrocryo.io import star
from pyrocryo.io.mrc import Stacks, write_stack
from pyrocryo.molecules import TwoArms
from pyrocryo.particles import Particles
from pyrocryo.rotations import matrix_from_euler

DATA = Path(os.environ.get("PYROCRYO_TEST_DATA", "no folder"))
real_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="PYROCRYO_TEST_DATA does not name the folder of others' test data"
)


def simulated(kind, box=16):
    return getattr(simulate, kind)(TwoArms(), 12, 0, box=box, pixel_size=6.0)


def in_space(n=12, box=9):
    rng = np.random.default_rng(0)
    ctf = np.concatenate(
        [rng.uniform(1e4, 2e4, (n, 3)), np.tile([300, 2.7, 0.1], (n, 1)), np.zeros((n, 1))], 1
    )
    return Particles(
        rng.normal(size=(n, box, box)).astype(np.float32),
        pixel_size=1.31,
        rotation=matrix_from_euler(rng.uniform(-180, 180, (n, 3))),
        shift=rng.normal(size=(n, 2)),
        ctf=ctf,
    )


CASES = {
    "poses": lambda: simulated("poses"),
    "odd box": lambda: simulated("poses", box=15),
    "frames": lambda: simulated("time_resolved"),
    "temperature": lambda: simulated("temperature"),
    "in space": in_space,
    "images alone": lambda: Particles(np.zeros((3, 4, 4)) + np.arange(3)[:, None, None]),
}


@pytest.mark.parametrize("case", CASES)
def test_round_trip(tmp_path, case, caplog):
    saved = CASES[case]()
    io.save(saved, tmp_path / "p.star")
    read = io.load(tmp_path / "p.star", test_fraction=0.25, split_seed=3)
    assert caplog.records == []
    assert isinstance(read.images, Stacks)
    assert read.images.shape == saved.images.shape
    assert read.pixel_size == saved.pixel_size
    assert read.fields.keys() == saved.fields.keys()
    rows = np.arange(len(saved))
    np.testing.assert_array_equal(read.images[rows], np.float32(saved.images[rows]))
    for name, value in saved.fields.items():
        np.testing.assert_allclose(read.fields[name], value, rtol=1e-6, atol=1e-6)
    batch = read.test.batch(np.array([0]))
    np.testing.assert_array_equal(batch.images[0], saved.images[int(batch.index[0])])
    assert {p.name for p in tmp_path.iterdir()} == {"p.star", "p.mrcs"}


def test_saves_a_part_as_stored(tmp_path):
    saved = simulated("time_resolved").standardised().take(np.array([7, 2, 9]))
    io.save(saved, tmp_path / "p.star")
    read = io.load(tmp_path / "p.star")
    np.testing.assert_array_equal(read.images[np.arange(3)], saved.images[[7, 2, 9]])
    np.testing.assert_array_equal(read.truth, saved.truth)
    with pytest.raises(InputError, match="is there already"):
        io.save(read.take(np.array([1])), tmp_path / "p.star")  # over the files it reads from
    np.testing.assert_array_equal(read.images[np.arange(3)], saved.images[[7, 2, 9]])


def test_signs_and_names(tmp_path):
    saved = simulated("poses")
    io.save(saved, tmp_path / "p.star")
    blocks = star.read(tmp_path / "p.star")
    assert list(blocks) == ["optics", "particles"]
    table = blocks["particles"]
    origin = np.array([table["rlnOriginXAngst"], table["rlnOriginYAngst"]], dtype=float).T
    np.testing.assert_array_equal(origin, -saved.shift)
    psi = np.deg2rad(np.array(table["rlnAnglePsi"], dtype=float))
    np.testing.assert_allclose(saved.rotation[:, 0, 0], np.cos(psi), atol=1e-12)
    np.testing.assert_allclose(saved.rotation[:, 0, 1], np.sin(psi), atol=1e-12)  # passive
    assert table["rlnImageName"][:2] == ["000001@p.mrcs", "000002@p.mrcs"]


def test_further_fields_come_back(tmp_path, caplog):
    """Numbers, classes and vectors; of particles, of molecules and of their frames."""
    rng = np.random.default_rng(0)
    further = {
        "ligand": rng.normal(size=12),
        "mutant": rng.integers(-3, 3, 12),
        "whole": np.arange(12.0),
        "single": rng.normal(size=12).astype(np.float32),
        "force": rng.normal(size=(12, 11)),
        "contrast": rng.normal(size=12),
        "one": rng.normal(size=(12, 1)),
        "dose_1": rng.normal(size=12),
    }
    images = simulated("poses").having(**further)
    molecules = simulated("time_resolved").having(
        **{**further, "contrast": rng.normal(size=(12, 2))}
    )
    for name, saved in (("images", images), ("molecules", molecules)):
        io.save(saved, tmp_path / f"{name}.star")
        read = io.load(tmp_path / f"{name}.star")
        assert read.fields.keys() == saved.fields.keys()
        for field in further:
            np.testing.assert_array_equal(read.fields[field], saved.fields[field])
            assert read.fields[field].dtype.kind == saved.fields[field].dtype.kind
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pyrocryoField1_u": [1] * 4, "pyrocryoField3_u": [1] * 4}, "expected columns pyrocryo"),
        ({"pyrocryoField_u": [1] * 4, "pyrocryoField1_u": [1] * 4}, "expected columns pyrocryo"),
        ({"pyrocryoField_u": [1, 2, "x", 3]}, "row 3 .*: pyrocryoField_u is 'x', expected a fin"),
        ({"pyrocryoField_truth": [1] * 4}, "truth cannot be the name of a further field"),
        ({"pyrocryoField_offset": [1] * 4}, "offset cannot be the name of a further field"),
        ({"pyrocryoField_batch": [1] * 4}, "'batch' cannot be the name of a field"),
    ],
)
def test_further_fields_are_checked(tmp_path, columns, message):
    with pytest.raises(InputError, match=message):
        io.load(files(tmp_path, columns), pixel_size=3.0)


def test_save_says_what_it_drops(tmp_path, caplog):
    particles = Particles(np.zeros((2, 4, 4)), colour=np.zeros((2, 3, 3)))
    io.save(particles, tmp_path / "p.star")
    assert "no column for the fields colour; not written" in caplog.text


def test_save_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in ("gone", "file"):
        with pytest.raises(InputError, match=rf"{folder}: cannot write there"):
            io.save(in_space(), tmp_path / folder / "p.star")
    with pytest.raises(InputError, match=r"expected a name that ends in \.star"):
        io.save(in_space(), tmp_path / "p.mrcs")


def files(folder, particles=None, optics=None, n=4, box=6, name="particles"):
    """Writes a stack of images 0, 1, ... and a star file; columns given as None are left out."""
    images = np.zeros((n, box, box)) + np.arange(n)[:, None, None]
    write_stack(folder / "s.mrcs", images, 3.0)
    table = {"rlnImageName": [f"{i + 1}@s.mrcs" for i in range(n)]} | (particles or {})
    blocks = {name: {key: value for key, value in table.items() if value is not None}}
    if optics is not None:
        blocks["optics"] = optics  # behind the particles, as some programs write it
    star.write(folder / "p.star", blocks)
    return folder / "p.star"


def test_names_are_numbered_from_one(tmp_path):
    path = files(tmp_path, {"rlnImageName": ["2@s.mrcs", "000001@s.mrcs", "4@s.mrcs"]})
    assert io.load(path).images[np.arange(3)][:, 0, 0].tolist() == [1, 0, 3]


@pytest.mark.parametrize(
    "name", ["0@s.mrcs", "s.mrcs", "x@s.mrcs", "1@", "-1@s.mrcs", "1.0@s.mrcs"]
)
def test_malformed_names(tmp_path, name):
    path = files(tmp_path, {"rlnImageName": ["1@s.mrcs", name]})
    with pytest.raises(
        InputError, match=r"row 2 of .*p\.star: rlnImageName is '.*', expected NUMB"
    ):
        io.load(path)


def test_image_past_the_end(tmp_path):
    path = files(tmp_path, {"rlnImageName": ["1@s.mrcs", "5@s.mrcs"]})
    with pytest.raises(InputError, match=r"row 2 of p\.star asks for image 5 of s\.mrcs, .* 4"):
        io.load(path)


def test_where_images_are(tmp_path, monkeypatch):
    path = files(tmp_path)
    project = tmp_path / "project"
    (project / "Refine3D/job007").mkdir(parents=True)
    path = path.rename(project / "Refine3D/job007/p.star")
    stack = (tmp_path / "s.mrcs").rename(project / "s.mrcs")
    assert len(io.load(path)) == 4  # names start in the project's folder, above that of the job
    with pytest.raises(InputError, match=r"row 1 of .*p\.star: image stack s\.mrcs is not in any"):
        io.load(path, folder=project / "Refine3D")
    (tmp_path / "else").mkdir()
    stack.rename(tmp_path / "else/s.mrcs")
    with pytest.raises(InputError, match=r"any of .*job007, .*project.*--folder"):
        io.load(path)
    assert len(io.load(path, folder=tmp_path / "else")) == 4
    monkeypatch.chdir(tmp_path / "else")
    assert len(io.load(path)) == 4


def test_an_angle_of_picking_is_no_pose(tmp_path, caplog):
    path = files(tmp_path, {"rlnAnglePsi": [-999.0, 10, 20, 30]})
    assert not io.load(path).fields
    assert "rlnAnglePsi alone" in caplog.text


EULER = {"rlnAngleRot": [0.0] * 4, "rlnAngleTilt": [0.0] * 4, "rlnAnglePsi": [90.0] * 4}


def test_relion_3_0(tmp_path):
    columns = EULER | {"rlnOriginX": [1.0] * 4, "rlnOriginY": [-2.0] * 4}
    columns |= {"rlnMagnification": [20000.0] * 4, "rlnDetectorPixelSize": [5.0] * 4}
    particles = io.load(files(tmp_path, columns, name=""))
    assert particles.pixel_size == 2.5
    np.testing.assert_allclose(particles.shift, [[-2.5, 5.0]] * 4)
    np.testing.assert_allclose(
        particles.rotation[0], [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-9
    )


OPTICS = {
    "rlnOpticsGroupName": ["near", "far"],
    "rlnOpticsGroup": [1, 7],
    "rlnImagePixelSize": [2.0, 2.0],
    "rlnImageSize": [6, 6],
    "rlnVoltage": [300.0, 200.0],
    "rlnSphericalAberration": [2.7, 2.0],
    "rlnAmplitudeContrast": [0.1, 0.07],
}
GROUPS = {"rlnOpticsGroup": [7, 1, 1, 7]}
DEFOCUS = {"rlnDefocusU": [1e4] * 4, "rlnDefocusV": [9e3] * 4, "rlnDefocusAngle": [30.0] * 4}


def test_optics_groups_are_joined(tmp_path):
    particles = io.load(files(tmp_path, GROUPS | DEFOCUS, OPTICS))
    assert particles.pixel_size == 2.0
    assert "rotation" not in particles.fields
    near, far = [1e4, 9e3, 30, 300, 2.7, 0.1, 0], [1e4, 9e3, 30, 200, 2.0, 0.07, 0]
    np.testing.assert_array_equal(particles.ctf, [far, near, near, far])
    io.save(particles, tmp_path / "q.star")
    np.testing.assert_array_equal(io.load(tmp_path / "q.star").ctf, particles.ctf)


@pytest.mark.parametrize(
    ("particles", "optics", "message"),
    [
        (GROUPS, {"rlnImageSize": [6, 8]}, "rlnImageSize is 8, but the images are 6"),
        (GROUPS, {"rlnImageSize": [8, 8]}, "rlnImageSize is 8, but the images are 6"),
        (GROUPS, {"rlnImagePixelSize": [0, 0]}, "pixel size of 0 Å"),
        (
            {"rlnOpticsGroup": [1, 2, 1, 1]},
            {},
            "row 2 .*rlnOpticsGroup is '2', expected one of .*1, 7",
        ),
        ({}, {}, "no column rlnOpticsGroup in data_particles"),
        (
            GROUPS,
            {"rlnCtfDataAreCtfPremultiplied": [0, 1]},
            "Premultiplied is '1', expected 0: images",
        ),
        (GROUPS, {"rlnMagMat00": [1, 1.01]}, "rlnMagMat00 is '1.01', expected 1: anisotropic"),
        (GROUPS, {"rlnImageDimensionality": [3, 3]}, "expected 2: only 2-D images"),
        (GROUPS, {"rlnTomoSubTomogramsAre2DStacks": [0, 1]}, "is '1', expected 0: stacks of the"),
        (GROUPS, {"rlnCtfDataArePhaseFlipped": [1, 1]}, "is '1', expected 0: phase-flipped"),
        (
            GROUPS | DEFOCUS,
            {"rlnOddZernike": ["[]", "[0,x]"]},
            "rlnOddZernike is '.0,x.', expected a",
        ),
    ],
)
def test_optics_groups_refused(tmp_path, particles, optics, message):
    with pytest.raises(InputError, match=message):
        io.load(files(tmp_path, particles, OPTICS | optics))


def test_aberrations_and_helices_are_warned_of(tmp_path, caplog):
    optics = {"rlnOddZernike": ["[0,0,0]", "[0,0.2,-.1]"], "rlnEvenZernike": ["[0,0]", "[]"]}
    kinds = {"rlnHelicalTubeID": [3] * 4, "rlnTomoName": ["TS_01"] * 4}
    scaled = {"rlnCtfScalefactor": [1.0, 0.9, 1.0, 0.8]}
    particles = io.load(files(tmp_path, GROUPS | DEFOCUS | kinds | scaled, OPTICS | optics))
    assert len(particles) == 4
    said = [record.getMessage().partition("p.star: ")[2] for record in caplog.records]
    assert said == [
        "rlnHelicalTubeID is 3: helical segments; neighbours in a tube and the symmetry are not "
        "used",
        "rlnTomoName is TS_01: from tomograms; the tilts of one molecule count as particles of "
        "their own",
        "rlnCtfScalefactor other than 1 is not modelled, and it is 0.9 in 2 rows",
        "rlnOddZernike is [0,0.2,-.1]; aberrations are not modelled",
    ]


def test_identity_magnification_is_fine(tmp_path):
    matrix = {f"rlnMagMat{k}": [float(k in ("00", "11"))] * 2 for k in ("00", "01", "10", "11")}
    flags = {"rlnCtfDataAreCtfPremultiplied": [0, 0], "rlnImageDimensionality": [2, 2]}
    assert len(io.load(files(tmp_path, GROUPS, OPTICS | matrix | flags))) == 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rlnImageName": None, "rlnX": [1]}, r"no column rlnImageName \(data_particles\)"),
        (EULER | {"rlnAngleTilt": None}, "rlnAngleRot, rlnAnglePsi but no column rlnAngleTilt"),
        ({"rlnOriginXAngst": [0.0] * 4}, "no column rlnOriginYAngst"),
        (EULER | {"rlnAnglePsi": [0, 1, "x", 3]}, "row 3 .*rlnAnglePsi is 'x', expected a finite"),
        (EULER | {"rlnAnglePsi": [0, 1, 2, np.nan]}, "row 4 .*rlnAnglePsi is 'nan'"),
        ({"rlnTemperature": [300.0, 0, 1, 1]}, "row 2 .*rlnTemperature is '0.0', expected kelvin"),
        ({"pyrocryoTruth2": [1.0] * 4}, "no column pyrocryoTruth1"),
        ({"rlnMagnification": [0] * 4, "rlnDetectorPixelSize": [5] * 4}, "pixel size of nan"),
        ({"rlnImageName": []}, "holds no particles"),
        ({"pyrocryoFrame": [0, 1, 0, 1]}, "no column pyrocryoMolecule"),
    ],
)
def test_columns_refused(tmp_path, columns, message):
    with pytest.raises(InputError, match=message) as caught:
        io.load(files(tmp_path, columns))
    assert "p.star" in str(caught.value)


def test_frames_in_any_order(tmp_path):
    columns = {"pyrocryoMolecule": [9, 2, 2, 9], "pyrocryoFrame": [1, 0, 1, 0]}
    columns |= {"pyrocryoTime": [0.5, 0.0, 0.5, 0.0], "rlnTemperature": [77.0, 300.0, 300.0, 77.0]}
    particles = io.load(files(tmp_path, EULER | columns))
    assert particles.images[np.arange(2)][:, :, 0, 0].tolist() == [[3, 0], [1, 2]]
    assert particles.temperature.tolist() == [77, 300]
    assert particles.time.tolist() == [[0, 0.5], [0, 0.5]]
    assert particles.rotation.shape == (2, 2, 3, 3)


@pytest.mark.parametrize(
    ("molecule", "frame", "message"),
    [
        ([1, 1, 1, 2], [0, 1, 2, 0], "molecule 1 has 3 frames, but molecule 2 has 1"),
        ([1, 1, 2, 2], [0, 1, 1, 1], "molecule 2 has frames 1, 1, expected 0 to 1"),
        ([1, 1, 2, 2], [1, 2, 1, 2], "molecule 1 has frames 1, 2, expected 0 to 1"),
        ([1, 2, 3, 4], [0, 0, 0, 0], "one frame of each molecule"),
    ],
)
def test_frames_refused(tmp_path, molecule, frame, message):
    path = files(tmp_path, {"pyrocryoMolecule": molecule, "pyrocryoFrame": frame})
    with pytest.raises(InputError, match=message):
        io.load(path)


def test_frames_at_one_temperature(tmp_path):
    columns = {"pyrocryoMolecule": [1, 1, 2, 2], "pyrocryoFrame": [0, 1, 0, 1]}
    path = files(tmp_path, columns | {"pyrocryoTemperature": [1.0, 2.0, 1.0, 1.0]})
    with pytest.raises(InputError, match="frames of one molecule differ in temperature"):
        io.load(path)


def test_pixel_size_comes_from_somewhere(tmp_path, caplog):
    path = files(tmp_path)
    assert io.load(path, pixel_size=1.5).pixel_size == 1.5
    assert caplog.records == []
    assert io.load(path).pixel_size == 3.0
    assert "3 Å/px by the stack's header" in caplog.text
    write_stack(tmp_path / "s.mrcs", np.zeros((4, 6, 6)), 0.0)
    assert io.load(path).pixel_size == 1.0
    assert "taken to be 1 Å/px" in caplog.text
    caplog.clear()
    path = files(tmp_path, GROUPS, OPTICS)
    assert io.load(path, pixel_size=1.5).pixel_size == 2.0
    assert "says 2 Å/px; pixel_size=1.5 is not used" in caplog.text


def test_incomplete_ctf_is_said(tmp_path, caplog):
    assert "ctf" not in io.load(files(tmp_path, DEFOCUS), pixel_size=1.0).fields
    assert "CTF not read, no column rlnVoltage" in caplog.text
    caplog.clear()
    half = {name: value for name, value in DEFOCUS.items() if name != "rlnDefocusU"}
    assert "ctf" not in io.load(files(tmp_path, half), pixel_size=1.0).fields
    assert "CTF not read, no column rlnDefocusU, rlnVoltage" in caplog.text


@pytest.mark.parametrize("name", ["p.star", "s.mrcs"])
def test_poses_of_cryodrgn(tmp_path, name):
    files(tmp_path, EULER)
    rotation, trans = in_space(4).rotation, np.array([[0.1, 0], [0, 0], [0, -0.2], [0, 0]])
    (tmp_path / "a.pkl").write_bytes(pickle.dumps((rotation, trans)))
    particles = io.load(tmp_path / name, poses=tmp_path / "a.pkl", pixel_size=2.0)
    np.testing.assert_array_equal(particles.rotation, rotation)
    np.testing.assert_allclose(particles.shift, -trans * 12.0)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(rotation[:3]))
    with pytest.raises(InputError, match=r"a\.pkl: holds 3 poses for 4 images"):
        io.load(tmp_path / name, poses=tmp_path / "a.pkl", pixel_size=2.0)


def test_bare_stack(tmp_path):
    files(tmp_path)
    particles = io.load(tmp_path / "s.mrcs", pixel_size=2.0)
    assert (len(particles), particles.box, particles.pixel_size) == (4, 6, 2.0)
    assert particles.fields == {}


def test_other_suffixes():
    with pytest.raises(InputError, match=r"passthrough: goes with a \.cs file"):
        io.load("particles.star", passthrough="passthrough.cs")
    with pytest.raises(InputError, match=r"expected a file that ends in \.star"):
        io.load("particles.csv")


def test_import_without_torch():
    code = "import sys, pyrocryo.io; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@real_data
def test_toy_poses_project_the_toy_map(caplog):
    import torch

    with caplog.at_level(logging.ERROR):
        particles = io.load(
            DATA / "toy" / "toy_projections.star", poses=DATA / "toy" / "toy_rot_zerotrans.pkl"
        )
    assert (len(particles), particles.box) == (1000, 30)
    volume, voxel_size = io.read_map(DATA / "toy" / "toymodel_small_nocenter.mrc")
    assert (volume.sum(), voxel_size) == (180, 1)
    index = np.arange(0, 1000, 50)
    batch = particles.batch(index)
    maps = torch.as_tensor(volume).expand(len(index), -1, -1, -1)
    projected = resample_projection(maps, batch.rotation, batch.shift, box=30)
    pairs = zip(projected.flatten(1), batch.images.flatten(1), strict=True)
    assert min(torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs) > 0.99


@real_data
def test_relion_3_1_blocks_in_any_order():
    one, two = (io.load(DATA / "relion31" / f"relion31{v}.star") for v in ("", ".v2"))
    assert (len(one), one.box, one.pixel_size) == (5, 256, 2.806)
    assert sorted(one.fields) == ["ctf", "rotation", "shift"]
    for name, value in one.fields.items():
        np.testing.assert_array_equal(value, two.fields[name])
    np.testing.assert_array_equal(one.images[np.arange(5)], two.images[np.arange(5)])
    np.testing.assert_allclose(one.shift[0], [-0.019324, 0.64686])
    assert one.statistics().sd == pytest.approx(1.013, abs=1e-3)


@real_data
def test_empiar_10076():
    particles = io.load(DATA / "empiar10076" / "empiar_10076_7.star")
    assert (len(particles), particles.box) == (7, 320)
    assert particles.pixel_size == pytest.approx(1e4 * 5 / 38168)
    assert sorted(particles.fields) == ["ctf"]
    np.testing.assert_allclose(particles.ctf[0], [15301.1, 14916.4, 5.28, 300, 2.7, 0.07, 0])


def test_a_list_of_stacks(tmp_path, rng):
    images = rng.standard_normal((7, 8, 8)).astype(np.float32)
    (tmp_path / "sub").mkdir()
    write_stack(tmp_path / "a.mrcs", images[:4], 2.0)
    write_stack(tmp_path / "sub" / "b.mrcs", images[4:], 2.0)
    path = tmp_path / "stacks.txt"
    path.write_text("a.mrcs\n\nsub/b.mrcs\n")
    read = io.load(path)
    np.testing.assert_array_equal(read.raw(np.arange(7)), images)
    assert read.pixel_size == 2.0
    path = path.rename(tmp_path / "sub" / "stacks.txt")
    path.write_text("b.mrcs\nc.mrcs\n")
    with pytest.raises(InputError, match=r"line 2 of .*txt: image stack c\.mrcs is not in"):
        io.load(path)
    path.write_text("b.mrcs\n")
    assert len(io.load(path, folder=tmp_path / "sub")) == 3
    for content, said in ((b"\n", "names no stacks"), (b"\xff\xfe", "names a stack a line")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            io.load(path)
