import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import pyrocryo as pc
from pyrocryo.identify import ima_contrast, jacobian, plain
from pyrocryo.identify.supports import supports_of

BOX = 12


class Decoder(nn.Module):
    """Images that are any function of z, whatever the pose."""

    dim, side, numbers_an_image = 2, BOX, BOX**2

    def __init__(self, function):
        super().__init__()
        self.function = function

    def build(self, latent, box):
        return self

    def forward(self, z, rotation, shift):
        lead = torch.broadcast_shapes(z.shape[:-1], rotation.shape[:-2])
        return self.density(z.expand(*lead, -1))

    def density(self, z):
        return self.function(z).unflatten(-1, (BOX, BOX))

    def check(self, particles):
        pass


class Reading(nn.Module):
    """Reads z off the first pixels, with a known precision."""

    def __init__(self, sd=0.02):
        super().__init__()
        self.sd = sd

    def build(self, latent, box, volume):
        self.latent = latent
        return self

    def forward(self, images, rotation, shift):
        z = images.flatten(-2)[..., : self.latent]
        return z, torch.diag_embed(torch.full_like(z, self.sd))


def toy(function, k=2, n=300, sd=0.02, noise=1.0, frames=None):
    z = np.random.default_rng(0).standard_normal((n, k) if frames is None else (n, frames, k))
    images = np.zeros((*z.shape[:-1], BOX * BOX), dtype=np.float32)
    images[..., :k] = z
    particles = pc.Particles(images.reshape(*z.shape[:-1], BOX, BOX))
    pair = pc.Pair(
        pc.priors.IsotropicNormal(k),
        Decoder(function),
        BOX,
        pose=pc.poses.Absent(),
        guide=Reading(sd),
        noise=noise,
    )
    return pair, particles


def linear(a):
    return lambda z: z @ torch.as_tensor(a, dtype=z.dtype)


@pytest.fixture
def columns(rng):
    """Orthonormal images, `(3, pixels)`."""
    return np.linalg.qr(rng.standard_normal((BOX * BOX, 3)))[0].T


def test_a_linear_decoder_is_known_exactly(columns):
    pair, particles = toy(linear([[3.0], [5.0]] * columns[:2]), noise=0.5)
    found = jacobian(pair, particles)
    scale = particles.images.reshape(300, -1)[:, :2].std(axis=0)
    expected = scale * [3.0, 5.0] / 0.5
    np.testing.assert_allclose(found.strength[0], expected, rtol=0.01)
    np.testing.assert_allclose(found.singular_values[0], expected[::-1], rtol=0.01)
    assert found.condition[0, 0] == pytest.approx(expected[1] / expected[0], rel=0.01)
    assert found.rank[0] == found.global_rank[0] == 2
    assert found.ima[0] == pytest.approx(0, abs=1e-4)
    squares = expected**2
    c = squares.mean()
    off = math.sqrt(np.square(squares / c - 1).sum() / 2)
    assert found.isometry[0] == pytest.approx(off, rel=0.02)
    assert found.collisions[0].share == 0
    assert "can be inverted" in found.sentence
    assert "right angles" in found.sentence


def test_an_isometry_has_no_deviation(columns):
    pair, particles = toy(linear(5 * columns[:2]), n=2000, sd=1e-3)
    assert jacobian(pair, particles).isometry[0] < 0.1


def test_units_of_z_and_of_images_do_not_matter(columns):
    a = np.array([[3.0], [5.0]]) * columns[:2] + 0.5 * columns[2]
    one = jacobian(*toy(linear(a)))
    pair, particles = toy(linear(a), noise=2.0)
    pair.volume.function = lambda z: 2 * linear(a)(z)
    np.testing.assert_allclose(jacobian(pair, particles).strength, one.strength, rtol=1e-3)
    pair, particles = toy(linear(a / 7))
    particles.images[:, 0, :2] *= 7  # z in a seventh of the unit
    other = jacobian(pair, particles)
    np.testing.assert_allclose(other.strength, one.strength, rtol=0.01)
    assert other.ima[0] == pytest.approx(one.ima[0], abs=1e-3)


