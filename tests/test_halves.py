"""Maps from two halves of the particles, and how their latents are brought together."""

import json

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo import halves
from pyrocryo.cli import main
from pyrocryo.draws import moments
from pyrocryo.io import star


def _latents(n=400, dim=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.laplace(size=(n, dim)), 0.05 * rng.standard_normal((n, dim))


@pytest.mark.parametrize("sign", [1, -1])
def test_order_and_sign(sign):
    z, noise = _latents()
    other = (sign * z * [2.0, 0.5] + noise)[:, ::-1] + [3.0, -1.0]
    found = halves.transfer(z, other)
    assert found.kind == "order and sign"
    np.testing.assert_allclose(found.matrix == 0, np.eye(2) == 1)
    np.testing.assert_allclose(found(z), other, atol=0.35)
    np.testing.assert_allclose(found.matrix, sign * np.array([[0, 2.0], [0.5, 0]]), rtol=0.03)


def test_a_rotation_is_found_without_shrinking():
    z, noise = _latents(n=4000)
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    map_of = turn @ np.diag([2.0, 0.5]) @ turn
    other = z @ map_of + 6 * noise  # a regression of z on this would be 10 % too flat
    found = halves.transfer(z, other)
    assert found.kind == "affine"
    noiseless = halves.transfer(z, z @ map_of + 1.0)
    np.testing.assert_allclose(noiseless.matrix, map_of, atol=1e-6)
    np.testing.assert_allclose(noiseless(z), z @ map_of + 1.0, atol=1e-6)
    covariance = np.cov(found(z).T)
    np.testing.assert_allclose(covariance, np.cov(other.T), rtol=1e-6)


def test_nothing_shared_is_said():
    found = halves.transfer(_latents()[0], _latents(seed=1)[0])
    assert found.kind == "none"
    assert np.isfinite(found.matrix).all()
    dead = np.stack([np.zeros(400), _latents()[0][:, 0]], axis=1)
    assert np.isfinite(halves.transfer(_latents()[0], dead).matrix).all()


def test_random_halves_part_no_molecule():
    images = np.zeros((11, 5, 8, 8), dtype=np.float32)
    windows = pc.Particles(images).windows(2)
    half = halves.random_halves(windows.train, seed=3)
    molecule = windows.train.molecule_rows
    assert set(half) == {0, 1}
    assert all(len(set(half[molecule == m])) == 1 for m in set(molecule))
    again = halves.random_halves(windows.train, seed=3)
    np.testing.assert_array_equal(half, again)
    assert (half != halves.random_halves(windows.train, seed=4)).any()


@pytest.fixture(scope="module")
def arm():
    return pc.simulate.poses(pc.molecules.Arms(1), n=1300, box=20, pixel_size=4.8, snr=2.0)


def _pair(**options):
    return pc.Pair(
        prior=pc.priors.IsotropicNormal(1),
        volume=pc.volumes.Grid(2, hidden=(16,)),
        box=20,
        **options,
    )


def test_half_maps_of_what_is_there_agree(arm, tmp_path):
    told = {"steps": 300, "batch_size": 64, "lr": 5e-3, "progress": False}
    found = halves.half_maps(_pair(), arm, along=3, folder=tmp_path, **told)
    assert found.maps.shape == (1, 3, 2, 20, 20)
    assert sum(found.sizes) == len(arm.train)
    assert abs(found.sizes[0] - found.sizes[1]) <= 1
    assert found.transfer.kind == "order and sign"
    truth = arm.test.truth[:, 0]
    signs = [np.sign(np.corrcoef(moments(f, arm.test)[0][:, 0], truth)[0, 1]) for f in found.fits]
    assert np.sign(found.transfer.matrix[0, 0]) == signs[0] * signs[1]
    # rings 1 to 3 (32 Å and more) hold the arm; those near Nyquist noise of the voxels
    assert found.curves[..., 1:4].min() > 0.9
    assert found.curves[..., -2:].mean() < found.curves[..., 1:4].mean() - 0.2
    first = found.fits[0].pairs[0].density(torch.as_tensor(found.points[0]))
    np.testing.assert_allclose(found.maps[0, :, 0], first.numpy())
    # one end of z in a half is that end in the other
    ends = [np.abs(found.maps[0, 0, 0] - found.maps[0, end, 1]).mean() for end in (0, -1)]
    assert ends[0] < 0.5 * ends[1]
    rows = pc.io.write_halves(tmp_path, found)
    saved = json.loads((tmp_path / "halves.json").read_text())
    np.testing.assert_allclose(saved["fsc"], found.curves)
    assert rows["half_fsc143_angstroms_z1"] == [found.resolution[0].mean()]
    stack = pc.io.load(tmp_path / "volumes" / "half2_z1.mrcs").raw(np.arange(3))
    np.testing.assert_allclose(stack, found.maps[0, :, 1])
    assert (tmp_path / "figures" / "halves.png").stat().st_size > 5000
    again = halves.half_maps(_pair(), arm, along=3, folder=tmp_path, **told)  # from checkpoints
    np.testing.assert_array_equal(again.curves, found.curves)


def test_what_cannot_be_compared_is_refused(arm):
    with pytest.raises(pc.InputError, match="halves: poses are unknown"):
        halves.half_maps(_pair(pose=pc.poses.InPlane()), arm, steps=1)
    table = pc.guides.LookupTable(len(arm))
    with pytest.raises(pc.InputError, match="halves: this guide keeps a table"):
        halves.half_maps(_pair(guide=table), arm, steps=1)
    with pytest.raises(pc.InputError, match="halves: expected 1300 of two values"):
        halves.half_maps(_pair(), arm, halves=np.arange(1300) % 3, steps=1)


def test_bins_are_maps_of_their_particles():
    particles = pc.simulate.poses(
        pc.molecules.Arms3D(2), n=900, box=16, pixel_size=6.0, snr=5.0, max_shift=0.0
    )
    z = particles.truth[:, 0]
    low, high = halves.binned(particles, z, bins=2)
    assert low.halves.shape == (2, 16, 16, 16)
    weights = z < np.median(z)
    other = pc.imaging.backproject(particles, weights=weights)
    np.testing.assert_allclose(low.map, other.map, atol=1e-5 * np.abs(other.map).max())
    same = pc.metrics.fsc(*low.halves)[1:5].mean()
    assert same > pc.metrics.fsc(low.halves[0], high.halves[1])[1:5].mean()
    with pytest.raises(pc.InputError, match="bins: expected 1 to 450"):
        halves.binned(particles, z, bins=600)


def test_halves_of_a_file(tmp_path):
    path = tmp_path / "p.star"
    pc.io.save(pc.simulate.poses(pc.molecules.TwoArms(), n=40, box=16), path)
    assert pc.io.read_halves(path) is None
    blocks = star.read(path)
    half = np.random.default_rng(0).integers(1, 3, 40)
    blocks["particles"]["rlnRandomSubset"] = half
    star.write(path, blocks)
    np.testing.assert_array_equal(pc.io.read_halves(path), half == 2)
    blocks["particles"]["rlnRandomSubset"] = np.ones(40, dtype=int)
    star.write(path, blocks)
    with pytest.raises(pc.InputError, match="rlnRandomSubset names 1 halves"):
        pc.io.read_halves(path)
    cs = np.zeros(4, dtype=[("uid", "u8"), ("alignments3D/split", "u4")])
    cs["alignments3D/split"] = [0, 1, 1, 0]
    with open(tmp_path / "p.cs", "wb") as file:
        np.save(file, cs)
    assert pc.io.read_halves(tmp_path / "p.cs").tolist() == [False, True, True, False]


def test_frames_of_a_molecule_in_both_halves(tmp_path):
    path = tmp_path / "p.star"
    pc.io.save(pc.simulate.time_resolved(pc.molecules.TwoArms(), n=20, box=16), path)
    blocks = star.read(path)
    molecule = np.array(blocks["particles"]["pyrocryoMolecule"], dtype=int)
    blocks["particles"]["rlnRandomSubset"] = 1 + molecule % 2
    star.write(path, blocks)
    np.testing.assert_array_equal(pc.io.read_halves(path), np.arange(20) % 2 == 1)
    blocks["particles"]["rlnRandomSubset"] = 1 + np.arange(40) % 2
    star.write(path, blocks)
    with pytest.raises(pc.InputError, match="frames of one molecule in both halves"):
        pc.io.read_halves(path)


def test_fit_writes_halves(tmp_path):
    out = tmp_path / "run"
    short = ["--steps", "3", "--batch-size", "8", "--draws", "2", "--n", "200"]
    assert main(["fit", "models/vae.py", *short, "--halves", "--out", str(out)]) == 0
    table = json.loads((out / "metrics.json").read_text())
    assert table["half_fsc143_angstroms"]["mean"] > 0
    assert (out / "figures" / "halves.png").exists()
    assert json.loads((out / "halves.json").read_text())["particles"] == [90, 90]
