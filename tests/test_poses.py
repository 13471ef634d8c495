"""Poses that are unknown: prior, guide, frames, and what training makes of them."""

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy.ndimage import gaussian_filter

import pyrocryo as pc
from pyrocryo.directions import PlanarNormal, UniformDirection
from pyrocryo.imaging import polar, resample
from pyrocryo.poses import turn, turned, unturned


@pytest.fixture
def pair(pairs_in_time):
    return pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0),
        pc.volumes.Grid(),
        pairs_in_time.box,
        pose=pc.poses.InPlane(),
    )


def _unit(degrees):
    angle = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float32))
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _smooth(particles, n):
    images = particles.batch(np.arange(n)).images[:, 0].numpy()
    return torch.as_tensor(gaussian_filter(images, (0, 1.5, 1.5)))


def test_turn_is_counter_clockwise():
    expected = pc.rotations.in_plane(np.deg2rad([30.0, -100.0]))
    np.testing.assert_allclose(turn(_unit([30.0, -100.0])).numpy(), expected, atol=1e-6)
    torch.testing.assert_close(turned(_unit(20.0), torch.tensor(np.pi / 4)), _unit(65.0))


def test_unturned_undoes_a_turn(pairs_in_time):
    images = _smooth(pairs_in_time, 4)
    angle = torch.deg2rad(torch.tensor([10.0, 80.0, -45.0, 170.0]))
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    moved = resample(images, turn(direction), torch.zeros(4, 2), box=32)
    back = unturned(moved, angle)
    core = (slice(None), slice(8, 24), slice(8, 24))
    for a, b in zip(back[core], images[core], strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97


def test_a_turn_is_a_shift_along_the_ring():
    y, x = np.indices((33, 33)) - 16.0
    blob = np.exp(-((x - 7) ** 2 + y**2) / 8) + 0.5 * np.exp(-(x**2 + (y - 5) ** 2) / 8)
    image = torch.as_tensor(blob, dtype=torch.float32)[None]
    rings = polar(image, torch.zeros(1, 2), radii=12, angles=48)
    quarter = torch.rot90(image, k=-1, dims=(-2, -1))  # counter-clockwise in [y, x], y upwards
    again = polar(quarter, torch.zeros(1, 2), radii=12, angles=48)
    torch.testing.assert_close(again, rings.roll(12, dims=-1), atol=1e-4, rtol=1e-4)
    moved = torch.roll(image, (2, -3), dims=(-2, -1))  # displaced by (x, y) = (-3, 2)
    again = polar(moved, torch.tensor([[-3.0, 2.0]]), radii=12, angles=48)
    torch.testing.assert_close(again[:, :9], rings[:, :9], atol=1e-4, rtol=1e-4)


def test_the_head_turns_with_the_image(pairs_in_time):
    """... untrained: equivariance is built in, up to interpolation."""
    head = pc.guides.Polar().build(32)
    images = _smooth(pairs_in_time, 32)
    degrees = torch.linspace(-180, 170, 32)
    moved = resample(images, turn(_unit(degrees)), torch.zeros(32, 2), box=32)
    with torch.no_grad():
        before, after = (head(x, torch.zeros(32, 2)) for x in (images, moved))
    angle = [torch.atan2(q.mean[:, 1], q.mean[:, 0]) for q in (before, after)]
    error = torch.rad2deg(angle[1] - angle[0]) - degrees
    error = torch.remainder(error + 180, 360) - 180
    assert error.abs().median() < 4
    sizes = [q.concentration.norm(dim=-1) for q in (before, after)]
    assert (sizes[1] / sizes[0] - 1).abs().median() < 0.1


def test_sites(pair, pairs_in_time):
    batch = pairs_in_time.batch(np.arange(6))
    guide = poutine.trace(pair.guide).get_trace(batch)
    model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(batch)
    for trace, law in ((guide, PlanarNormal), (model, UniformDirection)):
        site = trace.nodes["pose"]
        assert isinstance(site["fn"].base_dist, law)
        assert site["value"].shape == (6, 2, 2)
        assert site["fn"].batch_shape == (6,)
    order = [name for name, site in model.nodes.items() if site["type"] == "sample"]
    assert order == ["particle", "pose", "z", "x"] or order == ["pose", "z", "x"]


def test_no_gradient_from_z_to_the_pose(pair, pairs_in_time):
    batch = pairs_in_time.batch(np.arange(6))
    pair.posterior_of(batch).base_dist.mean.sum().backward()
    assert all(p.grad is None for p in pair.pose_encoder.parameters())
    assert any(p.grad is not None for p in pair.encoder.parameters())


def test_rigid_steps_decode_the_mean_and_leave_z_alone(pair, pairs_in_time):
    from pyro.infer import TraceMeanField_ELBO

    batch = pairs_in_time.batch(np.arange(6))
    with pc.svi.Weights(rigid=True):
        TraceMeanField_ELBO().differentiable_loss(pair.model, pair.guide, batch).backward()
    for name, parameter in pair.named_parameters():
        moves = parameter.grad is not None and bool((parameter.grad != 0).any())
        if name.startswith("encoder") or name == "rotation.angle":
            assert not moves, name
        if name.startswith("pose_encoder") or name == "volume.network.4.bias":
            assert moves, name


def test_settings_of_the_stages():
    settings = pc.svi.Settings(steps=100, rigid_steps=20, kl_warmup=10)
    assert settings.beta_at(19) == 1  # of the pose: rigid steps leave out that of z alone
    assert settings.beta_at(24) == pytest.approx(0.5)
    assert settings.beta_at(60) == 1
    with pytest.raises(
        pc.InputError, match="steps: 30 leave no room for rigid_steps 20 and kl_warm"
    ):
        pc.svi.Settings(steps=30, rigid_steps=20, kl_warmup=20)


def test_shift_of_the_molecule_is_known(pairs_in_time):
    """The volume is placed where the particles say, turned as the latent says."""
    pose = pc.poses.InPlane()
    batch = pairs_in_time.batch(np.arange(3))
    rotation, shift = pose(batch, _unit(torch.full((3, 2), 25.0)))
    torch.testing.assert_close(shift, batch.shift / 3.0)
    np.testing.assert_allclose(rotation[0, 0], pc.rotations.in_plane(np.deg2rad(25)), atol=1e-6)
    bare = pc.Particles(np.zeros((3, 8, 8), dtype=np.float32)).batch(np.arange(3))
    assert not pose(bare, _unit(torch.zeros(3)))[1].any()


def test_a_head_for_known_poses_is_refused():
    with pytest.raises(pc.InputError, match="pose_guide: there is nothing to guess"):
        pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(), 16, pose_guide=pc.guides.Polar())


