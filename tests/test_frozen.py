"""The thought experiment's guide: cold particles are encoded without the frozen components."""

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

import pyrocryo as pc

COLD = {300.0: (1.0, 1.0), 180.0: (1.0, 0.1)}
PRIOR = {300.0: (1.0, 1.0), 180.0: (1.0, 1e-2)}


@pytest.fixture(scope="module")
def particles():
    return pc.simulate.temperature(
        pc.molecules.TwoArms(), 1500, 0, scales=COLD, snr=2.5, box=20, pixel_size=4.8
    )


def _pair(particles, **options):
    options = {"below": 200.0, "components": [1]} | options
    inner = pc.guides.Amortised((32,))
    return pc.Pair(
        pc.priors.Boltzmann(table=PRIOR),
        pc.volumes.Grid(),
        particles.box,
        guide=pc.guides.Frozen(inner, **options),
        rotate=False,
    )


def _law(pair, batch):
    with torch.no_grad():
        return pair.posterior_of(batch)


def test_cold_particles_are_encoded_by_the_first_component_alone(particles):
    pair, batch = _pair(particles), particles.batch(np.arange(64))
    law, inner = _law(pair, batch), pair.encoder.guide(batch.images, *pair.pose(batch))
    cold = batch.temperature < 200
    assert 0 < cold.sum() < 64
    covariance = law.scale_tril @ law.scale_tril.mT
    assert (law.loc[cold, 1] == 0).all()
    torch.testing.assert_close(covariance[cold, 1, 1], torch.full((int(cold.sum()),), 1e-4))
    assert (covariance[cold, 0, 1] == 0).all()
    torch.testing.assert_close(law.loc[cold, 0], inner[0][cold, 0])
    torch.testing.assert_close(law.scale_tril[cold, 0, 0], inner[1][cold, 0, 0])
    for given, found in zip(inner, (law.loc, law.scale_tril), strict=True):
        torch.testing.assert_close(found[~cold], given[~cold])


def test_frozen_components_cost_nothing(particles):
    pair, batch = _pair(particles), particles.batch(np.arange(64))
    cold = batch.temperature < 200
    with torch.no_grad():
        whole = kl_divergence(pair.posterior_of(batch), pair.prior_of(batch))[cold]
        law = pair.posterior_of(batch)
        mean, sd = law.loc[cold, 0], law.scale_tril[cold, 0, 0]
        first = 0.5 * (mean.square() + sd.square() - 1) - sd.log()
    torch.testing.assert_close(whole, first, rtol=1e-4, atol=1e-4)


def test_draws_of_poses_and_frames_broadcast(pairs_in_time):
    kelvin = np.where(np.arange(len(pairs_in_time)) % 2, 300.0, 180.0)
    particles = pairs_in_time.having(temperature=kelvin)
    pair = pc.Pair(
        pc.priors.Boltzmann(table=PRIOR), pc.volumes.Grid(), particles.box,
        guide=pc.guides.Frozen(below=200.0, components=[0]), pose=pc.poses.InPlane(),
    )  # fmt: skip
    batch = particles.batch(np.arange(6))
    direction = pair.pose_of(batch).rsample((5,))
    loc, scale = pair.encoder(
        batch.images, *pair.placed(batch, direction), temperature=batch.temperature
    )
    assert loc.shape == (5, 6, 2, 2)
    assert (loc[:, ::2, :, 0] == 0).all()
    assert (loc[:, 1::2, :, 0] != 0).all()
    assert scale.shape == (5, 6, 2, 2, 2)


def test_a_table_within_is_told_its_rows(particles):
    table = pc.guides.LookupTable(len(particles))
    pair = pc.Pair(
        pc.priors.Boltzmann(table=PRIOR), pc.volumes.Grid(), particles.box,
        guide=pc.guides.Frozen(table, below=200.0, components=[1]),
    )  # fmt: skip
    pair.check(particles)
    assert _law(pair, particles.batch(np.arange(9))).loc.shape == (9, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"below": -1.0}, "below: expected a temperature"),
        ({"components": []}, "components: expected at least one"),
        ({"components": [2]}, "components: expected numbers from 0 to 1"),
        ({"components": [0, 1]}, "nothing is left to encode"),
        ({"sd": 0.0}, "sd: expected a positive"),
    ],
)
def test_bad_options(particles, options, message):
    with pytest.raises(pc.InputError, match=message):
        _pair(particles, **options)


def test_particles_must_say_how_cold_they_are(particles):
    guide = pc.guides.Frozen(below=200.0, components=[1])
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), pc.volumes.Grid(), particles.box, guide=guide, rotate=False
    )
    with pytest.raises(pc.InputError, match="temperature: the guide Frozen needs"):
        pair.check(particles.without("temperature"))


def test_it_passes_the_checks_of_pairs(particles):
    pc.testing.check_pair(_pair(particles), particles)


def test_it_aligns_without_a_rotation_layer(particles):
    fit = pc.fit(_pair(particles), particles, seeds=2, steps=700, batch_size=32, progress=False)
    hot = particles.test.take(np.flatnonzero(particles.test.temperature == 300.0))
    batch = hot.batch(np.arange(len(hot)))
    for pair in fit.pairs:
        z = _law(pair, batch).mean.numpy()
        assert pc.metrics.rotation_angle(hot.truth, z).value < 10
        assert pc.metrics.r2(hot.truth, z).value > 0.8
        # which component is which is not left open either
        assert abs(np.corrcoef(z[:, 1], hot.truth[:, 1])[0, 1]) > 0.9
