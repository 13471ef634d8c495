import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyrocryo.rotated_normal import RotatedNormal, RotationLayer


@pytest.fixture
def layer():
    layer = RotationLayer(3)
    with torch.no_grad():
        layer.angle.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return layer


@pytest.fixture
def q(layer):
    scale = torch.randn(4, 3, 3).tril(-1) + torch.diag_embed(0.5 + torch.rand(4, 3))
    return RotatedNormal(torch.randn(4, 3), scale, layer())


@pytest.fixture
def reference(q):
    """The same law as a multivariate normal."""
    turned = q.rotation @ q.scale_tril
    return dist.MultivariateNormal(q.mean, turned @ turned.transpose(-1, -2))


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_layer_is_a_rotation_and_starts_at_the_identity(dim):
    layer = RotationLayer(dim)
    torch.testing.assert_close(layer(), torch.eye(dim))
    with torch.no_grad():
        layer.angle.uniform_(-1, 1)
    matrix = layer().detach()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(dim))
    assert float(torch.det(matrix)) == pytest.approx(1, abs=1e-5)
    layer.reset_parameters()
    torch.testing.assert_close(layer(), torch.eye(dim))


def test_two_dimensions_turn_by_speed_times_the_parameter():
    layer = RotationLayer(2, speed=5.0)
    with torch.no_grad():
        layer.angle.fill_(0.1)
    c, s = torch.cos(torch.tensor(0.5)), torch.sin(torch.tensor(0.5))
    torch.testing.assert_close(layer(), torch.stack([c, -s, s, c]).view(2, 2))


def test_it_is_the_turned_normal(q, reference):
    z = torch.randn(10, 4, 3)
    torch.testing.assert_close(q.log_prob(z), reference.log_prob(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.entropy(), reference.entropy())
    torch.testing.assert_close(q.mean, reference.mean)
    torch.testing.assert_close(q.variance, reference.variance)
    torch.testing.assert_close(q.total_square, (q.mean**2 + q.variance).sum(-1))


def test_samples(q, reference):
    z = q.rsample((200_000,))
    assert z.requires_grad
    torch.testing.assert_close(z.mean(0), reference.mean, atol=0.02, rtol=0)
    covariance = torch.stack([torch.cov(z[:, i].T) for i in range(4)])
    torch.testing.assert_close(covariance, reference.covariance_matrix, atol=0.05, rtol=0.02)


def test_kl_from_any_independent_normal(q, reference):
    p = dist.Normal(torch.tensor([0.0, 1, 2]), torch.tensor([1.0, 2, 3])).to_event(1)
    as_mvn = dist.MultivariateNormal(p.base_dist.loc, torch.diag(p.base_dist.scale**2))
    torch.testing.assert_close(kl_divergence(q, p.expand((4,))), kl_divergence(reference, as_mvn))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Laplace(torch.zeros(3), torch.ones(3)).to_event(1).expand((4,)))


def test_expand_keeps_everything(q):
    wide = q.expand((2, 4))
    z = torch.randn(2, 4, 3)
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    assert wide.rsample((5,)).shape == (5, 2, 4, 3)
