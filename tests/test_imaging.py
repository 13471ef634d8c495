import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group
from torch.func import grad, vmap

import pyrocryo as pc
from pyrocryo.imaging import kernels, resample, resample_projection, splat, splat_map, window
from pyrocryo.imaging.splat import pixel_centres, plain_windows
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


def test_splat_integrates_to_its_weight():
    image = splat(
        torch.zeros(1, 2), torch.tensor([4.0]), torch.tensor([3.0]), box=65, pixel_size=1
    )
    assert float(image.sum()) == pytest.approx(3 * 2 * np.pi * 16, rel=1e-5)


FORMS = {"dense": {}, "windows": {"widest": 0.9}}  # in the boxes below


@pytest.fixture(params=FORMS, ids=str)
def form(request):
    return FORMS[request.param]


def _atoms(*lead, count=7, spread=6.0, seed=0, dtype=torch.double):
    """Centres, some of them outside a box of 33 pixels, widths up to 0.9 Å and heights."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(*lead, count, 3, generator=draw, dtype=dtype) * spread
    width = 0.9 - 0.5 * torch.rand(count, generator=draw, dtype=dtype)
    return centres, width, torch.rand(count, generator=draw, dtype=dtype) + 0.5


def _direct(centres, width, weight, box, pixel_size):
    """The sum over A x D x D."""
    r = pixel_centres(box, pixel_size, dtype=torch.double)
    x = r - centres[..., 0, None, None]
    y = r[:, None] - centres[..., 1, None, None]
    square = (x**2 + y**2) / width[:, None, None] ** 2
    return (weight[:, None, None] * torch.exp(-0.5 * square)).sum(dim=-3)


@pytest.mark.parametrize("box", [36, 37])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.double, torch.float])
def test_both_forms_are_the_sum_of_gaussians(form, box, lead, dtype):
    assert window(0.9, box=box, pixel_size=1.0) == 9
    centres, width, weight = _atoms(*lead, spread=9.0, dtype=dtype)
    images = splat(centres, width, weight, box=box, pixel_size=1.0, **form)
    assert images.shape == (*lead, box, box)
    assert images.dtype == dtype
    expected = _direct(centres.double(), width.double(), weight.double(), box, 1.0)
    left_out = 4e-6 * float(weight.sum()) if form else 0.0
    rounding = 1e-14 if dtype == torch.double else 1e-5
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=left_out + rounding)


@pytest.mark.parametrize("box", [96, 97])
def test_windows_leave_out_what_they_say(box):
    """One atom at many offsets from the pixels: at most e^-12.5 of its height is missing."""
    steps = torch.linspace(-0.5, 0.5, 33, dtype=torch.double)
    centres = torch.cartesian_prod(steps, steps)[:, None]
    one = torch.ones(1, dtype=torch.double)
    told = {"box": box, "pixel_size": 0.5}
    assert window(0.75, **told) == 15
    windows = splat(centres, 0.75 * one, one, widest=0.75, **told)
    missing = splat(centres, 0.75 * one, one, **told) - windows
    assert 0.9 * np.exp(-12.5) < float(missing.max()) <= np.exp(-12.5) < 4e-6
    assert float(missing.min()) > -1e-15


def test_windows_over_the_edge_do_not_come_back_on_the_other_side(form):
    far = [-1e30, -60.0, -22.0, -18.5, -16.0, 0.0, 16.0, 18.5, 22.0, 60.0, 1e30]
    far = torch.tensor(far, dtype=torch.double)
    centres = torch.cartesian_prod(far, far)[:, None].requires_grad_()
    one = torch.ones(1, dtype=torch.double)
    told = {"box": 33, "pixel_size": 1.0}
    images = splat(centres, 0.9 * one, one, **told, **form)
    expected = _direct(centres, 0.9 * one, one, 33, 1.0)
    torch.testing.assert_close(images, expected, rtol=0, atol=4e-6)
    (slope,) = torch.autograd.grad(images.sum(), centres)
    assert bool(slope.isfinite().all())
    assert not slope[centres.abs().amax(-1) > 30].abs().max() > 1e-13


def test_a_position_that_is_no_number_shows(form):
    centres = torch.tensor([[[0.0, 1.0], [float("nan"), 0.0]]])
    image = splat(centres, torch.ones(2) / 2, torch.ones(2), box=33, pixel_size=1.0, **form)
    assert bool(image.isnan().any())


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("box", [36, 37])
def test_gradients_of_both_forms(form, box):
    inputs = [a.requires_grad_() for a in _atoms(2, count=3, spread=6.0)]
    told = {"box": box, "pixel_size": 1.0, **form}
    assert torch.autograd.gradcheck(
        lambda *a: splat(*a, **told), inputs, check_forward_ad=True, fast_mode=True
    )
    dense = torch.autograd.grad(splat(*inputs, box=box, pixel_size=1.0).square().sum(), inputs)
    ours = torch.autograd.grad(splat(*inputs, **told).square().sum(), inputs)
    for a, b in zip(ours, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4 if form else 1e-12, atol=1e-4)


def test_second_derivatives_of_both_forms(form):
    inputs = [a.requires_grad_() for a in _atoms(count=2, spread=3.0)]
    told = {"box": 33, "pixel_size": 1.0, **form}
    assert torch.autograd.gradgradcheck(lambda *a: splat(*a, **told)[12:20, 12:20], inputs)


def test_gradients_of_maps():
    inputs = [a.requires_grad_() for a in _atoms(2, count=2, spread=2.0)]
    assert torch.autograd.gradcheck(
        lambda *a: splat_map(*a, side=7, voxel_size=1.0), inputs, fast_mode=True
    )


def _loss_and_slopes(form):
    """A function of centres, width and weight that takes gradients inside."""

    def both(centres, width, weight):
        inputs = [a.detach().requires_grad_() for a in (centres, width, weight)]
        loss = splat(*inputs, box=33, pixel_size=1.0, **form).square().sum()
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    return both


def test_both_forms_can_be_traced(form):
    """With make_fx: no value reaches the host, and the graph serves other positions."""
    both = _loss_and_slopes(form)
    graph = torch.fx.experimental.proxy_tensor.make_fx(both)(*_atoms(4, seed=0))
    other = _atoms(4, seed=1)
    for a, b in zip(graph(*other), both(*other), strict=True):
        torch.testing.assert_close(a, b)


def test_both_forms_serve_stacked_seeds(form):
    """With vmap: all inputs stacked, or centres only; traced as well."""

    def loss(centres, width, weight):
        return splat(centres, width, weight, box=33, pixel_size=1.0, **form).square().sum()

    slopes = torch.func.grad(loss, argnums=(0, 1, 2))
    seeds = [_atoms(4, seed=seed) for seed in range(3)]
    stacked = [torch.stack(a) for a in zip(*seeds, strict=True)]
    every = torch.func.vmap(slopes)
    traced = torch.fx.experimental.proxy_tensor.make_fx(every)(*stacked)
    for got in (every(*stacked), traced(*stacked)):
        for n, seed in enumerate(seeds):
            for a, b in zip(got, slopes(*seed), strict=True):
                torch.testing.assert_close(a[n], b)
    centres, width, weight = stacked[0], *seeds[0][1:]
    got = torch.func.vmap(slopes, in_dims=(0, None, None))(centres, width, weight)
    for n in range(3):
        for a, b in zip(got, slopes(centres[n], width, weight), strict=True):
            torch.testing.assert_close(a[n], b)


def test_many_images_are_made_in_shares(form, monkeypatch):
    import sys

    centres, width, weight = _atoms(2, 5)
    told = {"box": 33, "pixel_size": 1.0, **form}
    whole = splat(centres, width, weight, **told)
    monkeypatch.setattr(sys.modules["pyrocryo.imaging.splat"], "MOST", 7 * 170)
    torch.testing.assert_close(splat(centres, width, weight, **told), whole)


def test_windows_only_where_they_pay():
    assert window(1.5, box=256, pixel_size=1.0) == 15
    assert window(3.0, box=256, pixel_size=2.0) == 15
    assert window(1.5, box=64, pixel_size=1.0) is None
    centres, width, weight = _atoms(2)
    told = {"box": 20, "pixel_size": 1.0}
    images = splat(centres, width, weight, widest=0.9, **told)
    assert torch.equal(images, splat(centres, width, weight, **told))


@pytest.mark.parametrize("widest", [0.0, -1.0, float("nan"), float("inf")])
def test_no_width_is_named(widest):
    with pytest.raises(pc.InputError, match=f"widest: expected a positive .* got {widest}"):
        splat(*_atoms(), box=8, pixel_size=1.0, widest=widest)


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


@pytest.mark.benchmark
def test_what_a_projection_costs():
    """Printed: the dense sum as plainly written, in units of ours, on one thread."""
    from pyrocryo.bench.splat import rows

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for row in rows("cpu", quick=True):
            low, high = row["spread"]
            print(
                f"{row['name']:50s}{1e3 * row['other']:9.1f} ms / {1e3 * row['ours']:7.1f} ms ="
                f"{row['ratio']:6.1f} ({low:.1f}-{high:.1f})"
            )
            assert row["ratio"] > 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("edge", [9, 15, 27])
@pytest.mark.parametrize(("dtype", "close"), [(torch.double, 1e-12), (torch.float, 1e-5)])
def test_kernels_are_the_plain_windows(edge, dtype, close):
    """Images and all gradients, alone and stacked over seeds."""
    centres, width, weight = _atoms(4, 3, count=50, spread=14.0, dtype=dtype)
    inputs = centres[..., :2], torch.stack([width] * 4) * 1.5, torch.stack([weight] * 4)

    def squares(form):
        return vmap(grad(lambda *a: form(*a, 33, edge).square().sum(), argnums=(0, 1, 2)))

    found = squares(kernels.windows)(*(value.cuda() for value in inputs))
    expected = squares(plain_windows)(*(value.double() for value in inputs))
    for a, b in zip(found, expected, strict=True):
        assert float((a.cpu().double() - b).norm() / b.norm()) < close
