"""Maps at cluster centres, and maps with populations for the Flatiron challenge."""

import json

import gemmi
import mrcfile
import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.io.clusters import clusters, write_clusters
from pyrocryo.io.flatiron import MAPS, write_flatiron

BLOBS = np.array([[-3.0, 0.0], [0.0, 2.0], [3.0, 0.0]])


@pytest.fixture
def latents(rng):
    which = np.repeat([0, 1, 2], [50, 30, 20])
    return BLOBS[which] + 0.3 * rng.standard_normal((100, 2)), which


def test_clusters_are_found_and_centred_on_particles(latents):
    z, which = latents
    found = clusters(z, 3)
    np.testing.assert_array_equal(found.label, which)  # in the order of the first latent
    np.testing.assert_array_equal(found.count, [50, 30, 20])
    np.testing.assert_array_equal(found.centre, z[found.nearest])
    np.testing.assert_array_equal(found.label[found.nearest], [0, 1, 2])
    for n in range(3):
        away = np.linalg.norm(z[which == n] - z[which == n].mean(axis=0), axis=1)
        assert found.nearest[n] == np.flatnonzero(which == n)[np.argmin(away)]


def test_the_order_of_particles_does_not_matter(latents, rng):
    z, _ = latents
    order = rng.permutation(100)
    np.testing.assert_array_equal(clusters(z[order], 3).label, clusters(z, 3).label[order])


@pytest.mark.parametrize("count", [0, 101])
def test_as_many_clusters_as_particles_at_most(count, latents):
    with pytest.raises(pc.InputError, match="clusters: expected 1 to 100"):
        clusters(latents[0], count)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of the arms' images, and the star file they are in."""
    folder = tmp_path_factory.mktemp("run")
    stack = folder / "p.star"
    assert main(["simulate", "poses", str(stack), "--n", "60", "--box", "16"]) == 0
    line = ["fit", "models/vae.py", "--data", str(stack), "--out", str(folder / "run")]
    assert main([*line, "--steps", "5", "--draws", "10"]) == 0
    return folder / "run", stack


@pytest.fixture(scope="module")
def solid():
    """A fit of a map in space, with known voxel size, and its particles."""
    particles = pc.simulate.poses(pc.molecules.AdenylateKinase(), n=40, box=12, pixel_size=8.0)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(3), 12)
    return pc.fit(pair, particles, steps=3, progress=False), particles


def test_maps_at_the_centres(solid, tmp_path):
    fit, particles = solid
    found, maps = write_clusters(tmp_path, fit, particles, 3)
    told = json.loads((tmp_path / "clusters.json").read_text())
    assert told["maps"] == ["cluster_01.mrc", "cluster_02.mrc", "cluster_03.mrc"]
    assert sum(told["count"]) == len(particles)
    assert sum(told["share"]) == pytest.approx(1)
    for n, path in enumerate(maps):
        with mrcfile.open(path) as mrc:
            expected = fit.pairs[0].density(torch.as_tensor(found.centre[n])).numpy()
            np.testing.assert_array_equal(mrc.data, expected)
            assert mrc.voxel_size.x == pytest.approx(8.0)
            assert tuple(mrc.header.origin.item()) == (0, 0, 0)
            assert mrc.is_volume()
        rows = np.loadtxt(path.with_suffix(".txt"), dtype=int, ndmin=1)
        np.testing.assert_array_equal(rows, particles.index[found.label == n])
        assert told["nearest_row"][n] in rows
    script = (tmp_path / "clusters.cxc").read_text().splitlines()
    assert [line for line in script if line.startswith("open ")] == [
        f"open {path.name}" for path in maps
    ]
    assert any(line.startswith("volume #1-3 ") for line in script)


