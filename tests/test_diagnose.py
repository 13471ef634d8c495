import logging
import math

import numpy as np
import pytest
import torch
from torch import nn
from toys import Linear, Stubborn

import pyrocryo as pc
from pyrocryo.diagnose import turned_batch, turned_images
from pyrocryo.diagnose.common import recast
from pyrocryo.diagnose.noise import noise_of
from pyrocryo.diagnose.twin import _Twin
from pyrocryo.directions import PlanarNormal
from pyrocryo.testing import check_pair


def _particles(n, *, box=16, seed=0, **more):
    more = {"max_shift": 0.0, "pixel_size": 96.0 / box} | more
    return pc.simulate.poses(pc.molecules.TwoArms(), n=n, seed=seed, box=box, **more)


def _pair(box=16, **parts):
    volume = pc.volumes.Grid(hidden=(32, 32))
    return pc.Pair(pc.priors.IsotropicNormal(2), volume, box, **parts)


class Read(nn.Module):
    """A perceptron of the image as it lies there: neither pose nor shift is looked at."""

    group = (0,)

    def build(self, latent, box, volume):
        self.latent = latent
        layers = nn.Linear(box**2, 64), nn.SiLU(), nn.Linear(64, 2 * latent)
        self.network = nn.Sequential(*layers)
        return self

    def forward(self, images, rotation, shift):
        images = images.expand(*rotation.shape[:-2], *images.shape[-2:])
        out = sum(self.network(self._turned(images, k).flatten(-2)) for k in self.group)
        loc, log_sd = (out / len(self.group)).chunk(2, dim=-1)
        return loc, torch.diag_embed(log_sd.exp())

    def _turned(self, images, k):
        for _ in range(k):  # about pixel box // 2, as numpy has it
            images = torch.rot90(images, dims=(-2, -1))
            images = images.roll(1 - images.shape[-1] % 2, dims=-2)
        return images


class ReadAllWays(Read):
    """... averaged over the four quarter turns of the image: exactly invariant under them."""

    group = (0, 1, 2, 3)


# turning


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("degrees", [90, 180, 270, -90, 30, 45, 135, 350.5])
def test_a_turned_image_is_the_image_of_the_turned_molecule(box, degrees):
    particles = _particles(12, box=box, snr=1e8, max_shift=5.0)
    batch = particles.batch(np.arange(12))
    turned = turned_batch(batch, degrees)
    seen = pc.molecules.TwoArms().render(
        torch.as_tensor(particles.truth, dtype=torch.float32),
        turned.rotation,
        turned.shift,
        box=box,
        pixel_size=particles.pixel_size,
    )
    r = np.arange(box) - box // 2
    disc = torch.as_tensor(np.hypot(r[:, None], r) < box / 2 - 1)
    a, b = turned.images[:, disc], seen[:, disc]
    scale = (a * b).sum() / b.square().sum()
    error = (a - scale * b).square().mean().sqrt() / a.std()
    assert error < (1e-3 if degrees % 90 == 0 else 0.03)


@pytest.mark.parametrize("box", [8, 9])
def test_quarter_turns_lose_no_pixel(box):
    images = torch.randn(3, 2, box, box)
    turned = images
    for k in range(1, 5):
        turned = turned_images(turned, 90)
        torch.testing.assert_close(turned, turned_images(images, 90 * k), rtol=0, atol=0)
    torch.testing.assert_close(turned, images, rtol=0, atol=0)
    centre = box // 2
    torch.testing.assert_close(
        turned_images(images, 90)[..., centre, centre], images[..., centre, centre]
    )


@pytest.mark.parametrize("degrees", [10, 45, -30, 117])
def test_turning_leaves_noise_as_loud_as_it_was(degrees):
    noise = torch.randn(100, 33, 33)
    turned = turned_images(noise, degrees)
    assert turned.std() == pytest.approx(1.0, abs=0.02)
    neighbours = (turned[..., 1:] * turned[..., :-1]).mean()  # bilinear sampling correlates them
    assert abs(neighbours) < 0.03


