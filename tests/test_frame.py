import math

import numpy as np
import pytest
import torch
from torch import nn

import pyrocryo as pc
from pyrocryo.identify import frame
from pyrocryo.identify.point_group import axes_of, folds, folds_about, highest
from pyrocryo.imaging import splat, splat_map

BOX = 32


class Reading(nn.Module):
    """Reads z off the first pixels."""

    def build(self, latent, box, volume):
        self.latent = latent
        return self

    def forward(self, images, rotation, shift):
        z = images.flatten(-2)[..., : self.latent].expand(*rotation.shape[:-2], self.latent)
        return z, torch.diag_embed(torch.full_like(z, 0.05))


class Spinning:
    """Two arms that turn as a whole by α(z), as a learned molecule may."""

    dim, spatial = 2, 2

    def __init__(self, alpha):
        self.arms = pc.molecules.TwoArms()
        self.width, self.weight = self.arms.width, self.arms.weight
        self.alpha = alpha

    def centres(self, z):
        flat = self.arms.centres(z)
        c, s = self.alpha(z).cos()[..., None], self.alpha(z).sin()[..., None]
        x, y = flat[..., 0], flat[..., 1]
        return torch.stack([c * x - s * y, s * x + c * y, torch.zeros_like(x)], dim=-1)


def fitted(*pairs):
    """A fit of pairs that need no training."""
    return pc.svi.Fit(
        list(pairs), tuple(range(len(pairs))), {}, pc.svi.Settings(), 0, True, (), {}
    )


def spinning(alpha, pose=None, n=400):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n, 2)).clip(-2.5, 2.5)
    images = np.zeros((n, BOX, BOX), dtype=np.float32)
    images[:, 0, :2] = z
    particles = pc.Particles(
        images, pixel_size=3.0, rotation=pc.rotations.random_in_plane((n,), rng)
    )
    volume = pc.volumes.Atoms.known(Spinning(alpha), pixel_size=3.0)
    prior, guide = pc.priors.IsotropicNormal(2), Reading()
    pair = pc.Pair(
        prior, volume, BOX, pose=pose or pc.poses.InPlane(), guide=guide, rotate=False, noise=1.0
    )
    return pair.eval(), particles, z


def test_a_planted_turn_is_found():
    def alpha(z):
        return 0.5 * z[..., 0] - 0.1 * z[..., 1] + 0.05 * z[..., 0] ** 3

    pair, particles, z = spinning(alpha)
    found = frame(fitted(pair), particles)
    truth = np.rad2deg(alpha(torch.as_tensor(z)).numpy())
    assert found.poses == "in the plane"
    assert found.alpha_sd_deg[0] == pytest.approx(truth.std(), rel=0.15)
    span = np.subtract(*np.quantile(truth, [0.95, 0.05]))
    assert found.alpha_range_deg[0] == pytest.approx(span, rel=0.15)
    expected = np.rad2deg([2 * (0.5 + 0.05), -2 * 0.1])
    np.testing.assert_allclose(found.alpha_by_latent_deg[0], expected, atol=5)
    assert "most with z1" in found.sentence
    assert "fix it by a reference body" in found.sentence


def test_a_frame_that_stays_is_told():
    pair, particles, _ = spinning(lambda z: 0 * z[..., 0])
    found = frame(fitted(pair, pair), particles)
    assert found.alpha_sd_deg.shape == (2,)
    assert (found.alpha_sd_deg < 3).all()
    assert "hardly turns" in found.sentence
    assert found.symmetry.tolist() == [1, 1]
    assert "no symmetry" in found.sentence


def test_known_poses_leave_nothing_free():
    pair, particles, _ = spinning(lambda z: z[..., 0], pose=pc.poses.Known())
    found = frame(fitted(pair), particles)
    assert found.alpha_sd_deg is found.error_deg is None
    assert "no frame to find" in found.sentence
    pair, particles, _ = spinning(lambda z: z[..., 0], pose=pc.poses.Absent())
    assert "has no poses" in frame(fitted(pair), particles).sentence


def test_few_particles_do_not_tell():
    pair, particles, _ = spinning(lambda z: z[..., 0], n=20)
    found = frame(fitted(pair), particles)
    assert found.alpha_sd_deg is None
    assert "too few particles to find it" in found.sentence
    with pytest.raises(pc.InputError, match="at least 8, got 3"):
        frame(fitted(pair), particles.take([0, 1, 2]))
    with pytest.raises(pc.InputError, match="fit: expected a Fit, got Pair"):
        frame(pair, particles)


class KnownPoses(nn.Module):
    """Says poses that are right but for α(z), which it is told by the images."""

    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha

    def build(self, box):
        return self

    def forward(self, images, shift):
        from pyrocryo.directions import PlanarNormal
        from pyrocryo.poses import turned

        flat = images.flatten(-2)
        return PlanarNormal(1000 * turned(flat[..., 2:4], self.alpha(flat[..., :2])))


