"""A trained pair as ground truth: what it shows, in which units, and whether it is invertible."""

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.diagnose import Generator, invertibility

SIZE = {"box": 20, "pixel_size": 4.8}


@pytest.fixture(scope="module")
def particles():
    return pc.simulate.poses(pc.molecules.TwoArms(), 1500, 0, snr=2.5, **SIZE)


@pytest.fixture(scope="module")
def trained(particles):
    guide = pc.guides.Amortised((64, 32))
    pair = pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(), 20, guide=guide)
    return pc.fit(pair, particles, steps=700, batch_size=32, progress=False)


@pytest.fixture(scope="module")
def learned(trained, particles):
    return Generator(trained, particles)


@pytest.fixture(scope="module")
def verdict(learned, particles):
    return invertibility(learned, particles, most=60, steps=60)


def test_it_renders_what_the_pair_sees(learned, trained, particles):
    batch, pair = particles.batch(np.arange(7)), trained.pairs[0]
    with torch.no_grad():
        z = pair.posterior_of(batch).mean
        seen = pair.seen(z, batch)
        shown = learned.render(learned.standard(z), batch.rotation, batch.shift, **SIZE)
    torch.testing.assert_close(shown, seen, rtol=1e-4, atol=1e-4)


def test_the_rotation_layer_is_inside(learned):
    pair = Generator.__new__(Generator)
    pair.__dict__ = dict(vars(learned))
    pair.pair = type(learned.pair).__deepcopy__(learned.pair, {})
    pair.pair.rotation.angle.data.fill_(0.1)  # 28.6°
    s = torch.randn(5, 2)
    where = torch.eye(3).expand(5, 3, 3), torch.zeros(5, 2)
    turned = learned.standard(learned.learned(s) @ pair.pair.rotation())
    torch.testing.assert_close(
        pair.render(s, *where, **SIZE), learned.render(turned, *where, **SIZE), atol=1e-4, rtol=0
    )


def test_z_is_in_units_of_the_posterior(learned, trained, particles):
    with torch.no_grad():
        law = trained.pairs[0].posterior_of(particles.batch(np.arange(len(particles))))
        draws = torch.cat([law.sample().flatten(0, -2) for _ in range(20)])
    s = learned.standard(draws)
    torch.testing.assert_close(s.mean(0), torch.zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(s.std(0), torch.ones(2), atol=0.03, rtol=0)
    torch.testing.assert_close(learned.learned(s), draws, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["poses", "time_resolved", "temperature", "tilt_pairs"])
def test_what_takes_a_molecule_takes_it(kind, learned):
    drawn = getattr(pc.simulate, kind)(learned, 50, 3, **learned.imaging)
    assert drawn.truth.shape[-1] == 2
    assert np.abs(drawn.truth).max() <= 3
    # images in the brightness of the noise that the pair has learned
    z, rotation, shift = (
        torch.as_tensor(drawn.fields[name].reshape(-1, *tail))
        for name, tail in (("truth", (2,)), ("rotation", (3, 3)), ("shift", (2,)))
    )
    clean = learned.render(z, rotation, shift, **SIZE)
    noise = drawn.images.reshape(clean.shape) - clean.numpy() / learned.pair.noise.item()
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_it_can_be_intervened_in(learned, trained):
    drawn = pc.simulate.poses(learned, 200, 0, **learned.imaging)
    sampler, encode = pc.diagnose.simulator(trained, learned, drawn)
    z = sampler(300, {}, np.random.default_rng(0))
    codes = encode(z)[0]
    assert pc.metrics.r2(z, codes).value > 0.8


def test_a_volume_in_space():
    molecule = pc.molecules.Arms3D(2)
    particles = pc.simulate.poses(molecule, 60, 0, box=16, pixel_size=6.0)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(dim=3, side=12), 16)
    learned = Generator(pc.fit(pair, particles, steps=3, progress=False), particles)
    assert learned.spatial == 3
    again = pc.simulate.poses(learned, 20, 0, **learned.imaging)
    assert (again.rotation[:, 2, 2] < 0.9).any()


def test_a_good_pair_is_invertible(verdict):
    assert verdict.passed
    assert verdict.inverted.min() > 0.95
    assert verdict.collisions == 0
    assert (verdict.noisy <= verdict.encoded + 0.01).all()
    assert verdict.mcc > 0.8
    assert verdict.sentence.startswith("Invertible: ")


def test_a_dead_component_is_not(learned, particles):
    dead = Generator(learned.pair, particles)
    with torch.no_grad():
        first = next(dead.pair.volume.network.parameters())
        first[:, 1] = 0  # the decoder no longer looks at it
    found = invertibility(dead, particles, most=60, steps=60)
    assert not found.passed
    assert found.inverted[0] > 0.9
    assert found.inverted[1] < 0.3
    assert found.collisions > 0.2
    assert found.sentence.startswith("Not invertible: ")


def test_a_fold_is_not(learned, particles):
    folded = Generator(learned.pair, particles)
    network = folded.pair.volume.network
    network.register_forward_pre_hook(
        lambda _, given: (torch.stack([given[0][..., 0].abs(), given[0][..., 1]], dim=-1),)
    )
    found = invertibility(folded, particles, most=60, steps=60)
    assert not found.passed
    assert found.inverted[0] < 0.5
    assert found.collisions > 0.15


def test_bad_input(learned, trained, particles):
    where = torch.eye(3).expand(4, 3, 3), torch.zeros(4, 2)
    with pytest.raises(pc.InputError, match="known in 20 pixels of 4.8 Å, not in 32 of 3 Å"):
        learned.render(torch.zeros(4, 2), *where, box=32, pixel_size=3.0)
    with pytest.raises(pc.InputError, match="z: expected 2 numbers"):
        learned.render(torch.zeros(4, 3), *where, **SIZE)
    with pytest.raises(pc.InputError, match="expected at least 1, got 0 and 100"):
        invertibility(learned, particles, starts=0)
    with pytest.raises(pc.InputError, match="expected at least 8, got 5"):
        invertibility(learned, particles.take(range(5)))
    with pytest.raises(pc.InputError, match="the fit has seeds 0, not 4"):
        Generator(trained, particles, seed=4)
    blind = pc.Pair(pc.priors.IsotropicNormal(3), pc.volumes.Grid(), 20, pose=pc.poses.Absent())
    with pytest.raises(pc.InputError, match="a pair without poses"):
        Generator(blind, particles)