def _with_ctf(images, ctf, pixel_size):
    """A weak-phase CTF (sine of the phase shift), astigmatic, from its textbook formula."""
    u, v, angle, kilovolt, _, _, _ = ctf
    box = images.shape[-1]
    y, x = np.meshgrid(*[np.fft.fftfreq(box, pixel_size)] * 2, indexing="ij")
    defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (np.arctan2(y, x) - np.deg2rad(angle)))
    volt = 1e3 * kilovolt
    wavelength = 12.2643 / math.sqrt(volt + 0.97845e-6 * volt**2)
    filtered = np.fft.fft2(images) * np.sin(np.pi * wavelength * defocus * (x**2 + y**2))
    return np.fft.ifft2(filtered).real


@pytest.mark.parametrize("degrees", [90, 30])
def test_the_astigmatism_turns_along(degrees):
    box, pixel_size = 97, 4.0
    molecule, z = pc.molecules.TwoArms(radius=60.0), torch.tensor([[0.5, -1.0]])
    ctf = np.array([9000.0, 4000.0, 25.0, 300.0, 0.0, 0.1, 0.0])

    def image(angle, ctf):
        rotation = torch.as_tensor(pc.rotations.in_plane(np.deg2rad([angle])))
        shift = torch.zeros(1, 2, dtype=torch.float64)
        clean = molecule.render(z.double(), rotation, shift, box=box, pixel_size=pixel_size)
        return _with_ctf(clean.numpy(), ctf, pixel_size).astype(np.float32)

    particles = pc.Particles(image(10.0, ctf), pixel_size=pixel_size, ctf=ctf[None])
    turned = turned_batch(particles.batch(np.arange(1)), degrees)
    expected = image(10.0 + degrees, turned.ctf[0].numpy())
    left = image(10.0 + degrees, ctf)
    r = np.arange(box) - box // 2
    disc = np.hypot(r[:, None], r) < 20

    def error(other):
        return np.sqrt(np.mean((turned.images.numpy() - other)[:, disc] ** 2)) / other.std()

    assert error(expected) < 0.03
    assert error(left) > 0.2  # had the CTF not been turned


# pose invariance


@pytest.mark.parametrize("box", [16, 17])
def test_an_invariant_guide_is_found_invariant(box):
    particles = _particles(64, box=box)
    pair = _pair(box, guide=ReadAllWays())
    check = pc.diagnose.pose_invariance(pair, particles, angles=(90, 180, 270))
    assert check.nrms.shape == (1, 3)
    assert check.nrms.max() < 1e-5
    assert not check.control.any()
    assert check.r2.min() > 1 - 1e-6
    assert np.isnan(check.pose_error_deg).all()
    assert check.verdict == "invariant"
    other = pc.diagnose.pose_invariance(pair, particles, angles=45)
    assert other.nrms[0, 0] > 0.05  # it is invariant under quarter turns only


def test_a_planted_leak_is_found():
    particles = _particles(2000)
    fit = pc.fit(_pair(guide=Read()), particles, steps=300, seeds=2)
    check = pc.diagnose.pose_invariance(fit, particles.test, angles=(90, 30))
    assert check.verdict == "leaking"
    assert check.nrms.min() > 0.2
    assert (check.leak[:, 1] < check.nrms[:, 1]).all()
    assert "leaks into z" in check.sentence
    rows = check.rows()
    assert [(row["seed"], row["angle_deg"]) for row in rows] == [
        (0, 90),
        (0, 30),
        (1, 90),
        (1, 30),
    ]
    assert rows[2]["nrms"] == check.nrms[1, 0]
    assert set(rows[0]) > {"in_sd_50", "in_sd_90", "in_sd_99", "r2", "control"}
    upright = pc.fit(_pair(), particles, steps=300, seeds=2)
    check = pc.diagnose.pose_invariance(upright, particles.test, angles=(90, 180))
    assert check.nrms.max() < 0.1
    assert check.verdict == "invariant"


