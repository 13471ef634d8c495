import numpy as np
import pytest
import torch
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

import pyrocryo as pc
from pyrocryo.imaging import band_limited, resample_projection, slice_projection, splat, splat_map
from pyrocryo.imaging.slices import half_plane
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


@pytest.mark.parametrize(("side", "box"), [(9, 9), (8, 8), (8, 12), (12, 7)])
def test_what_a_slice_is(side, box):
    """Linear in the map; nothing beyond the Nyquist frequency; mirrored when seen from behind."""
    torch.manual_seed(0)
    maps = torch.randn(2, side, side, side, dtype=torch.double)
    rotation = torch.as_tensor(random_in_space((2,), np.random.default_rng(0)))
    still = torch.zeros(2, 2, dtype=torch.double)

    def seen(maps, rotation=rotation):
        return slice_projection(maps, rotation, still, box=box, oversampling=1)

    images = seen(maps)
    torch.testing.assert_close(seen(3 * maps - maps.flip(0)), 3 * images - seen(maps.flip(0)))
    k = half_plane(box, dtype=torch.double).norm(dim=-1)
    spectrum = torch.fft.rfft2(images).abs()
    beyond = k > 0.5 * min(1, side / box) + 1e-9
    assert spectrum[:, beyond].max() < 1e-12 * spectrum.max()
    # F(-k) is the conjugate of F(k): half of what is looked up, and here all of it, comes from it
    behind = seen(maps, torch.diag(torch.tensor([-1.0, 1, -1]).double()) @ rotation)
    if box % 2:  # else the highest frequency has no partner
        torch.testing.assert_close(behind, images.flip(-1))


@pytest.mark.parametrize(("side", "box"), [(9, 9), (12, 12), (12, 8)])
def test_what_no_slice_sees(side, box):
    """Nothing within the Nyquist sphere is left out, and all that is beyond."""
    torch.manual_seed(0)
    maps = torch.randn(2, side, side, side, dtype=torch.double)
    kept = band_limited(maps, box=box)
    torch.testing.assert_close(band_limited(kept, box=box), kept)
    k = torch.fft.fftfreq(side, dtype=torch.double).square()
    inside = (k[:, None, None] + k[:, None] + k).sqrt() <= 0.5 * min(1, box / side)
    before, after = (torch.fft.fftn(m, dim=(-3, -2, -1)) for m in (maps, kept))
    torch.testing.assert_close(after, before * inside)


def test_batched_traced_and_mapped():
    """Each particle has its map; a traced or vmapped call is the same as one after another."""
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 7, 7, 7)
    rotation = torch.as_tensor(random_in_space((2, 3), np.random.default_rng(0))).float()
    shift = torch.randn(2, 3, 2)

    def seen(*given):
        return slice_projection(*given, box=8)

    together = vmap(seen)(maps, rotation, shift)
    assert together.dtype == torch.float32
    apart = [
        seen(*(given[i, j, None] for given in (maps, rotation, shift)))
        for i in range(2)
        for j in range(3)
    ]
    torch.testing.assert_close(together.flatten(0, 1), torch.cat(apart))
    traced = make_fx(seen)(maps[0], rotation[0], shift[0])
    torch.testing.assert_close(traced(maps[1], rotation[1], shift[1]), together[1])


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


def test_a_rigid_map_is_found():
    """Narrow atoms, known poses, hardly any noise: slices find the map, and sums blur it."""
    box, n = 14, 200
    rng = np.random.default_rng(0)
    centres = torch.as_tensor(rng.uniform(-1, 1, size=(12, 3)) * box * 0.2)
    width, height = torch.full((12,), 1.0).double(), torch.ones(12).double()
    rotation = torch.as_tensor(random_in_space((n,), rng))
    shift = torch.as_tensor(rng.uniform(-1, 1, (n, 2)))
    seen = (centres @ rotation.transpose(-1, -2))[..., :2] + shift.unsqueeze(1)
    images = splat(seen, width, height, box=box, pixel_size=1.0).float().numpy()
    particles = pc.Particles(images, rotation=rotation.numpy(), shift=shift.numpy())
    true = splat_map(centres, width, height, side=box, voxel_size=1.0).numpy()
    within = np.linalg.norm(np.mgrid[:box, :box, :box] - box // 2, axis=0) <= box / 2 - 1
    error = {}
    for projector in ("fourier", "real"):
        volume = pc.volumes.Grid(3, projector=projector, hidden=(4,))
        pair = pc.Pair(pc.priors.IsotropicNormal(1), volume, box, noise=0.3)
        fit = pc.fit(pair, particles, steps=200, batch_size=16, lr=3e-2, progress=False)
        found = fit.pairs[0].density(torch.zeros(1)).numpy() * within
        error[projector] = np.linalg.norm(found - true * within) / np.linalg.norm(true * within)
        assert pc.metrics.fsc(found, true * within)[1:6].min() > 0.98
    assert error["fourier"] < 0.5 * error["real"]


def test_flat_grids_have_no_slices():
    with pytest.raises(pc.InputError, match="'fourier' needs dim=3"):
        pc.volumes.Grid(2, projector="fourier")
    with pytest.raises(pc.InputError, match="expected 'real' or 'fourier', got 'x'"):
        pc.volumes.Grid(3, projector="x")
