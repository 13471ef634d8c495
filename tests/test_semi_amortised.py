"""Answers of an encoder that are improved on each particle, and NUTS to compare with."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from toys import Linear, Stubborn

import pyrocryo as pc
from pyrocryo.diagnose.common import recast
from pyrocryo.joint_normal import JointNormal
from pyrocryo.natural_gradient import _cubature

BOX, SIGMA = 6, 0.8


def _fit(pair, seeds=(0,)):
    """What trained it does not matter here."""
    pairs = [copy.deepcopy(pair).eval() for _ in seeds]
    return pc.Fit(pairs, tuple(seeds), {}, None, 0.0, True, None, {})


def _linear(prior=None, frames=None, n=24):
    torch.manual_seed(1)
    pair = pc.Pair(
        prior or pc.priors.IsotropicNormal(2), Linear(), BOX, guide=Stubborn(), noise=SIGMA
    )
    nn.init.constant_(pair.rotation.angle, 0.1)
    w = pair.volume.map.weight.detach()
    lead = (n,) if frames is None else (n, frames)
    x = torch.randn(*lead, 2) @ w.T + SIGMA * torch.randn(*lead, BOX**2)
    rotation = np.broadcast_to(np.eye(3), (*lead, 3, 3))
    images = x.unflatten(-1, (BOX, BOX)).numpy()
    particles = pc.Particles(images, rotation=rotation, test_fraction=0.25)
    return pair.eval(), particles, particles.batch(np.arange(n))


def _in_z(pair):
    return pair.volume.map.weight.detach() @ pair.rotation().detach().T


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_cubature_is_exact_to_the_fifth_degree(d):
    points, weight = _cubature(d)
    assert len(points) == 2 * d * d + 1
    x = points.double()
    moments = {0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0, 4: 3.0, 5: 0.0}
    for power, expected in moments.items():
        found = (weight.double().unsqueeze(-1) * x**power).sum(0)
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-5)
    if d > 1:
        crossed = (weight.double() * x[:, 0] ** 2 * x[:, 1] ** 2).sum()
        assert crossed == pytest.approx(1.0, abs=1e-6)


def test_one_image_is_answered_exactly():
    pair, particles, batch = _linear()
    found = pc.refined(_fit(pair), steps=3).pairs[0].posterior_of(batch)
    w = _in_z(pair)
    precision = torch.eye(2) + w.T @ w / SIGMA**2
    mean = torch.linalg.solve(precision, (batch.images.flatten(1) @ w / SIGMA**2).T).T
    covariance = (found.scale_tril @ found.scale_tril.mT).detach()
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(
        covariance, torch.linalg.inv(precision).expand(24, 2, 2), rtol=0.02, atol=2e-3
    )
    # the fit that was given still has its own guide
    assert type(pair) is pc.Pair
    assert found.batch_shape == (24,)


def test_points_are_decoded_some_at_a_time(monkeypatch):
    pair, _, batch = _linear()
    better = pc.refined(_fit(pair), steps=2).pairs[0]
    decode, sizes = better.seen, []

    def seen(z, *where):
        sizes.append(len(z))
        return decode(z, *where)

    monkeypatch.setattr(better, "seen", seen)
    expected = better.posterior_of(batch)
    assert set(sizes) == {9}
    sizes.clear()
    room = 2 * 24 * better.volume.numbers_an_image
    monkeypatch.setattr("pyrocryo.semi_amortised.MOST_NUMBERS", room)
    found = better.posterior_of(batch)
    assert set(sizes) == {2, 1}
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.scale_tril, expected.scale_tril)


def test_frames_know_of_one_another():
    """A Gaussian process over frames has a posterior with covariances between them."""
    rate = 0.2
    pair, particles, batch = _linear(pc.priors.GaussianTransition(2, rate), frames=2)
    found = pc.refined(_fit(pair), steps=4).pairs[0].posterior_of(batch)
    assert isinstance(found, JointNormal)
    w, a = _in_z(pair), math.exp(-rate)
    before = torch.tensor([[1.0, a], [a, 1.0]])
    precision = torch.kron(torch.linalg.inv(before).contiguous(), torch.eye(2))
    each = w.T @ w / SIGMA**2
    precision = precision + torch.block_diag(each, each)
    told = (batch.images.flatten(2) @ w / SIGMA**2).flatten(1)
    mean = torch.linalg.solve(precision, told.T).T
    torch.testing.assert_close(found.mean.flatten(1), mean, rtol=0, atol=5e-3)
    covariance = found.scale_tril @ found.scale_tril.mT
    exact = torch.linalg.inv(precision).expand(24, 4, 4)
    torch.testing.assert_close(covariance, exact, rtol=0.03, atol=2e-3)
    # and through draws, with their own densities: the weights are all the same
    weights = pc.diagnose.importance(pc.refined(_fit(pair)), particles, draws=50, most=8)
    assert float(weights.gap[0]) < 0.01


def test_a_prior_without_kl_in_closed_form():
    """SharedFactors ties frames by a mixture: the ELBO rises all the same."""
    pair, particles, batch = _linear(pc.priors.SharedFactors(2, 0.5), frames=2)
    before = pc.diagnose.importance(pair, particles, draws=60, most=12)
    after = pc.diagnose.importance(pc.refined(_fit(pair)), particles, draws=60, most=12)
    assert after.elbo.mean() > before.elbo.mean() + 1
    assert after.gap[0] < 0.2 * before.gap[0]


def test_kinds_of_pairs_stay_refined():
    """Diagnostics recast pairs to look at them; they must see the refined answers."""
    pair, particles, batch = _linear()

    class Same(pc.Pair):
        pass

    better = pc.refined(_fit(pair)).pairs[0]
    assert torch.equal(
        recast(better, Same).posterior_of(batch).mean, better.posterior_of(batch).mean
    )
    assert torch.equal(recast(pair, Same).posterior_of(batch).mean, pair.posterior_of(batch).mean)


@pytest.fixture(scope="module")
def turning():
    """In-plane poses, hardly trained."""
    made = pc.simulate.poses(
        pc.molecules.TwoArms(), n=160, seed=0, box=16, pixel_size=6.0, snr=2.0
    )
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), pc.volumes.Grid(hidden=(16,)), 16, pose=pc.poses.InPlane(),
        guide=pc.guides.Amortised((32,)), pose_guide=pc.guides.Polar(4, angles=16),
    )  # fmt: skip
    return pc.fit(pair, made, steps=80, batch_size=16, lr=4e-3, progress=False), made


def test_angles_are_improved_together_with_z(turning):
    fit, made = turning
    before = pc.diagnose.importance(fit, made.test, draws=100, most=12)
    better = pc.refined(fit)
    after = pc.diagnose.importance(better, made.test, draws=100, most=12)
    assert after.elbo.mean() > before.elbo.mean()
    assert after.gap[0] < 0.3 * before.gap[0]
    post = pc.posterior(better, made.test, draws=20, predictive=1)
    assert post["posterior"]["pose"].shape == (1, 20, len(made.test), 2)


def test_nuts_finds_the_exact_posterior_and_flags_a_guide_that_is_off():
    pair, particles, _ = _linear(n=6)
    fit = _fit(pair)
    options = {"index": [0, 3, 5], "chains": 2, "draws": 80, "warmup": 30}
    good = pc.nuts(pc.refined(fit), particles, **options)
    w = _in_z(pair)
    covariance = torch.linalg.inv(torch.eye(2) + w.T @ w / SIGMA**2)
    batch = particles.batch(np.array([0, 3, 5]))
    mean = (batch.images.flatten(1) @ w / SIGMA**2 @ covariance).numpy()
    z = good.draws["posterior"]["z"].values
    sd = covariance.diagonal().sqrt().numpy()
    assert z.shape == (2, 80, 3, 2)
    assert np.abs((z.mean((0, 1)) - mean) / sd).max() < 0.35
    assert np.abs(z.std((0, 1)) / sd - 1).max() < 0.3
    assert good.r_hat.max() < 1.15
    assert good.ess.min() > 20
    assert np.abs(good.off).max() < 0.4
    assert good.names == ("z1", "z2")
    np.testing.assert_array_equal(good.index, [0, 3, 5])
    bad = pc.nuts(fit, particles, **options)  # one answer for all
    assert len(bad.flagged) == 3
    assert not bad.passed
    assert "not on 0, 3, 5" in bad.sentence


def test_nuts_over_angles(turning):
    fit, made = turning
    found = pc.nuts(pc.refined(fit), made.test, index=[0, 1], chains=2, draws=40, warmup=20)
    post = found.draws["posterior"]
    np.testing.assert_allclose(np.linalg.norm(post["pose"], axis=-1), 1.0, rtol=1e-5)
    assert found.names == ("z1", "z2", "pose")
    assert np.median(np.abs(found.off)) < 0.4
    assert 0.6 < np.median(found.ratio) < 1.6


def test_what_cannot_be_refined_or_sampled():
    pair, particles, _ = _linear(n=6)
    with pytest.raises(pc.InputError, match="fit: expected a Fit, got Pair"):
        pc.refined(pair)
    with pytest.raises(pc.InputError, match="steps: expected at least 1, got 0"):
        pc.refined(_fit(pair), steps=0)
    with pytest.raises(pc.InputError, match="index: expected rows from 0 to 5"):
        pc.nuts(pair, particles, index=[7])
    with pytest.raises(pc.InputError, match="chains: expected at least 2, got 1"):
        pc.nuts(pair, particles, chains=1)
    with pytest.raises(pc.InputError, match="rotation"):
        pc.nuts(pair, particles.without("rotation"))