def test_shifts_have_to_turn_too():
    particles = _particles(300, box=17, max_shift=6.0)
    pair = pc.fit(_pair(17), particles, steps=150).pairs[0]
    ours = pc.diagnose.pose_invariance(pair, particles, 180)
    theirs = pc.diagnose.pose_invariance(pair, particles, 180, edelberg=True)
    assert ours.nrms[0, 0] < 0.01
    assert theirs.nrms[0, 0] > 5 * ours.nrms[0, 0]


def test_strangers_are_one_apart():
    """The yardstick, written out for every pair of particles."""
    particles = _particles(40)
    pair = _pair().eval()
    check = pc.diagnose.pose_invariance(pair, particles, 30)
    batch = particles.batch(np.arange(40))
    with torch.no_grad():
        a = pair.posterior_of(batch)
        z, turned = a.mean, pair.posterior_of(turned_batch(batch, 30)).mean
        distance = torch.cdist(z, z).square().sum() / (40 * 39)
        nrms = ((z - turned).square().sum(-1).mean() / distance).sqrt()
        in_sd = ((z - turned).square() / a.variance).mean(-1).sqrt().median()
    assert check.nrms[0, 0] == pytest.approx(float(nrms), rel=1e-4)
    assert check.in_sd[0, 0, 0] == pytest.approx(float(in_sd), rel=0.05)


def test_poses_that_are_inferred_turn_along():
    """... untrained: the polar head turns with the image by construction."""
    molecule = pc.molecules.TwoArms()
    particles = pc.simulate.time_resolved(molecule, n=60, box=33)
    prior = pc.priors.LaplaceTransition(2, 2.0)
    pair = pc.Pair(prior, pc.volumes.Grid(), 33, pose=pc.poses.InPlane())
    check = pc.diagnose.pose_invariance(pair, particles, angles=(90, 20))
    assert check.pose_error_deg[0, 0] < 0.01
    assert 0.01 < check.pose_error_deg[0, 1] < 5.0
    assert check.nrms[0, 0] < 0.01
    assert "poses turn along" in check.sentence


def test_poses_that_do_not_turn_along_are_pointed_out():
    class Stuck(nn.Module):
        def build(self, box):
            self.direction = nn.Parameter(torch.tensor([20.0, 0.0]))
            return self

        def forward(self, images, shift):
            return PlanarNormal(self.direction.expand(*images.shape[:-2], 2))

    pair = _pair(pose=pc.poses.InPlane(), pose_guide=Stuck())
    check = pc.diagnose.pose_invariance(pair, _particles(20), angles=(90, -30))
    np.testing.assert_allclose(check.pose_error_deg, [[90, 30]], atol=1e-3)
    assert "poses do not turn along (off by 90°)" in check.sentence
    assert check.verdict == "leaking"


def test_a_pose_in_space_turns_about_the_beam():
    particles = pc.simulate.poses(pc.molecules.AdenylateKinase(), n=20, box=16, pixel_size=6.0)
    batch = particles.batch(np.arange(20))
    turned = turned_batch(batch, 90).rotation.numpy()
    expected = pc.rotations.in_plane(np.pi / 2) @ particles.rotation
    np.testing.assert_allclose(turned, expected, atol=1e-6)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(3, side=8), 16)
    check = pc.diagnose.pose_invariance(pair, particles)
    assert check.nrms[0, 0] > 0.1  # untrained: nine entries of A are read beside the image


def test_a_latent_that_says_nothing_is_called_empty():
    pair = _pair()
    nn.init.zeros_(pair.encoder.network[-1].weight)
    check = pc.diagnose.pose_invariance(pair, _particles(20))
    assert check.verdict == "empty"
    assert np.isnan(check.nrms).all()