@pytest.mark.parametrize(("kappa", "expected"), [(1, 0.0), (4, 0.2231), (25, 0.9555)])
def test_ima_contrast_of_turned_stiffnesses(columns, kappa, expected):
    """A 45° turn of two orthogonal motions with stiffnesses 1 : κ."""
    half = math.sqrt(0.5)
    turned = np.array([[half, half], [-half, half]]) @ ([[8.0], [8 * kappa**-0.5]] * columns[:2])
    gram = torch.tensor(turned @ turned.T)
    assert ima_contrast(gram).item() == pytest.approx(expected, abs=1e-4)
    assert ima_contrast(torch.diag(torch.tensor([1.0, kappa]))) == 0
    found = jacobian(*toy(linear(turned)))
    assert found.ima[0] == pytest.approx(expected, abs=2e-3)
    assert ("at right angles" in found.sentence) == (kappa == 1)


def test_ima_contrast_of_flows_that_keep_the_energy():
    """Hamiltonian flows of a double well and a quartic, samples at τ = 1; the notes' maps have
    .39, .96 and 1.80 nats at times .2, .6 and 1.2, for energies much like these."""

    def force(z):
        return torch.stack([4 * z[..., 1] ** 3, -4 * z[..., 0] * (z[..., 0] ** 2 - 1)], -1)

    def flow(z, time, steps=120):
        h = time / steps
        for _ in range(steps):  # Runge-Kutta
            a = force(z)
            b = force(z + h / 2 * a)
            c = force(z + h / 2 * b)
            z = z + h / 6 * (a + 2 * b + 2 * c + force(z + h * c))
        return z

    axis = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    z = []
    for energy in ((axis**2 - 1) ** 2, axis**4):
        mass = torch.cumsum((-energy).exp(), 0)
        places = torch.rand(2000, dtype=torch.float64)
        z.append(axis[torch.searchsorted(mass / mass[-1], places).clamp_max(6000)])
    z = torch.stack(z, -1)
    found = []
    for time in (0.2, 0.6, 1.2):
        steps = 1e-5 * torch.eye(2, dtype=z.dtype)
        slopes = torch.stack([(flow(z + h, time) - flow(z - h, time)) / 2e-5 for h in steps], -1)
        assert torch.linalg.det(slopes).sub(1).abs().median() < 1e-4  # volume is kept
        found.append(ima_contrast(slopes.mT @ slopes).mean().item())
    assert found == pytest.approx([0.39, 0.96, 1.80], abs=0.12)


def test_a_dead_latent_is_named(columns):
    pair, particles = toy(linear([[3.0], [1e-3], [5.0]] * columns), k=3)
    found = jacobian(pair, particles)
    assert found.dead.tolist() == [[False, True, False]]
    assert found.rank[0] == 2
    assert found.redundant[0] == 0
    assert found.ima[0] == pytest.approx(0, abs=1e-3)
    assert "z2 is dead (one sd changes an image by 0.00" in found.sentence


def test_two_latents_for_one_motion_are_named(columns):
    a = np.stack([3 * columns[0], 4 * columns[1], 5 * columns[0]])
    found = jacobian(*toy(linear(a), k=3))
    assert not found.dead.any()
    assert found.rank[0] == found.global_rank[0] == 2
    assert found.redundant[0] == 1
    assert found.condition[0, 0] > 1e3
    assert found.ima[0] > 4
    assert "z1 and z3 are one motion" in found.sentence


def test_a_decoder_that_sees_the_length_of_z_is_redundant_everywhere(columns):
    pair, particles = toy(lambda z: linear(6 * columns[:1])(z.square().sum(-1, keepdim=True)))
    found = jacobian(pair, particles)
    assert found.rank[0] == 1
    assert found.global_rank[0] == 2  # no direction is still everywhere
    assert found.redundant[0] == 1


def test_a_fold_has_doubles(columns):
    def folded(z):
        return linear(10 * columns[:2])(torch.stack([z[..., 0].square(), z[..., 1]], -1))

    pair, particles = toy(folded)
    found = jacobian(pair, particles.take(np.arange(299, -1, -1))).collisions[0]
    assert found.share > 0.6
    assert found.differ < 1
    assert found.apart > 0.5
    assert "double" in jacobian(*toy(folded)).sentence
    z = toy(folded)[1].images.reshape(300, -1)[:, :2]
    i, j = found.pair
    assert z[i, 0] * z[j, 0] < 0
    assert np.abs(z[i] ** 2 - z[j] ** 2)[0] < 0.2


