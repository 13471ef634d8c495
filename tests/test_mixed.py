"""Optics groups of several pixel sizes and boxes, brought to one against exact projections."""

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.io import star
from pyrocryo.io.mixed import common_scaling
from pyrocryo.io.mrc import write_stack

MOLECULE = pc.molecules.Arms3D(2, radius=30.0)
SIZES = 2.0, 2.5  # Å per pixel


def _seen(rotation, shift, z, pixel, box):
    told = (torch.as_tensor(a) for a in (z, rotation, shift))
    return MOLECULE.render(*told, box=box, pixel_size=pixel).numpy()


def _written(folder, boxes, n=6, noise=None, sizes=SIZES, more=None):
    """A star file of two groups, in turn, and what it holds."""
    rng = np.random.default_rng(0)
    rotation = pc.rotations.random_in_space((n,), rng)
    shift, z = rng.uniform(-4, 4, (n, 2)), rng.standard_normal((n, 2))
    group = np.arange(n) % 2
    for g in range(2):
        mine = group == g
        images = _seen(rotation[mine], shift[mine], z[mine], sizes[g], boxes[g])
        if noise is not None:
            images = noise.standard_normal(images.shape)
        write_stack(folder / f"{g}.mrcs", images.astype(np.float32), sizes[g])
    rot, tilt, psi = pc.rotations.euler_from_matrix(rotation).T
    pixels = -shift / np.array(sizes)[group][:, None]  # origins, in pixels of each group
    table = {
        "rlnImageName": [f"{i // 2 + 1}@{i % 2}.mrcs" for i in range(n)],
        "rlnOpticsGroup": group + 1,
        "rlnAngleRot": rot,
        "rlnAngleTilt": tilt,
        "rlnAnglePsi": psi,
        "rlnOriginX": pixels[:, 0],
        "rlnOriginY": pixels[:, 1],
    }
    optics = {
        "rlnOpticsGroup": [1, 2],
        "rlnOpticsGroupName": ["fine", "coarse"],
        "rlnImagePixelSize": list(sizes),
        "rlnImageSize": list(boxes),
    }
    path = folder / "p.star"
    star.write(path, {"optics": optics, "particles": table | (more or {})})
    return path, rotation, shift, z, group