def test_labels_in_the_star_file(run, tmp_path):
    folder, stack = run
    out, maps, some = (tmp_path / name for name in ("with.star", "maps", "some.star"))
    line = ["export", str(folder), "--clusters", "3"]
    assert main([*line, "--out", str(out)]) == 0
    assert main([*line, "--out", str(maps)]) == 0
    assert main([*line, "--out", str(some), "--where", "cluster > 1.5"]) == 0
    block = gemmi.cif.read(str(out)).find_block("particles")
    label = np.array([int(v) for v in block.find_loop("_pyrocryoCluster")])
    told = json.loads((maps / "clusters.json").read_text())
    np.testing.assert_array_equal(np.bincount(label, minlength=4)[1:], told["count"])
    np.testing.assert_array_equal(
        np.flatnonzero(label == 2), np.loadtxt(maps / "cluster_02.txt", dtype=int, ndmin=1)
    )
    kept = gemmi.cif.read(str(some)).find_block("particles").find_loop("_pyrocryoCluster")
    assert [int(v) for v in kept] == label[label > 1].tolist()
    assert not (maps / "clusters.cxc").exists()  # flat


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "out: name a file or a folder"),
        (["--out", "maps"], "or a folder for --clusters"),
        (["--out", "maps", "--clusters", "0"], "clusters: expected at least 1"),
        (["--out", "maps", "--clusters", "61"], "clusters: expected 1 to 60"),
        (["--out", "maps", "--clusters", "3", "--where", "z1 > 0"], "are for a .star or .cs"),
        (["--flatiron", "x.zip"], "flatiron: expected a .pt file or a folder"),
        (["--flatiron", "x.pt", "--clusters", "3"], "the volume (Grid) is flat"),
    ],
)
def test_export_says_what_is_wrong(words, message, run, tmp_path, monkeypatch, capsys):
    root = str(run[0].resolve())
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["export", root, *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not any(tmp_path.iterdir())


def test_a_run_of_a_map_in_space_submits(tmp_path, capsys):
    particles = pc.simulate.poses(pc.molecules.AdenylateKinase(), n=30, box=12, pixel_size=8.0)
    stack, folder, path = (tmp_path / name for name in ("p.star", "run", "s.pt"))
    pc.io.save(particles, stack)
    line = ["fit", "models/particles.py", "--data", str(stack), "--out", str(folder)]
    assert main([*line, "--steps", "3", "--draws", "5"]) == 0
    line = ["export", str(folder), "--clusters", "4", "--flatiron", str(path)]
    assert main(line) == 0
    held = torch.load(path, weights_only=True)
    fit, fitted = pc.io.load_fit(folder)
    means = pc.diagnose.posterior_means(fit.pairs[0], fitted)
    found = clusters(means, 4)
    expected = fit.pairs[0].density(torch.as_tensor(found.centre))
    np.testing.assert_allclose(held["volumes"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(held["populations"], found.count / 30)
    assert held["id"] == "run"
    capsys.readouterr()
    assert main(line) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.fixture
def submission(rng):
    return rng.standard_normal((MAPS, 6, 6, 6)), rng.integers(1, 9, MAPS)


def test_a_submission_as_their_pipeline_reads_it(submission, tmp_path):
    volumes, counts = submission
    path = tmp_path / "submission_0.pt"
    assert write_flatiron(path, volumes, counts, voxel_size=2.0, name="ours") == [path]
    held = torch.load(path, weights_only=True)
    assert set(held) == {"volumes", "populations", "id"}
    assert held["volumes"].shape == (80, 6, 6, 6)
    assert held["volumes"].dtype == torch.float32
    assert held["volumes"].is_contiguous()
    assert held["populations"].shape == (80,)
    assert held["populations"].dtype == torch.float64
    assert abs(held["populations"].sum() - 1) < 1e-12
    assert held["id"] == "ours"
    np.testing.assert_allclose(held["populations"], counts / counts.sum())
    np.testing.assert_array_equal(held["volumes"], volumes.astype(np.float32))
    # what their map-to-map step does with it first
    assert held["volumes"].reshape(len(held["volumes"]), -1).shape == (80, 216)


def test_a_folder_as_participants_send_it(submission, tmp_path):
    volumes, counts = submission
    folder = tmp_path / "ours"
    write_flatiron(folder, volumes, counts, voxel_size=2.146, name="ours")
    maps = sorted(folder.glob("*.mrc"))
    assert [path.name for path in maps] == [f"{n:02d}.mrc" for n in range(1, 81)]
    with mrcfile.open(maps[7]) as mrc:
        np.testing.assert_array_equal(mrc.data, volumes[7].astype(np.float32))
        assert mrc.voxel_size.x == pytest.approx(2.146)
    shares = np.loadtxt(folder / "populations.txt")
    np.testing.assert_allclose(shares, counts / counts.sum(), atol=1e-9)
    assert shares.sum() == pytest.approx(1, abs=1e-8)
    entry = json.loads((folder / "submission_config.json").read_text())["0"]
    # what their validate_submission_config asks of an entry, and their pipeline reads besides
    asked = {"path", "name", "box_size", "pixel_size", "align", "populations_file", "flip"}
    assert set(entry) == asked | {"submission_version", "flavor_name"}
    assert entry["box_size"] == 6
    assert entry["pixel_size"] == 2.146


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volumes": np.zeros((3, 4, 4, 5))}, "volumes: expected"),
        ({"volumes": np.full((3, 4, 4, 4), np.nan)}, "volumes: expected finite"),
        ({"populations": np.ones(4)}, "populations: expected"),
        ({"populations": np.array([1.0, -1.0, 1.0])}, "populations: expected numbers"),
        ({"populations": np.zeros(3)}, "not all 0"),
        ({"voxel_size": 0.0}, "voxel_size: expected"),
        ({"path": "x.tar"}, "ends in .pt, or a folder"),
    ],
)
def test_a_submission_that_is_none(change, message, tmp_path):
    given = {
        "path": "x.pt", "volumes": np.ones((3, 4, 4, 4)), "populations": np.ones(3),
        "voxel_size": 1.0,
    } | change  # fmt: skip
    given["path"] = tmp_path / given["path"]
    with pytest.raises(pc.InputError, match=message):
        write_flatiron(**given)
    assert not any(tmp_path.iterdir())