# a quarter of the pixels at four times the signal tells as much
COARSE = {"box": 16, "pixel_size": 6.0, "snr": 4.0}


@pytest.fixture(scope="module")
def recovered():
    """One seed on particles of all in-plane poses, short."""
    particles = pc.simulate.time_resolved(
        pc.molecules.TwoArms(), n=5000, seed=3, scale=0.25, **COARSE
    )
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 4.0), pc.volumes.Grid(), 16, pose=pc.poses.InPlane()
    )
    return pc.fit(pair, particles, steps=1200, rigid_steps=150, lr=2e-3), particles


def test_poses_and_conformations_are_told_apart(recovered):
    fit, particles = recovered
    table = pc.metrics.report(pc.posterior(fit, particles.test, draws=10))
    assert table["pose_error_deg"]["mean"] < 10
    assert table["pose_error_frame_deg"]["mean"] < 2
    assert table["pose_within_10_deg"]["mean"] > 0.95
    assert table["pose_flips"]["mean"] < 0.01
    assert table["pose_leak"]["mean"] < 0.02
    assert table["r2_cubic"]["mean"] > 0.9


def test_a_reference_body_fixes_the_frame(recovered):
    """What is reported turns, poses and maps together; the images do not."""
    fit, particles = recovered
    fixed = pc.frames.reference_body(fit, particles.train)
    assert fit.pairs[0].frame is None
    tables = [pc.metrics.report(pc.posterior(f, particles.test, draws=10)) for f in (fit, fixed)]
    free, still = (t["pose_error_deg"]["mean"] for t in tables)
    assert still < 0.6 * free
    assert tables[0]["elbo"] == tables[1]["elbo"]
    pair = fixed.pairs[0]
    z = torch.tensor([[1.0, -0.5]])
    direction = _unit(torch.tensor([40.0]))
    free_image = resample(fit.pairs[0].density(z), turn(direction), torch.zeros(1, 2), box=16)
    still_image = resample(
        pair.density(z), turn(pair.framed(direction, z)), torch.zeros(1, 2), box=16
    )
    assert np.corrcoef(free_image.ravel(), still_image.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (np.ones((3, 3)), r"expected finite weights of shape \(16, 16\)"),
        (np.zeros((16, 16)), "some pos"),
    ],
)
def test_a_body_that_does_not_fit(recovered, body, message):
    with pytest.raises(pc.InputError, match=message):
        pc.frames.reference_body(*recovered, body)