@pytest.mark.parametrize("boxes", [(48, 40), (47, 40), (52, 39), (60, 41), (40, 40)])
def test_groups_become_what_a_coarser_camera_sees(tmp_path, boxes, caplog):
    path, rotation, shift, z, group = _written(tmp_path, boxes)
    particles = pc.io.load(path)
    assert "fine (2 Å/px, box" in caplog.text
    assert "brought to 2.5 Å/px" in caplog.text
    assert particles.pixel_size == 2.5
    box = particles.box
    assert box % 2 == 0
    assert box * 2.5 <= min(2 * boxes[0], 2.5 * boxes[1]) < (box + 2) * 2.5
    np.testing.assert_allclose(particles.shift, shift, atol=1e-6)
    np.testing.assert_allclose(particles.rotation, rotation, atol=1e-6)
    brighter = np.where(group == 0, 2.5 / 2, 1.0)  # white noise keeps its variance instead
    expected = _seen(rotation, shift, z, 2.5, box) * brighter[:, None, None]
    found = particles.raw(np.arange(6))
    assert np.abs(found - expected).max() < 0.01 * expected.max()
    one = particles.raw(np.array([4, 1]))
    np.testing.assert_array_equal(one, found[[4, 1]])
    smaller = particles.downsampled(box // 2 // 2 * 2)
    assert smaller.raw(np.array([0])).shape[-1] == smaller.box


def test_noise_stays_white_and_of_unit_variance(tmp_path):
    path, *_ = _written(tmp_path, (48, 40), n=200, noise=np.random.default_rng(1))
    particles = pc.io.load(path)
    for g in range(2):
        images = particles.raw(np.arange(g, 200, 2))
        assert images.std() == pytest.approx(1, abs=0.01)
        beside = (images[..., 1:] * images[..., :-1]).mean()
        assert abs(beside) < 0.01


def test_frames_and_training(tmp_path):
    molecules = {"pyrocryoMolecule": np.repeat(np.arange(3), 2), "pyrocryoFrame": [0, 1] * 3}
    path, *_ = _written(tmp_path, (48, 40), more=molecules)
    particles = pc.io.load(path)
    assert particles.frames == 2
    assert particles.batch(np.array([2, 0])).images.shape == (2, 2, 38, 38)
    alone = pc.io.load(_written(tmp_path, (48, 40))[0])
    np.testing.assert_array_equal(
        particles.raw(np.array([1])).reshape(2, 38, 38), alone.raw(np.array([2, 3]))
    )


def _as_cryosparc(path, particles, group, boxes):
    """The particles of `_written` as cryoSPARC would list them, dark."""
    n = len(group)
    pixel = np.array(SIZES, dtype=np.float32)[group]
    columns = {
        "uid": np.arange(n, dtype=np.uint64),
        "blob/path": np.array([f"{g}.mrcs".encode() for g in group]),
        "blob/idx": np.arange(n, dtype=np.uint32) // 2,
        "blob/shape": np.array(boxes, dtype=np.uint32)[group][:, None].repeat(2, axis=1),
        "blob/psize_A": pixel,
        "blob/sign": np.full(n, -1, np.float32),
        "alignments3D/pose": -pc.rotations.vector_from_matrix(particles.rotation),
        "alignments3D/shift": -particles.shift / pixel[:, None],
    }
    table = np.empty(n, [(k, v.dtype, v.shape[1:]) for k, v in columns.items()])
    for name, value in columns.items():
        table[name] = value
    with path.open("wb") as file:
        np.save(file, table)


def test_cryosparc_of_two_pixel_sizes_is_the_star_of_the_same(tmp_path, caplog):
    boxes = (48, 40)
    path, *_, group = _written(tmp_path, boxes)
    star_ = pc.io.load(path)
    _as_cryosparc(tmp_path / "p.cs", star_, group, boxes)
    caplog.clear()
    found = pc.io.load(tmp_path / "p.cs")
    assert "1 (2 Å/px, box 48), 2 (2.5 Å/px, box 40); brought to 2.5" in caplog.text
    assert (found.pixel_size, found.box) == (star_.pixel_size, star_.box)
    np.testing.assert_allclose(found.shift, star_.shift, atol=1e-5)
    np.testing.assert_allclose(found.rotation, star_.rotation, atol=1e-6)
    some = np.array([3, 0, 4])
    np.testing.assert_array_equal(found.raw(some), -star_.raw(some))
    poses = tmp_path / "poses.pkl"
    poses.write_bytes(b"")
    with pytest.raises(pc.InputError, match="shares of one box"):
        pc.io.load(tmp_path / "p.cs", poses=poses)
    _as_cryosparc(tmp_path / "wrong.cs", star_, group, (48, 41))
    with pytest.raises(pc.InputError, match=r"row 2 .*\[41, 41\], expected 40 x 40"):
        pc.io.load(tmp_path / "wrong.cs")


def test_one_box_of_two_at_one_pixel_size(tmp_path):
    path, rotation, shift, z, _ = _written(tmp_path, (40, 47), sizes=(2.5, 2.5))
    particles = pc.io.load(path)
    expected = _seen(rotation, shift, z, 2.5, 40)
    np.testing.assert_allclose(particles.raw(np.arange(6)), expected, atol=1e-5)


def test_what_cannot_be_brought_to_one_names_all_groups(tmp_path):
    with pytest.raises(
        pc.InputError, match=r"to 2.4 Å/px: a \(2 Å/px, box 4\), b \(2.4 Å/px, box"
    ):
        common_scaling([2.0, 2.4], [4, 4], ["a", "b"], tmp_path)
    pixel, (fine, coarse) = common_scaling([1.0, 1.0765], [256, 240], ["a", "b"], tmp_path)
    assert pixel == 1.0765
    assert coarse == (236, 236, 236)
    assert fine.padded / fine.cropped == pytest.approx(1.0765, rel=1e-4)
    path, *_ = _written(tmp_path, (48, 40))
    poses = tmp_path / "poses.pkl"
    poses.write_bytes(b"")
    with pytest.raises(pc.InputError, match="shares of one box"):
        pc.io.load(path, poses=poses)
