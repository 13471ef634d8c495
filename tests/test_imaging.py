import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group

from pyrocryo.imaging import resample, resample_projection, splat
from pyrocryo.imaging.splat import _factors, pixel_centres
from pyrocryo.rotations import in_plane


@pytest.mark.parametrize("box", [32, 33])
def test_splat_is_the_sum_of_gaussians(box):
    centres = torch.randn(4, 6, 3, dtype=torch.double) * 5
    width, weight = torch.rand(6).double() + 1, torch.rand(6).double()
    images = splat(centres, width, weight, box=box, pixel_size=1.3)
    r = (np.arange(box) - box // 2) * 1.3
    y, x = np.meshgrid(r, r, indexing="ij")
    for image, points in zip(images, centres, strict=True):
        expected = sum(
            w * np.exp(-((x - p[0]) ** 2 + (y - p[1]) ** 2) / (2 * s**2))
            for p, s, w in zip(points.numpy(), width.numpy(), weight.numpy(), strict=True)
        )
        np.testing.assert_allclose(image, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_tails_are_level(dtype):
    """Processors take many times as long for products that are denormal numbers."""
    centres = torch.tensor([[[0.0, -30.0]]], dtype=dtype)
    factors = _factors(centres, torch.ones(1, dtype=dtype), 64, 1.0)
    assert float(factors.min()) ** 2 > torch.finfo(dtype).tiny
    assert float(factors.min()) < torch.finfo(dtype).eps ** 2


def test_splat_integrates_to_its_weight():
    image = splat(
        torch.zeros(1, 2), torch.tensor([4.0]), torch.tensor([3.0]), box=65, pixel_size=1
    )
    assert float(image.sum()) == pytest.approx(3 * 2 * np.pi * 16, rel=1e-5)


def _flat(box, pixel_size, rotation, shift):
    points = torch.tensor([[10.0, 2.0, 0], [-7.0, 9.0, 0], [3.0, -12.0, 0]]).double()
    seen = points @ rotation.transpose(-1, -2)
    seen[..., :2] += shift[:, None]
    three = torch.full((3,), 6.0).double()
    return splat(seen, three, torch.ones(3).double(), box=box, pixel_size=pixel_size)


@pytest.mark.parametrize("box", [48, 49])
def test_resample_turns_and_moves_as_the_molecule_does(box):
    rotation = torch.as_tensor(in_plane(np.array([0.0, 0.5, np.pi / 2, np.pi, -2.0])))
    shift = torch.tensor([[0.0, 0], [3.0, -5.0], [0, 4.0], [-6.0, 0], [2.0, 2.0]]).double()
    upright = _flat(box, 1.5, torch.eye(3).double().expand(5, 3, 3), torch.zeros(5, 2).double())
    expected = _flat(box, 1.5, rotation, shift)
    got = resample(upright, rotation, shift / 1.5, box=box)
    # bilinear interpolation errs by h^2 f'' / 8 an axis; f'' = 1 / sd^2 at a peak, sd = 4 pixels
    bound = 2 / 8 / 4**2 * float(expected.max())
    assert float((got - expected).abs().max()) < bound


def test_resample_undoes_itself():
    rotation = torch.as_tensor(in_plane(np.array([0.7])))
    shift = torch.tensor([[2.0, -1.0]]).double()
    upright = _flat(48, 1.5, torch.eye(3).double()[None], torch.zeros(1, 2).double())
    seen = resample(upright, rotation, shift, box=48)
    back = rotation.transpose(-1, -2)
    undo = -(back[..., :2, :2] @ shift.unsqueeze(-1)).squeeze(-1)
    again = resample(seen, back, undo, box=48)
    assert float((again - upright).abs().max()) < 2 * (2 / 8 / 4**2) * float(upright.max())


@pytest.mark.parametrize(("box", "side"), [(32, 32), (33, 33), (32, 31), (40, 24)])
def test_projection_agrees_with_analytic_gaussians(box, side):
    """Trilinear interpolation of a voxel map against exact projections, any pose."""
    rotation = torch.as_tensor(special_ortho_group.rvs(3, size=6, random_state=0))
    points = torch.randn(8, 3, dtype=torch.double) * 5
    shift = torch.rand(6, 2).double() * 4 - 2
    voxel, sd = 1.5 * box / side, 4.0
    r = pixel_centres(side, voxel, dtype=torch.double)
    maps = torch.zeros(side, side, side).double()
    for x, y, z in points:
        gx, gy, gz = (torch.exp(-((r - c) ** 2) / (2 * sd**2)) for c in (x, y, z))
        maps += gz[:, None, None] * gy[None, :, None] * gx
    got = resample_projection(maps.expand(6, -1, -1, -1), rotation, shift / 1.5, box=box)
    seen = points @ rotation.transpose(-1, -2)
    seen[..., :2] += shift[:, None]
    width, weight = torch.full((8,), sd).double(), torch.ones(8).double()
    exact = splat(seen, width, weight, box=box, pixel_size=1.5) * sd * np.sqrt(2 * np.pi) / voxel
    assert float((got - exact).abs().max()) < 0.06 * float(exact.max())
    assert np.corrcoef(got.flatten(), exact.flatten())[0, 1] > 0.999


def test_gradients_reach_the_map():
    maps = torch.randn(2, 9, 9, 9, dtype=torch.double, requires_grad=True)
    rotation = torch.as_tensor(special_ortho_group.rvs(3, size=2, random_state=0))
    shift = torch.zeros(2, 2).double()
    assert torch.autograd.gradcheck(
        lambda m: resample_projection(m, rotation, shift, box=5), maps, fast_mode=True
    )
