import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.imaging import resample_projection, slice_projection, splat, splat_map
from pyrocryo.rotations import random_in_space


def _scene(box, n=4, sd=1.5, atoms=30):
    """Gaussians in random poses: their map, poses, and exact images."""
    rng = np.random.default_rng(0)
    centres = torch.as_tensor(rng.uniform(-1, 1, (atoms, 3)) * box * 0.2)
    width = torch.full((atoms,), sd, dtype=torch.double)
    weight = torch.as_tensor(rng.uniform(0.5, 1.5, atoms))
    rotation = torch.as_tensor(random_in_space((n,), rng))
    shift = torch.as_tensor(rng.uniform(-2, 2, (n, 2)))
    seen = centres @ rotation.transpose(-1, -2)
    seen[..., :2] += shift[:, None]
    maps = splat_map(centres, width, weight, side=box, voxel_size=1.0).expand(n, -1, -1, -1)
    return maps, rotation, shift, splat(seen, width, weight, box=box, pixel_size=1.0)


def _error(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("box", [28, 29])
def test_slices_are_projections(box):
    maps, rotation, shift, exact = _scene(box)
    errors = [
        _error(slice_projection(maps, rotation, shift, box=box, oversampling=n), exact)
        for n in (1, 2, 3)
    ]
    assert errors[1] < 0.015
    assert errors[2] < 0.005
    assert errors[0] > 3 * errors[1]
    summed = resample_projection(maps, rotation, shift, box=box)
    assert errors[1] < _error(summed, exact) < 0.05
    narrow, *pose, exact = _scene(box, sd=1.0)
    assert _error(slice_projection(narrow, *pose, box=box), exact) < 0.02
    assert _error(resample_projection(narrow, *pose, box=box), exact) > 0.04


@pytest.mark.parametrize("box", [16, 17])
def test_straight_through_and_quarter_turns(box):
    """Slices through lattice points are the worst case: nothing is averaged by interpolation."""
    maps, *_ = _scene(box, n=1, sd=1.2)
    still = maps.new_zeros(1, 2)
    straight = torch.eye(3).double()[None]
    cut = slice_projection(maps, straight, still, box=box)
    finer = slice_projection(maps, straight, still, box=box, oversampling=4)
    assert _error(cut, maps.sum(1)) < 0.05
    assert _error(finer, maps.sum(1)) < 0.3 * _error(cut, maps.sum(1))
    quarter = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]]).double()
    turned = slice_projection(maps, quarter, still, box=box)
    if box % 2 == 0:  # the centre is pixel box // 2: the first row and column have no partner
        turned, cut = turned[:, 1:, 1:], cut[:, 1:, 1:]
    torch.testing.assert_close(turned, torch.rot90(cut, -1, (-2, -1)))


@pytest.mark.parametrize(("side", "box"), [(24, 36), (36, 24), (25, 31)])
def test_voxels_need_not_be_pixels(side, box):
    _, rotation, shift, exact = _scene(box, sd=3.0)
    rng = np.random.default_rng(0)
    centres = torch.as_tensor(rng.uniform(-1, 1, (30, 3)) * box * 0.2)
    weight = torch.as_tensor(rng.uniform(0.5, 1.5, 30))
    width = torch.full((30,), 3.0, dtype=torch.double)
    maps = splat_map(centres, width, weight, side=side, voxel_size=box / side)
    maps = maps.expand(4, -1, -1, -1)
    assert _error(slice_projection(maps, rotation, shift, box=box), exact) < 0.03


def test_gradients():
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 4, 4, dtype=torch.double, requires_grad=True)
    rotation = torch.as_tensor(random_in_space((2,), np.random.default_rng(0))).requires_grad_()
    shift = torch.randn(2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *given: slice_projection(*given, box=5), (maps, rotation, shift)
    )


def test_as_torch_fourier_slice():
    theirs = pytest.importorskip("torch_fourier_slice", reason="torch-fourier-slice >= 0.6")
    maps, rotation, shift, _ = _scene(32)
    ours = slice_projection(maps, rotation, 0 * shift, box=32)
    other = theirs.project_3d_to_2d(maps[0].float(), rotation.transpose(-1, -2).float())
    assert _error(ours, other) < 5e-3


def test_a_grid_in_fourier_space_learns():
    molecule = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(molecule, 120, box=16, pixel_size=6.0)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), pc.volumes.Grid(3, projector="fourier"), particles.box
    )
    options = {"steps": 12, "batch_size": 16, "lr": 4e-3, "progress": False, "seeds": 2}
    python = pc.fit(pair, particles, capture=False, **options).history["loss"]
    traced = pc.fit(pair, particles, capture=True, together=2, **options).history["loss"]
    np.testing.assert_allclose(traced, python, rtol=5e-3)
    assert (python[:, -3:].mean(1) < python[:, :3].mean(1)).all()


def test_flat_grids_have_no_slices():
    with pytest.raises(pc.InputError, match="'fourier' needs dim=3"):
        pc.volumes.Grid(2, projector="fourier")
    with pytest.raises(pc.InputError, match="expected 'real' or 'fourier', got 'x'"):
        pc.volumes.Grid(3, projector="x")