def test_turns_that_cannot_be_compared():
    particles, pair = _particles(20), _pair()
    for angle in (0, 360, -720.0, float("nan")):
        with pytest.raises(pc.InputError, match="angles: expected degrees that turn something"):
            pc.diagnose.pose_invariance(pair, particles, angles=(90, angle))
    with pytest.raises(pc.InputError, match="angles: expected at least one"):
        pc.diagnose.pose_invariance(pair, particles, angles=())
    with pytest.raises(pc.InputError, match="particles: expected at least 8, got 7"):
        pc.diagnose.pose_invariance(pair, particles.take(np.arange(7)))
    with pytest.raises(pc.InputError, match="rotation: these particles have no poses"):
        pc.diagnose.pose_invariance(pair, particles.without("rotation"))
    with pytest.raises(pc.InputError, match="box: "):
        pc.diagnose.pose_invariance(_pair(12), particles)
    with pytest.raises(pc.InputError, match="fit: expected a Fit or a Pair, got str"):
        pc.diagnose.pose_invariance("run", particles)


# evil twin


def test_noise_belongs_to_the_particle():
    index = torch.tensor([5, 0, 7, 5])
    noise = noise_of(index, (2, 16, 16), seed=3)
    torch.testing.assert_close(noise[0], noise[3], rtol=0, atol=0)
    torch.testing.assert_close(noise[:1], noise_of(index[:1], (2, 16, 16), seed=3))
    assert not torch.equal(noise[0], noise_of(index[:1], (2, 16, 16), seed=4)[0])
    many = noise_of(torch.arange(2000), (16, 16), seed=0).flatten(1).double()
    assert many.mean() == pytest.approx(0, abs=0.01)
    assert many.var() == pytest.approx(1, abs=0.01)
    assert many.pow(4).mean() == pytest.approx(3, abs=0.05)
    between = torch.corrcoef(many).fill_diagonal_(0)  # 256 pixels each
    assert between.abs().max() < 0.45
    assert between.square().mean().sqrt() == pytest.approx(1 / 16, rel=0.01)
    pixels = torch.corrcoef(many.T).fill_diagonal_(0)
    assert pixels.square().mean().sqrt() == pytest.approx(2000**-0.5, rel=0.02)


def test_twins_are_traced_and_stacked(caplog, pairs_in_time):
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), 32, pose=pc.poses.InPlane()
    )
    twin = recast(pair, _Twin)
    twin.noise_seed, twin.noise_level = 0, 1.0
    batch = pairs_in_time.batch(np.arange(4))
    other = batch._replace(images=torch.randn_like(batch.images))
    with torch.no_grad():
        for read in (lambda b: twin.posterior_of(b).mean, lambda b: twin.pose_of(b).mean):
            torch.testing.assert_close(read(batch), read(other), rtol=0, atol=0)
            assert not torch.equal(read(batch)[0], read(batch)[1])
    options = {"steps": 2, "seeds": 2, "batch_size": 8}
    with caplog.at_level(logging.WARNING, "pyrocryo"):
        traced = pc.fit(twin, pairs_in_time, capture=True, together=2, **options)
    assert not caplog.records
    plain = pc.fit(twin, pairs_in_time, capture=False, **options)
    np.testing.assert_allclose(traced.history["loss"], plain.history["loss"], rtol=1e-4)


def test_few_particles_are_memorised():
    pair = _pair(guide=pc.guides.Amortised((256, 128)))
    twins = pc.diagnose.evil_twin(pair, _particles(200), seeds=1, steps=400)
    assert twins.verdict == "memorising"
    assert twins.share.min() > 0.3
    assert (twins.twin[:, 1] > twins.rigid[:, 1]).all()  # held out, it fails
    assert (twins.honest[:, 1] < twins.rigid[:, 1]).all()
    (row,) = twins.rows()
    assert row["twin_held_out"] == twins.twin[0, 1]
    assert row["share"] == pytest.approx(
        (row["rigid_train"] - row["twin_train"]) / (row["rigid_train"] - row["honest_train"])
    )


def test_many_particles_are_read():
    particles = _particles(10_000)
    fit = pc.fit(_pair(), particles, seeds=1, steps=400)
    twins = pc.diagnose.evil_twin(fit, particles)
    assert twins.seeds == (0,)
    assert twins.verdict == "inferring"
    assert twins.share.max() < 0.1
    assert "none of it" in twins.sentence or "0 % of it" in twins.sentence
    assert twins.honest[0, 1] < twins.rigid[0, 1] - 1


