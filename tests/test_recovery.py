"""The point of it all, in short: known truth, three seeds, fixed beforehand."""

import numpy as np
import pytest

import pyrocryo as pc


def _scores(prior, particles, **settings):
    pair = pc.Pair(prior, volume=pc.volumes.Grid(), box=particles.box)
    fit = pc.fit(pair, particles, seeds=3, **settings)
    post = pc.posterior(fit, particles.test, draws=20)
    return fit, post, pc.metrics.report(post)


@pytest.fixture(scope="module")
def in_time():
    return pc.simulate.time_resolved(pc.molecules.TwoArms(), n=5000, seed=11)


def _aligned(table, degrees=10):
    return sum(angle < degrees for angle in table["angle_deg"]["per_seed"])


def test_an_isotropic_prior_knows_the_conformations(in_time):
    """... and nothing says how its axes are turned, so nothing is asserted of them."""
    fit, post, table = _scores(pc.priors.IsotropicNormal(2), in_time, steps=800, batch_size=48)
    assert min(table["r2_linear"]["per_seed"]) > 0.9
    verdict = pc.identify.report(fit, post)
    assert verdict["sentence"].startswith("Not identified")
    assert verdict["seeds"]["affine"] > 0.9


def test_time_aligns_the_axes(in_time):
    fit, post, table = _scores(
        pc.priors.LaplaceTransition(2, rate=2.0), in_time, steps=800, batch_size=48
    )
    assert min(table["r2_linear"]["per_seed"]) > 0.9
    assert _aligned(table) >= 2
    assert np.median(table["mcc_pearson"]["per_seed"]) > 0.95
    verdict = pc.identify.report(fit, post)
    assert verdict["prior"]["rotation_gap_nats"] > 0.1
    assert verdict["seeds"]["agree"] == (_aligned(table) == 3)


def test_temperature_aligns_the_axes():
    particles = pc.simulate.temperature(pc.molecules.TwoArms(), n=8000, seed=11)
    prior = pc.priors.Boltzmann(table=pc.simulate.default_scales(2))
    _, _, table = _scores(prior, particles, steps=1200, batch_size=64)
    assert min(table["r2_linear"]["per_seed"]) > 0.9
    assert _aligned(table) >= 2