@pytest.mark.parametrize("k", [2, 4])
def test_doubles_are_found_where_particles_are_few(rng, k):
    """None of 60 particles has its double in the sample, the search goes on from the closest."""
    a = 40 * np.linalg.qr(rng.standard_normal((BOX * BOX, k)))[0].T

    def folded(z):
        return linear(a)(torch.cat([z[..., :1].square(), z[..., 1:]], -1))

    few = jacobian(*toy(folded, k=k, n=60)).collisions[0]
    assert few.pair is None
    assert few.share > 0.4
    straight = jacobian(*toy(linear(a), k=k, n=60)).collisions[0]
    assert straight.share == 0


def test_broad_posteriors_are_no_collisions(columns):
    """Images that tell little of z have both conformations in their posterior."""
    found = jacobian(*toy(linear(0.5 * columns[:2]), sd=0.9)).collisions[0]
    assert found.share == 0


def test_the_rotation_layer_is_looked_through(columns):
    """z = R u: what counts is z as it is reported."""
    pair, particles = toy(linear([[3.0], [9.0]] * columns[:2]), sd=0.01)
    with torch.no_grad():
        pair.rotation.angle.fill_(math.pi / 4 / 5)
    assert torch.allclose(pair.rotation()[0, 0], torch.tensor(0.5).sqrt())
    found = jacobian(pair, particles)
    assert found.ima[0] == pytest.approx(0.5 * math.log((1 + 9) ** 2 / 36), abs=0.05)
    assert found.strength[0] == pytest.approx([math.sqrt(45)] * 2, rel=0.1)


def test_a_faint_latent_is_named(columns):
    found = jacobian(*toy(linear([[0.4], [5.0]] * columns[:2])))
    assert not found.dead.any()
    assert "one image hardly tells z1 (0.4 sd of the noise)" in found.sentence


class Spinning:
    """Five atoms in a row; z1 bends the row, z2 turns it as a whole."""

    dim, spatial = 2, 2
    width, weight = torch.full((5,), 4.0), torch.ones(5)

    def centres(self, z):
        x = torch.linspace(-12, 12, 5).to(z) * torch.ones_like(z[..., :1])
        y = 3 * z[..., :1] * (x / 12) ** 2
        c, s = (0.3 * z[..., 1:]).cos(), (0.3 * z[..., 1:]).sin()
        return torch.stack([c * x - s * y, s * x + c * y, torch.zeros_like(y)], dim=-1)


@pytest.mark.parametrize("pose", [pc.poses.InPlane(), pc.poses.Absent()])
def test_a_latent_that_is_a_pose_is_named(pose):
    _, particles = toy(None, n=60)
    particles = pc.Particles(particles.images, pixel_size=3.0)
    volume = pc.volumes.Atoms.known(Spinning(), pixel_size=3.0)
    prior = pc.priors.IsotropicNormal(2)
    pair = pc.Pair(prior, volume, BOX, pose=pose, guide=Reading(), rotate=False).eval()
    found = jacobian(pair, particles)
    if not pair.pose.latent:
        assert np.isnan(found.turning).all()
        assert "turns the molecule" not in found.sentence
        return
    assert found.turning[0, 0] < 0.3
    assert found.turning[0, 1] > 0.99
    assert "z2 mostly turns the molecule, as poses do" in found.sentence