def test_a_guide_told_by_a_field_is_leaking():
    """It gets the truth as a field, so it needs no images, of held-out particles neither."""

    class Told(Read):
        def build(self, latent, box, volume):
            self.network = nn.Linear(2, 2 * latent)
            return self

        def forward(self, images, rotation, shift, truth):
            loc, log_sd = self.network(truth).chunk(2, dim=-1)
            return loc, torch.diag_embed((log_sd - 2).exp())

    twins = pc.diagnose.evil_twin(_pair(guide=Told()), _particles(2000), seeds=1, steps=300)
    assert twins.verdict == "leaking"


def test_twins_that_cannot_be_compared():
    particles, pair = _particles(60), _pair()
    with pytest.raises(pc.InputError, match="no particle is held out of these 60"):
        pc.diagnose.evil_twin(pair, particles.take(np.arange(60)))
    with pytest.raises(pc.InputError, match="particles: expected at least 20, got 10"):
        pc.diagnose.evil_twin(pair, _particles(10))
    with pytest.raises(pc.InputError, match="unknown setting checkpoint"):
        pc.diagnose.evil_twin(pair, particles, checkpoint="here.pt")
    with pytest.raises(pc.InputError, match="draws: expected at least 1, got 0"):
        pc.diagnose.evil_twin(pair, particles, draws=0)
    with pytest.raises(pc.InputError, match="steps: a fit brings its settings along"):
        pc.diagnose.evil_twin(pc.fit(pair, particles, steps=2), particles, steps=3)
    with pytest.raises(pc.InputError, match="particles: the fit was trained on others"):
        pc.diagnose.evil_twin(pc.fit(pair, particles, steps=2), _particles(60, seed=1))


def test_where_z_brings_nothing_there_is_nothing_to_share():
    twins = pc.diagnose.evil_twin(_pair(), _particles(200, snr=1e-4), seeds=1, steps=2)
    assert twins.verdict == "undecided"
    assert np.isnan(twins.share).all()


# amortisation gap


@pytest.mark.parametrize("frames", [None, 2])
def test_the_gap_is_the_divergence_from_the_exact_posterior(frames):
    torch.manual_seed(1)
    box, sigma, n = 6, 0.8, 80
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), Linear(), box, guide=Stubborn(), noise=sigma, rotate=True
    ).eval()
    nn.init.constant_(pair.rotation.angle, 0.1)  # z = R u, R half a radian
    w = pair.volume.map.weight.detach()
    lead = (n,) if frames is None else (n, frames)
    x = torch.randn(*lead, 2) @ w.T + sigma * torch.randn(*lead, box**2)
    rotation = np.broadcast_to(np.eye(3), (*lead, 3, 3))
    particles = pc.Particles(
        x.unflatten(-1, (box, box)).numpy(), rotation=rotation, test_fraction=0.25
    )
    gap = pc.diagnose.amortisation_gap(pair, particles, steps=400)
    precision = torch.eye(2) + w.T @ w / sigma**2
    mean = torch.linalg.solve(precision, (x @ w / sigma**2).unsqueeze(-1)).squeeze(-1)
    best = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    guide = torch.distributions.MultivariateNormal(pair.encoder.loc, scale_tril=pair.encoder.scale)
    exact = torch.distributions.kl_divergence(guide, best).detach()
    exact = (exact if frames is None else exact.sum(-1)).numpy()
    for found, part in ((gap.train, particles.train), (gap.held_out, particles.test)):
        expected = exact[part.index]
        assert found.shape == (1, len(expected))
        # particle by particle up to the noise of 16 draws, on average within three errors of it
        error = found[0] - expected
        assert np.corrcoef(found[0], expected)[0, 1] > 0.95
        assert abs(error.mean()) < max(
            3 * error.std() / math.sqrt(len(error)), 0.03 * exact.mean()
        )
    row = gap.rows()[0]
    assert row["train"] == pytest.approx(gap.train[0].mean())
    assert row["held_out_se"] > 0


