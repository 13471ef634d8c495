"""Modes of posteriors against what is known of them."""

import math

import numpy as np
import pytest
import torch
from toys import Written

import pyrocryo as pc
from pyrocryo.peaks import modes

NOISE = 0.4


class Bent(Written):
    """Images that hold `z` and its cubes in their first pixels."""

    def __init__(self, bend):
        super().__init__()
        self.bend = bend

    def forward(self, z, rotation, shift):
        image = z.new_zeros(*z.shape[:-1], 8, 8)
        image[..., 0, :2] = self.gain * (z + self.bend * z**3)
        return image


def _particles(n=30, bend=0.0):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n, 2))
    images = NOISE * rng.standard_normal((n, 8, 8))
    images[:, 0, :2] += z + bend * z**3
    rotation = pc.rotations.random_in_plane((n,), rng)
    return pc.Particles(images.astype(np.float32), rotation=rotation, truth=z)


def _pair(bend=0.0):
    torch.manual_seed(0)
    return pc.Pair(
        pc.priors.IsotropicNormal(2), Bent(bend), 8, guide=pc.guides.Amortised((8,)),
        noise=NOISE, rotate=False,
    )  # fmt: skip


def test_of_a_normal_posterior_whatever_the_guide():
    particles = _particles()
    found = modes(_pair(), particles)
    x = particles.raw(np.arange(30))[:, 0, :2]
    np.testing.assert_allclose(found.z, x / (1 + NOISE**2), atol=2e-4)
    np.testing.assert_allclose(found.sd, NOISE / math.sqrt(1 + NOISE**2), rtol=2e-3)
    assert found.found.all()
    assert found.pose is found.shift is None
    assert found.off.max() > 0.5  # the guide was not trained


def test_of_a_skewed_posterior_against_a_grid():
    particles = _particles(bend=0.3)
    found = modes(_pair(0.3), particles, index=[3, 4, 8])
    x = particles.raw(np.array([3, 4, 8]))[:, 0, :2].astype(float)
    grid = np.linspace(-4, 4, 80001)
    seen = (x[..., None] - grid - 0.3 * grid**3) / NOISE
    energy = 0.5 * (seen**2 + grid**2)
    np.testing.assert_allclose(found.z, grid[energy.argmin(-1)], atol=2e-3)
    blank = 0.5 * (particles.raw(np.array([3, 4, 8])).astype(float) / NOISE) ** 2
    blank[:, 0, :2] = 0
    size = 64 * math.log(NOISE) + 33 * math.log(2 * math.pi)
    expected = -energy.min(-1).sum(-1) - blank.sum((1, 2)) - size
    np.testing.assert_allclose(found.log_joint, expected, rtol=1e-5)
    assert found.index.tolist() == [3, 4, 8]


@pytest.fixture(scope="module")
def turning():
    """Two arms at unknown angles, decoded as they are, read by an encoder that knows nothing."""
    molecule = pc.molecules.TwoArms()
    particles = pc.simulate.poses(molecule, 40, seed=0, snr=3.0, box=16, pixel_size=6.0)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), pc.volumes.Atoms.known(molecule, pixel_size=6.0), 16,
        pose=pc.poses.InPlane(), noise=1.0, rotate=False,
    )  # fmt: skip
    return pair.eval(), particles


def test_no_neighbour_is_more_probable(turning):
    pair, particles = turning
    found = modes(pair, particles, steps=25)
    assert found.found.mean() > 0.6
    np.testing.assert_allclose(np.linalg.norm(found.pose, axis=-1), 1.0, rtol=1e-5)
    rng = np.random.default_rng(0)
    batch = pair.moved(particles.batch(np.arange(40)))

    def log_joint(z, pose):
        z, pose = (torch.as_tensor(a, dtype=torch.float32) for a in (z, pose))
        with torch.no_grad():
            seen = pair._law(pair.seen(z, batch, pose, None, None)).log_prob(batch.images)
            return (seen.sum((-1, -2)) - 0.5 * z.square().sum(-1)).numpy()

    best = log_joint(found.z, found.pose)
    for _ in range(10):
        angle = 0.05 * rng.standard_normal(40)
        c, s, (x, y) = np.cos(angle), np.sin(angle), found.pose.T
        near = log_joint(
            found.z + 0.05 * rng.standard_normal((40, 2)),
            np.stack([c * x - s * y, s * x + c * y], 1),
        )
        assert (near < best + 1e-3)[found.found].all()


def test_what_cannot_be(turning):
    pair, particles = turning
    with pytest.raises(pc.InputError, match="fit: expected a Fit or a Pair"):
        modes(None, particles)
    with pytest.raises(pc.InputError, match="index: expected rows from 0 to 39"):
        modes(pair, particles, index=[40])
    with pytest.raises(pc.InputError, match="steps: expected at least 1"):
        modes(pair, particles, steps=0)