def test_pose_errors_with_and_without_the_frame():
    def alpha(z):
        return 0.4 * z[..., 0]

    pair, particles, z = spinning(alpha)
    images = particles.images.copy()
    images[:, 0, 2:4] = particles.rotation[:, :2, 0]
    particles = pc.Particles(images, pixel_size=3.0, rotation=particles.rotation)
    pair.pose_encoder = KnownPoses(lambda z: -alpha(z))  # the volume turns the other way
    found = frame(fitted(pair), particles)
    typical = np.median(np.abs(np.rad2deg(0.4 * z[:, 0])))
    assert found.error_deg[0] == pytest.approx(typical, rel=0.2)
    assert found.error_frame_deg[0] < 0.1
    assert "after one for each conformation" in found.sentence
    fixed = frame(pc.frames.reference_body(fitted(pair), particles), particles)
    assert fixed.fixed
    assert fixed.error_deg[0] < 0.3 * typical
    assert "a reference body fixes it" in fixed.sentence


def _ring(n):
    """An asymmetric unit, n times around the centre."""
    unit = torch.tensor([[4.0, 0.0], [7.0, 1.5], [9.0, -2.0]])
    angle = 2 * math.pi * torch.arange(n) / n
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    x, y = unit.T
    return torch.stack([c * x - s * y, s * x + c * y], dim=-1).flatten(0, 1)


@pytest.mark.parametrize("n", range(1, 9))
def test_symmetry_of_flat_maps(n):
    places = _ring(n)
    told = {"box": BOX, "pixel_size": 1.0}
    image = splat(places, torch.full((3 * n,), 1.2), torch.ones(3 * n), **told)
    assert highest(folds(image)) == n
    noisy = image + 0.1 * image.std() * torch.randn(BOX, BOX)
    assert highest(folds(noisy)) == n
    if n > 1:
        broken = splat(places, torch.full((3 * n,), 1.2), torch.arange(3.0 * n), **told)
        assert highest(folds(broken)) == 1


def test_round_maps_and_arms():
    blob = splat(torch.zeros(1, 2), torch.tensor([4.0]), torch.ones(1), box=BOX, pixel_size=1.0)
    assert highest(folds(blob)) == 0
    for molecule in (pc.molecules.TwoArms(), pc.molecules.Arms(4)):
        places = molecule.centres(torch.zeros(molecule.dim))[:, :2] / 3
        image = splat(places, molecule.width / 3, molecule.weight, box=BOX, pixel_size=1.0)
        assert highest(folds(image)) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_symmetry_of_solid_maps(n, rng):
    solid = torch.cat([_ring(n), torch.tensor([[-2.0], [0.0], [3.0]]).repeat(n, 1)], dim=1)
    q = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    places = (solid.double() @ torch.as_tensor(q.T)).float()
    width, height = torch.full((3 * n,), 1.5), torch.ones(3 * n)
    density = splat_map(places, width, height, side=28, voxel_size=1.0).double().numpy()
    axes = axes_of(density)
    found = [highest(folds_about(density, axis)) for axis in axes]
    assert max(found) == n
    if n > 1:
        assert abs(axes[int(np.argmax(found))] @ q[:, 2]) > 0.99


def test_a_symmetric_molecule_is_named():
    class Ring:
        dim, spatial = 2, 2
        width, weight = torch.full((9,), 4.0), torch.ones(9)

        def centres(self, z):
            flat = 3 * _ring(3).to(z) * (1 + 0.05 * z[..., None, :1])
            return torch.cat([flat, torch.zeros_like(flat[..., :1])], dim=-1)

    _, particles, _ = spinning(lambda z: z[..., 0])
    images, rng = particles.images.copy(), np.random.default_rng(1)
    angle = pc.metrics.in_plane_angle(particles.rotation)
    angle = angle + 2 * np.pi / 3 * rng.integers(3, size=len(angle))  # none of them is wrong
    images[:, 0, 2:4] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    particles = pc.Particles(images, pixel_size=3.0, rotation=particles.rotation)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2),
        pc.volumes.Atoms.known(Ring(), pixel_size=3.0),
        BOX,
        pose=pc.poses.InPlane(),
        guide=Reading(),
    )
    pair.pose_encoder = KnownPoses(lambda z: 0 * z[..., 0])
    found = frame(fitted(pair), particles)
    assert found.error_deg[0] < 0.1
    assert found.symmetry.tolist() == [3]
    assert found.symmetry_correlation[0, 1] > 0.95
    assert "the symmetry C3, poses are free by 120°" in found.sentence


def test_rotations_in_space(rng):
    images = rng.standard_normal((60, 16, 16)).astype(np.float32)
    rotation = pc.rotations.random_in_space((60,), rng)
    particles = pc.Particles(images, rotation=rotation, truth=rng.standard_normal((60, 2)))
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2),
        pc.volumes.Grid(3, side=12),
        16,
        pose=pc.poses.SO3(around=5.0),
    )
    found = frame(fitted(pair.eval()), particles)
    assert found.poses == "in space"
    assert found.alpha_sd_deg is None
    assert found.error_deg[0] < 30  # untrained, but around the poses given
    assert found.error_frame_deg is None  # too few for α(z)
    assert "no tool here finds it" in found.sentence
    assert found.symmetry_correlation.shape == (1, 7)