def test_nothing_is_gained_on_an_exact_posterior():
    torch.manual_seed(2)
    box, n = 6, 60

    class Exact(Stubborn):
        def build(self, latent, box, volume):
            self._volume = (volume,)
            return self

        def forward(self, images, rotation, shift):
            w = self._volume[0].map.weight
            precision = torch.eye(2) + w.T @ w
            loc = torch.linalg.solve(precision, (images.flatten(-2) @ w).unsqueeze(-1)).squeeze(-1)
            scale = torch.linalg.cholesky(torch.linalg.inv(precision))
            return loc, scale.expand(*loc.shape[:-1], 2, 2)

    pair = pc.Pair(pc.priors.IsotropicNormal(2), Linear(), box, guide=Exact(), noise=1.0)
    w = pair.volume.map.weight.detach()
    x = torch.randn(n, 2) @ w.T + torch.randn(n, box**2)
    particles = pc.Particles(
        x.unflatten(-1, (box, box)).numpy(), rotation=np.broadcast_to(np.eye(3), (n, 3, 3))
    )
    gap = pc.diagnose.amortisation_gap(pair, particles, steps=200)
    assert abs(gap.train.mean()) < 0.01
    assert gap.verdict == "small"


def test_a_well_trained_encoder_has_a_small_gap():
    particles = _particles(6000)
    fit = pc.fit(_pair(), particles, steps=600, seeds=1)
    gap = pc.diagnose.amortisation_gap(fit, particles, steps=200, draws=16, most=96)
    assert gap.train.shape == (1, 96)
    assert -0.05 < gap.train.mean() < 0.5
    assert gap.verdict != "large"
    worse = pc.fit(_pair(), particles.take(np.arange(150)), steps=600, seeds=1)
    other = pc.diagnose.amortisation_gap(worse, particles, steps=200, draws=16, most=96)
    assert other.held_out.mean() > 3 * gap.held_out.mean()


def test_inferred_poses_get_numbers_of_their_own(pairs_in_time):
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), 32, pose=pc.poses.InPlane()
    )
    fit = pc.fit(pair, pairs_in_time, steps=60, seeds=1, batch_size=32)
    before = {name: value.clone() for name, value in fit.pairs[0].state_dict().items()}
    gap = pc.diagnose.amortisation_gap(fit, pairs_in_time, steps=60, most=32)
    assert gap.train.mean() > 0.5  # hardly trained, and four angles to get right
    assert all(torch.equal(before[n], v) for n, v in fit.pairs[0].state_dict().items())
    assert all(p.requires_grad for p in fit.pairs[0].encoder.parameters())


def test_gaps_that_cannot_be_measured():
    particles, pair = _particles(40), _pair()
    with pytest.raises(pc.InputError, match="no particle is held out of these 40"):
        pc.diagnose.amortisation_gap(pair, particles.take(np.arange(40)))
    with pytest.raises(pc.InputError, match="steps: expected a positive number, got 0"):
        pc.diagnose.amortisation_gap(pair, particles, steps=0)
    with pytest.raises(pc.InputError, match="rotation: these particles have no poses"):
        pc.diagnose.amortisation_gap(pair, particles.without("rotation"))
    volume = pc.volumes.Grid(dim=3, hidden=(8,))
    turning = pc.Pair(pc.priors.IsotropicNormal(2), volume, 16, pose=pc.poses.SO3())
    with pytest.raises(pc.InputError, match="pose: the gap is measured for poses that are known"):
        pc.diagnose.amortisation_gap(turning, particles)


# the lookup table


