import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyrocryo.directions import PlanarNormal, UniformDirection

CONCENTRATIONS = (0.0, 0.3, 2.0, 10.0, 100.0, 1000.0)


def _circle(law, width, n=200_001):
    theta = torch.linspace(-width, width, n, dtype=torch.double)
    return theta, law.log_prob(torch.stack([theta.cos(), theta.sin()], dim=-1))


@pytest.mark.parametrize("kappa", CONCENTRATIONS)
def test_density_on_the_circle(kappa):
    law = PlanarNormal(torch.tensor([kappa, 0.0], dtype=torch.double))
    theta, log_p = _circle(law, min(math.pi, 12 / max(kappa, 1e-9)))
    assert float(torch.trapezoid(log_p.exp(), theta)) == pytest.approx(1, abs=1e-6)
    if kappa <= 10:  # further up Pyro's own cuts its tail off
        value = torch.stack([theta.cos(), theta.sin()], dim=-1)[::5000]
        pyro_says = dist.ProjectedNormal(law.concentration).log_prob(value)
        near = pyro_says > -12
        torch.testing.assert_close(law.log_prob(value)[near], pyro_says[near])


def test_single_precision_holds_at_high_concentration():
    """Pyro's own subtracts two large squares and is off by 0.1 nats and more."""
    c = torch.tensor([600.0, 800.0])
    z = PlanarNormal(c).sample((1000,))
    exact = PlanarNormal(c.double()).log_prob(z.double())
    assert (PlanarNormal(c).log_prob(z) - exact).abs().max() < 5e-3
    assert (dist.ProjectedNormal(c).log_prob(z) - exact).abs().max() > 0.05


@pytest.mark.parametrize("kappa", CONCENTRATIONS)
def test_kl_from_uniform(kappa):
    law = PlanarNormal(torch.tensor([0.0, kappa]))
    exact = PlanarNormal(torch.tensor([kappa, 0.0], dtype=torch.double))
    theta, log_p = _circle(exact, min(math.pi, 12 / max(kappa, 1e-9)))
    expected = torch.trapezoid(log_p.exp() * (log_p + math.log(2 * math.pi)), theta)
    kl = kl_divergence(law, UniformDirection(2))
    assert float(kl) == pytest.approx(float(expected), abs=2e-5)


def test_kl_has_the_right_gradient_and_survives_plates():
    c = torch.tensor([[3.0, 0.0], [0.0, 20.0]], requires_grad=True)
    kl = kl_divergence(PlanarNormal(c).expand((5, 2)), UniformDirection(2).expand((5, 2)))
    assert kl.shape == (5, 2)
    (gradient,) = torch.autograd.grad(kl[0].sum(), c)
    step = 0.01
    for row, kappa in ((0, 3.0), (1, 20.0)):
        sides = [
            float(kl_divergence(PlanarNormal(torch.tensor([kappa + s, 0.0]).double()),
                                UniformDirection(2, like=torch.zeros(()).double())))
            for s in (step, -step)
        ]  # fmt: skip
        assert float(gradient[row].norm()) == pytest.approx(
            (sides[0] - sides[1]) / (2 * step), rel=1e-3
        )


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_uniform_is_a_projected_normal_of_no_concentration(dim):
    law = UniformDirection(dim).expand((3,))
    assert type(law) is UniformDirection
    z = law.sample((50,))
    assert z.shape == (50, 3, dim)
    expected = dist.ProjectedNormal(torch.zeros(dim)).log_prob(z)
    torch.testing.assert_close(law.log_prob(z), expected, atol=1e-5, rtol=1e-5)