def test_turns_in_space_are_three(rng):
    """A rigid body whose latents turn it about two axes."""

    class Body:
        dim, spatial = 2, 3
        width, weight = torch.full((6,), 4.0), torch.ones(6)
        at = torch.as_tensor(rng.standard_normal((6, 3)) * 6, dtype=torch.float32)

        def centres(self, z):
            v = torch.cat([0.2 * z, 0 * z[..., :1]], -1)
            turn = pc.quaternions.matrix(pc.quaternions.exponential(v))
            return self.at.to(z) @ turn.transpose(-1, -2)

    _, particles = toy(None, n=16)
    rotation = pc.rotations.random_in_space((16,), rng)
    particles = pc.Particles(particles.images, pixel_size=3.0, rotation=rotation)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2),
        pc.volumes.Atoms.known(Body(), pixel_size=3.0),
        BOX,
        pose=pc.poses.SO3(around=5.0),
        guide=Reading(),
        rotate=False,
    )
    assert (jacobian(pair.eval(), particles).turning > 0.99).all()


def test_frames_are_images(columns):
    pair, particles = toy(linear([[3.0], [5.0]] * columns[:2]), n=100, frames=3)
    found = jacobian(pair, particles)
    assert found.strength[0] == pytest.approx([3, 5], rel=0.1)
    assert found.collisions[0].share == 0


def test_anchors_are_what_one_latent_moves_alone():
    disjoint = torch.tensor([[1.0, 1, 0, 0], [0, 0, 2, 1]])
    sparse = supports_of(disjoint)
    assert sparse.anchored.all()
    assert sparse.share.tolist() == [0.5, 0.5]
    assert sparse.alone.tolist() == [1, 1]
    nested = supports_of(torch.tensor([[1.0, 1, 0, 0], [1, 1, 3, 1]]))
    assert nested.anchored.tolist() == [False, True]
    assert nested.apart[1, 0] == pytest.approx(4 / 6)
    dense = supports_of(torch.rand(3, 4000).add(0.1))
    assert not dense.anchored.any()
    # Zheng's condition, not Moran's: nothing is moved by one alone, yet pairs tell them apart
    ring = supports_of(torch.tensor([[1.0, 0, 1], [1, 1, 0], [0, 1, 1]]))
    assert ring.anchored.all()
    assert ring.alone.tolist() == [0, 0, 0]


def test_random_motions_of_everything_are_dense(rng):
    assert not supports_of(torch.as_tensor(rng.standard_normal((3, 2000)) ** 2)).anchored.any()


class Hinges:
    """Ten atoms in a row; two latents move either the two ends or all of it."""

    dim, spatial = 2, 2
    width, weight = torch.full((10,), 4.0), torch.ones(10)

    def __init__(self, sparse):
        self.sparse = sparse

    def centres(self, z):
        x = torch.linspace(-12, 12, 10).to(z)
        left = z[..., :1] if self.sparse else z[..., :1] + z[..., 1:]
        right = z[..., 1:] if self.sparse else z[..., :1] - z[..., 1:]
        y = torch.cat([3 * left.expand(*z.shape[:-1], 5), 3 * right.expand(*z.shape[:-1], 5)], -1)
        return torch.stack([x.expand_as(y), y, torch.zeros_like(y)], dim=-1)


@pytest.mark.parametrize("sparse", [True, False])
def test_atoms_moved_apart_or_together(sparse):
    _, particles = toy(None, n=100)
    particles = pc.Particles(particles.images, pixel_size=3.0)
    volume = pc.volumes.Atoms.known(Hinges(sparse), pixel_size=3.0)
    prior = pc.priors.IsotropicNormal(2)
    pair = pc.Pair(prior, volume, BOX, pose=pc.poses.Absent(), guide=Reading(), rotate=False)
    found = jacobian(pair, particles)
    parts = found.supports[0]
    assert parts.what == "atoms"
    assert parts.share == pytest.approx([0.5, 0.5] if sparse else [1, 1])
    assert parts.anchored.all() == sparse
    assert ("sparse enough" in found.sentence) == sparse