def test_a_lookup_table_is_a_guide(pairs_in_time, caplog):
    table = pc.guides.LookupTable(240, frames=2)
    pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), 32, guide=table)
    check_pair(pair, pairs_in_time)
    with caplog.at_level(logging.WARNING, "pyrocryo"):
        fit = pc.fit(pair, pairs_in_time, steps=4, seeds=2, capture=True, together=2)
    assert not caplog.records
    plain = pc.fit(pair, pairs_in_time, steps=4, seeds=2, capture=False)
    np.testing.assert_allclose(fit.history["loss"], plain.history["loss"], rtol=1e-4)
    post = pc.posterior(fit, pairs_in_time.train, draws=2)
    assert post["posterior"]["z"].shape == (2, 2, 216, 2, 2)


def test_rows_belong_to_particles_wherever_they_stand():
    particles = _particles(50)
    pair = _pair(guide=pc.guides.LookupTable(50)).eval()
    nn.init.normal_(pair.encoder.below)
    chosen = particles.take(np.array([30, 4]))
    with torch.no_grad():
        q = pair.posterior_of(chosen.batch(np.arange(2)))
    torch.testing.assert_close(q.loc, 20 * pair.encoder.loc[[30, 4]])
    torch.testing.assert_close(q.scale_tril[:, 1, 0], 20 * pair.encoder.below[[30, 4], 0])
    assert (q.scale_tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert not q.scale_tril[:, 0, 1].any()


def test_a_lookup_table_finds_the_exact_posterior():
    torch.manual_seed(3)
    box, n = 6, 40
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), Linear(), box, guide=pc.guides.LookupTable(n), noise=1.0
    )
    pair.volume.requires_grad_(False)
    x = torch.randn(n, box**2)
    particles = pc.Particles(
        x.unflatten(-1, (box, box)).numpy(), rotation=np.broadcast_to(np.eye(3), (n, 3, 3))
    )
    fit = pc.fit(pair, particles, steps=1500, batch_size=18)
    table = fit.pairs[0]
    w = table.volume.map.weight
    with torch.no_grad():
        q = table.posterior_of(particles.train.batch(np.arange(36)))
    covariance = torch.linalg.inv(torch.eye(2) + w.T @ w)
    sd = covariance.diagonal().sqrt()
    exact = (x @ w @ covariance)[particles.train.index]
    rotation = table.rotation().detach()
    assert (((q.mean @ rotation - exact) / sd).square().mean().sqrt()) < 0.15
    torch.testing.assert_close(
        (q.scale_tril @ q.scale_tril.mT).mean(0), covariance, rtol=0.1, atol=0.02
    )
    gap = pc.diagnose.amortisation_gap(fit, particles, steps=150)
    assert gap.train.mean() < 0.1
    assert gap.held_out.mean() > 10 * gap.train.mean()  # of those it knows nothing
    assert gap.verdict == "large"


def test_lookup_tables_that_do_not_fit(pairs_in_time):
    for bad in ({"n": 0}, {"n": 3, "frames": 0}, {"n": 3, "speed": 0.0}):
        with pytest.raises(pc.InputError, match="expected"):
            pc.guides.LookupTable(**bad)
    particles = _particles(50)
    with pytest.raises(pc.InputError, match="index: the lookup table has rows 0 to 29"):
        pc.fit(_pair(guide=pc.guides.LookupTable(30)), particles, steps=2)
    with pytest.raises(pc.InputError, match="frames: the lookup table was made for 2"):
        pc.fit(_pair(guide=pc.guides.LookupTable(50, frames=2)), particles, steps=2)
    twice = pc.Particles(particles.images, rotation=particles.rotation, index=np.zeros(50, int))
    with pytest.raises(pc.InputError, match="index: 50 particles would share 1 rows"):
        pc.fit(_pair(guide=pc.guides.LookupTable(50)), twice, steps=2)


def test_bars_of_ranks_far_from_uniform_stay_in_the_picture():
    from pyrocryo.diagnose import figures
    from pyrocryo.diagnose.sbc import Ranks

    ends = np.where(np.arange(400) % 2, 99, 0)[None, :, None]  # a guide without any width
    one = np.ones((1, 1))
    axes = figures.ranks(Ranks((0,), ("z1",), 99, ends, one, one, one, False, "")).axes[0]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > max(patch.get_data().values.max() for patch in axes.patches)
