"""Held-out likelihoods that ArviZ compares, the verdict on axes beside them."""

import copy
import math

import arviz as az
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from toys import Linear, Stubborn

import pyrocryo as pc

# ArviZ 0.23 on pandas 3.1 and matplotlib 3.11
pytestmark = [
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping"),
]
BOX, SIGMA, N = 6, 0.8, 150


@pytest.fixture(scope="module")
def world():
    """Frames by sparse steps; the model with that prior, and a turned one with a blind prior."""
    torch.manual_seed(0)
    prior = pc.priors.LaplaceTransition(2, 4.0)
    pairs = {}
    for name, law, turn in (
        ("sparse", prior, 0.0),
        ("turned", pc.priors.GaussianTransition(2, 0.0645), 0.2),
    ):
        pairs[name] = pc.Pair(law, Linear(), BOX, guide=Stubborn(), noise=SIGMA).eval()
        nn.init.constant_(pairs[name].rotation.angle, turn)
    pairs["turned"].volume.load_state_dict(pairs["sparse"].volume.state_dict())
    z = prior.sample((N,))
    with torch.no_grad():
        clean = pairs["sparse"].volume(z, None, None)
    images = (clean + SIGMA * torch.randn_like(clean)).numpy()
    rotation = np.broadcast_to(np.eye(3), (N, 2, 3, 3))
    particles = pc.Particles(images, rotation=rotation, test_fraction=0.5)
    example = particles.batch(np.arange(32))
    fits = {
        name: pc.Fit([copy.deepcopy(pair)], (0,), {}, None, 0.0, True, example, {})
        for name, pair in pairs.items()
    }
    return fits, particles, z


def test_it_is_the_exact_evidence(world):
    fits, particles, _ = world
    found = pc.elpd(pc.refined(fits["turned"]), particles.test, draws=100)
    pair = fits["turned"].pairs[0]
    w = pair.volume.map.weight.detach() @ pair.rotation().detach().T
    a = math.exp(-0.0645)
    prior = torch.kron(torch.tensor([[1.0, a], [a, 1.0]]), torch.eye(2))
    both = torch.block_diag(w, w)
    law = MultivariateNormal(
        torch.zeros(2 * BOX**2), both @ prior @ both.T + SIGMA**2 * torch.eye(2 * BOX**2)
    )
    x = particles.test.batch(np.arange(len(particles.test))).images.flatten(1)
    exact = law.log_prob(x)
    value = found.elpd_i if hasattr(found, "elpd_i") else found.loo_i
    np.testing.assert_allclose(value, exact, atol=0.15)
    assert "axes" in found.identifiability or "z" in found.identifiability
    np.testing.assert_array_equal(value["particle"], particles.test.index)


def test_likelihood_does_not_see_turned_axes(world):
    """The wrong prior predicts within noise as well, with `z` turned by a radian."""
    fits, particles, z = world
    found = {name: pc.elpd(pc.refined(fit), particles.test) for name, fit in fits.items()}
    table = az.compare(found)
    assert set(table.index) == {"sparse", "turned"}
    value = {
        name: np.asarray(one.elpd_i if hasattr(one, "elpd_i") else one.loo_i)
        for name, one in found.items()
    }
    gap = (value["sparse"] - value["turned"]).mean()
    assert abs(gap) < 0.5  # nats, of some -90
    truth = z[particles.test.index].reshape(-1, 2).numpy()
    score = {}
    for name, fit in fits.items():
        mean = pc.refined(fit).pairs[0].posterior_of(
            particles.test.batch(np.arange(len(particles.test)))
        ).mean.reshape(-1, 2).numpy()  # fmt: skip
        score[name] = pc.metrics.mcc(truth, mean).value
    assert score["sparse"] > score["turned"] + 0.1
    assert found["sparse"].identifiability != found["turned"].identifiability


def test_what_cannot_be_compared(world):
    fits, particles, _ = world
    with pytest.raises(pc.InputError, match="fit: expected a Fit, got Pair"):
        pc.elpd(fits["sparse"].pairs[0], particles.test)
    with pytest.raises(pc.InputError, match="chain: expected 0 to 0, got 2"):
        pc.elpd(fits["sparse"], particles.test, chain=2)
    with pytest.raises(pc.InputError, match="particles: expected at least 2, got 1"):
        pc.elpd(fits["sparse"], particles.test.take(np.arange(1)))