@pytest.mark.parametrize(
    "volume",
    [
        pc.volumes.Grid(),
        pc.volumes.Implicit(hidden=(16,)),
        pc.volumes.Atoms(pixel_size=3.0, count=12),
        pc.volumes.Grid(3, side=10),
        pc.volumes.Grid(3, side=10, projector="fourier"),
        pc.volumes.Implicit(3, side=10, hidden=(16,)),
        pc.volumes.ImplicitFourier(3, side=10, hidden=(16,)),
        pc.volumes.Atoms(pixel_size=3.0, dim=3, count=12, side=10),
    ],
    ids=lambda v: f"{type(v).__name__}{v.dim}",
)
def test_every_volume_can_be_looked_at(volume, rng):
    images = rng.standard_normal((24, BOX, BOX)).astype(np.float32)
    rotation = pc.rotations.random_in_plane((24,), rng)
    particles = pc.Particles(images, rotation=rotation, pixel_size=3.0)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, BOX).eval()
    found = jacobian(pair, particles)
    for value in (found.strength, found.singular_values, found.ima, found.isometry):
        assert np.isfinite(value).all()
    assert found.supports[0].apart.shape == (2, 2)


def test_coloured_noise_and_ctf_are_in_the_unit(rng):
    """A frequency under ten times the noise counts a tenth."""
    spectrum = np.array([100.0] * 2 + [1.0] * 5)
    likelihood = pc.noise.Gaussian(spectrum)
    pair, particles = toy(None)
    wave = np.cos(2 * np.pi * np.arange(BOX) / BOX * np.array([[1.0], [4.0]]))  # waves a box
    flat = np.repeat(wave[:, None], BOX, axis=1).reshape(2, -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2),
        Decoder(linear(5 * flat)),
        BOX,
        pose=pc.poses.Absent(),
        guide=Reading(),
        likelihood=likelihood,
        noise=1.0,
    )
    strength = jacobian(pair, particles).strength[0]
    assert strength[1] / strength[0] == pytest.approx(10, rel=0.1)


def test_poses_and_shifts_in_space():
    told = {"box": 16, "pixel_size": 6.0}
    particles = pc.simulate.poses(pc.molecules.AdenylateKinase(), n=24, seed=0, **told)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2),
        pc.volumes.Grid(3, side=12),
        16,
        pose=pc.poses.SO3(around=5.0, shift_sd=3.0),
    )
    found = jacobian(pair.eval(), particles)
    assert np.isfinite(found.strength).all()
    assert ((found.turning >= 0) & (found.turning <= 1)).all()


def test_through_a_microscope():
    """Frames of different CTF and contrast; the CTF takes some of the signal."""
    told = {"box": 16, "pixel_size": 6.0, "ctf": True}
    particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=24, seed=0, **told)
    kind = {"volume": pc.volumes.Grid(), "box": 16, "pose": pc.poses.InPlane(), "noise": 1.0}
    prior = pc.priors.LaplaceTransition(2, 2.0)
    optics = {"optics": pc.optics.CTF(), "likelihood": pc.noise.Gaussian(contrast=0.1)}
    pair, clear = pc.Pair(prior, **kind, **optics).eval(), pc.Pair(prior, **kind).eval()
    clear.load_state_dict(pair.state_dict(), strict=False)
    seen, known = jacobian(pair, particles), jacobian(clear, particles)
    assert np.isfinite(seen.ima).all()
    assert (seen.strength < known.strength).all()


def test_seeds_are_told_apart(pairs_in_time):
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0),
        pc.volumes.Grid(),
        pairs_in_time.box,
        pose=pc.poses.InPlane(),
    )
    fit = pc.fit(pair, pairs_in_time, steps=5, seeds=2)
    found = jacobian(fit, pairs_in_time.test)
    assert found.strength.shape == found.dead.shape == (2, 2)
    assert found.condition.shape == (2, 2)
    assert len(found.sentences) == len(found.collisions) == len(found.supports) == 2
    assert found.sentence.startswith("in ")
    told = json.loads(json.dumps(plain(found)))
    assert told["rank"] == found.rank.tolist()
    assert len(told["supports"][1]["apart"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"particles": p.take([0, 1])}, "expected at least 8, got 2"),
        (lambda p: {"particles": p, "most": 3}, "most: expected at least 8, got 3"),
    ],
)
def test_too_little_is_named(columns, change, message):
    pair, particles = toy(linear(columns[:2]))
    with pytest.raises(pc.InputError, match=message):
        jacobian(pair, **change(particles))


def test_too_many_latents_are_refused():
    with pytest.raises(pc.InputError, match="at most 10 latents, got 11"):
        jacobian(*toy(None, k=11))
