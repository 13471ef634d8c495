import numpy as np
import pytest
import torch

import pyrocryo as pc


@pytest.fixture(scope="module")
def fit(pairs_in_time):
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0), volume=pc.volumes.Grid(), box=pairs_in_time.box
    )
    return pc.fit(pair, pairs_in_time, steps=30, seeds=[4, 7], batch_size=32)


@pytest.fixture(scope="module")
def post(fit, pairs_in_time):
    return pc.posterior(fit, pairs_in_time.test, draws=30, predictive=2)


def test_groups_dims_and_coordinates(post, pairs_in_time):
    z = post["posterior"]["z"]
    assert z.dims == ("chain", "draw", "particle", "frame", "latent")
    assert z.shape == (2, 30, 24, 2, 2)
    assert z["chain"].values.tolist() == [4, 7]
    np.testing.assert_array_equal(z["particle"], pairs_in_time.test.index)
    replicated = post["posterior_predictive"]["x"]
    assert replicated.dims == ("chain", "draw", "particle", "frame", "row", "column")
    assert replicated.shape == (2, 2, 24, 2, 32, 32)
    assert post["log_likelihood"]["x"].dims == ("chain", "draw", "particle")
    assert set(post["sample_stats"].data_vars) == {"log_prior", "log_q"}
    np.testing.assert_array_equal(
        post["observed_data"]["x"], pairs_in_time.test.batch(np.arange(24)).images
    )
    np.testing.assert_allclose(post["constant_data"]["truth"], pairs_in_time.test.truth)
    assert post["constant_data"]["time"].dims == ("particle", "frame")


def test_a_fit_is_a_line_in_a_notebook(fit):
    assert repr(fit).startswith("Fit(LaplaceTransition, Grid, seeds 4, 7: 30 steps, loss ")
    assert "\n" not in repr(fit)


def test_what_is_in_the_wrong_place_is_named(fit, post, pairs_in_time):
    with pytest.raises(pc.InputError, match="fit: expected a Fit, got Particles"):
        pc.posterior(pairs_in_time, fit)
    with pytest.raises(pc.InputError, match="particles: expected a Particles, got Fit"):
        pc.posterior(fit, fit)
    with pytest.raises(pc.InputError, match="fit: expected a Fit"):
        pc.identify.report(post, fit)


def test_draws_come_from_the_guide(fit, post, pairs_in_time):
    batch = pairs_in_time.test.batch(np.arange(24))
    for chain, pair in enumerate(fit.pairs):
        with torch.no_grad():
            q = pair.posterior_of(batch).base_dist
        drawn = post["posterior"]["z"].values[chain]
        error = np.abs(drawn.mean(0) - q.mean.numpy()) / np.sqrt(q.variance.numpy() / 30)
        assert error.max() < 5


def test_log_densities_are_the_distributions_own(fit, post, pairs_in_time):
    batch = pairs_in_time.test.batch(np.arange(24))
    for chain, pair in enumerate(fit.pairs):
        z = torch.as_tensor(post["posterior"]["z"].values[chain])
        with torch.no_grad():
            prior, q = pair.prior_of(batch).log_prob(z), pair.posterior_of(batch).log_prob(z)
            clean = pair.volume(z[3] @ pair.rotation(), *pair.pose(batch))
            likelihood = torch.distributions.Normal(clean, pair.noise).log_prob(batch.images)
        stats = post["sample_stats"]
        np.testing.assert_allclose(stats["log_prior"].values[chain], prior, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(stats["log_q"].values[chain], q, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(
            post["log_likelihood"]["x"].values[chain, 3], likelihood.sum((1, 2, 3)), rtol=1e-4
        )


def test_replicates_are_clean_images_plus_noise(fit, post):
    groups = post["posterior_predictive"]
    residual = (groups["x"] - groups["clean"]).values
    for chain, pair in enumerate(fit.pairs):
        assert residual[chain].std() == pytest.approx(float(pair.noise.detach()), rel=0.02)


@pytest.mark.parametrize("images", [200 * 7, 30])
def test_chunks_do_not_matter(fit, pairs_in_time, monkeypatch, images):
    """Seven particles at a time, or one and its draws in seven parts."""
    from pyrocryo import draws

    whole = pc.posterior(fit, pairs_in_time.test, draws=200)
    cost = fit.pairs[0].volume.numbers_an_image * 2
    monkeypatch.setattr(draws, "MOST_NUMBERS", images * cost)
    parts = pc.posterior(fit, pairs_in_time.test, draws=200)
    a, b = (p["posterior"]["z"].mean("draw").values for p in (whole, parts))
    assert a.shape == b.shape
    assert parts["posterior_predictive"]["x"].shape == whole["posterior_predictive"]["x"].shape
    assert np.abs(a - b).max() < 0.3


def test_particles_without_frames_have_no_such_dimension(at_temperatures):
    pair = pc.Pair(pc.priors.Boltzmann(table=pc.simulate.default_scales(2)), pc.volumes.Grid(), 32)
    fit = pc.fit(pair, at_temperatures, steps=2)
    post = pc.posterior(fit, at_temperatures.test, draws=5)
    assert post["posterior"]["z"].dims == ("chain", "draw", "particle", "latent")
    assert post["constant_data"]["temperature"].dims == ("particle",)


def test_nothing_is_drawn_for_particles_that_do_not_fit(fit, at_temperatures):
    with pytest.raises(pc.InputError, match="prior: LaplaceTransition has event shape"):
        pc.posterior(fit, at_temperatures.test)
    with pytest.raises(pc.InputError, match="draws: expected at least 1"):
        pc.posterior(fit, at_temperatures.test, draws=0)