def test_known_poses_have_no_frame_to_fix(slowvae, pairs_in_time):
    fit = pc.fit(slowvae, pairs_in_time, steps=2)
    with pytest.raises(pc.InputError, match="only in-plane poses"):
        pc.frames.reference_body(fit, pairs_in_time)


@pytest.mark.parametrize("rigid", [0, 60])
def test_short_schedules_do_not_collapse(rigid):
    """The KL once drove every concentration to 0, and the gradient that could return with it."""
    particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=600, seed=0)
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), 32, pose=pc.poses.InPlane()
    )
    fit = pc.fit(pair, particles, seeds=2, steps=150, rigid_steps=rigid, lr=2e-3)
    batch = particles.batch(np.arange(100))
    for trained in fit.pairs:
        with torch.no_grad():
            size = trained.pose_of(batch).base_dist.concentration.norm(dim=-1)
        assert 10 < size.median() < 1000
    table = pc.metrics.report(pc.posterior(fit, particles.test, draws=5))
    assert max(table["pose_error_deg"]["per_seed"]) < 12


def test_sizes_keep_a_gradient_to_come_back_by():
    from pyrocryo.guides.polar import length_of

    raw = torch.tensor([-100.0, -5.0, 0.0, 100.0], requires_grad=True)
    size = length_of(raw)
    (gradient,) = torch.autograd.grad(size.sum(), raw)
    assert (size[1:] > size[:-1]).all()
    assert size[0] >= 10
    assert float(size[2].detach()) == pytest.approx(30)
    assert (gradient > 5e-4).all()


def test_a_body_twice_is_a_body_once(recovered):
    fit, particles = recovered
    once = pc.frames.reference_body(fit, particles.train)
    twice = pc.frames.reference_body(once, particles.train)
    z = torch.tensor([[1.0, -0.5], [0.3, 2.0]])
    torch.testing.assert_close(once.pairs[0].frame(z), twice.pairs[0].frame(z))
    again = pc.fit(once.pairs[0], particles, steps=2)
    assert again.pairs[0].frame is None
    assert once.pairs[0].frame is not None


def test_angles_in_the_plane_need_a_flat_volume():
    with pytest.raises(pc.InputError, match="pose: angles in the plane show a molecule from one"):
        pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(3), 16, pose=pc.poses.InPlane())


def test_a_conditioned_z_goes_with_many_poses(pairs_in_time):
    from pyro.infer import Predictive

    batch = pairs_in_time.batch(np.arange(4))
    for volume in (pc.volumes.Grid(), pc.volumes.Implicit(), pc.volumes.Atoms(pixel_size=3.0)):
        pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), volume, 32, pose=pc.poses.InPlane())
        model = poutine.uncondition(pair.eval().model)
        model = poutine.condition(model, {"z": torch.zeros(4, 2, 2)})
        drawn = Predictive(model, num_samples=3, parallel=True)(batch)
        assert drawn["x"].shape == (3, 4, 2, 32, 32)


@pytest.mark.parametrize("box", [96, 101])
def test_the_head_reads_wide_images_through_wider_pixels(box):
    """... whose grid must not move the origin: a turn about it turns what the head says."""
    r = torch.arange(box) - box // 2
    x, y = torch.meshgrid(r, r, indexing="xy")
    spots = [(14.0, 3.0, 1.0), (-9.0, 18.0, 0.7), (4.0, -16.0, 0.5)]
    image = sum(h * torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 72) for a, b, h in spots)[None]
    head = pc.guides.Polar().build(box)
    shift = torch.tensor([[5.0, -7.0]])
    with torch.no_grad():
        first = head(image, torch.zeros(1, 2)).mean
        for degrees in (90.0, 37.0, -120.0):
            moved = resample(image, turn(_unit([degrees])), shift, box=box)
            found = head(moved, shift).mean
            expected = turned(first, torch.deg2rad(torch.tensor(degrees)))
            assert (found * expected).sum() > np.cos(np.deg2rad(1.0)), degrees


def test_rotations_that_come_along_do_not_matter_where_poses_are_unknown(pairs_in_time):
    tilted = np.broadcast_to(
        pc.rotations.matrix_from_euler(np.array([[0.0, 60.0, 0.0]]))[0], (240, 2, 3, 3)
    )
    particles = pc.Particles(pairs_in_time.images, pixel_size=3.0, rotation=tilted)
    prior, volume = pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid()
    with pytest.raises(pc.InputError, match="tilted out of the plane"):
        pc.Pair(prior, volume, 32).check(particles)
    pc.Pair(prior, volume, 32, pose=pc.poses.InPlane()).check(particles)
    assert particles.fields  # still there
