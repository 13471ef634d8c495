import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.integrate import cumulative_trapezoid
from torch.distributions import kl_divergence

import pyrocryo as pc
from pyrocryo.priors.boltzmann import BoltzmannNormal
from pyrocryo.priors.laplace import expected_absolute
from pyrocryo.rotated_normal import RotatedNormal, RotationLayer

PRIORS = {
    "normal": lambda: pc.priors.IsotropicNormal(3),
    "laplace": lambda: pc.priors.LaplaceTransition(2, 2.0),
    "laplace, a rate each, 3 frames": lambda: pc.priors.LaplaceTransition(
        2, torch.tensor([1.0, 4.0]), frames=3
    ),
    "harmonic": lambda: pc.priors.Boltzmann(stiffness=(300.0, 100.0))(torch.tensor(200.0)),
    "table": lambda: pc.priors.Boltzmann(table={300: (1, 1), 200: (0.5, 0.1)})(
        torch.tensor(200.0)
    ),
    "wells of any shape": lambda: pc.priors.Boltzmann(
        energies=(pc.priors.DoubleWell(2.0, tilt=0.3), lambda z: z**4 - z), reference=300.0
    )(torch.tensor(200.0)),
}


@pytest.fixture(params=PRIORS)
def prior(request):
    return PRIORS[request.param]()


def _posterior(batch, prior):
    """A correlated, turned Gaussian of the prior's event shape."""
    event = prior.event_shape
    layer = RotationLayer(event[-1])
    with torch.no_grad():
        layer.angle.uniform_(-0.3, 0.3)
    lead = (*batch, *event[:-1])
    scale = 0.3 * torch.randn(*lead, event[-1], event[-1]).tril(-1)
    scale = scale + torch.diag_embed(0.2 + torch.rand(*lead, event[-1]))
    q = RotatedNormal(torch.randn(*lead, event[-1]), scale, layer().detach())
    return q.to_event(1) if len(event) == 2 else q


def test_shapes_and_expand(prior):
    event = tuple(prior.event_shape)
    wide = prior.expand((5,))
    assert type(wide) is type(prior)
    assert tuple(wide.batch_shape) == (5,)
    assert wide.sample((7,)).shape == (7, 5, *event)
    z = wide.rsample()
    assert wide.log_prob(z).shape == (5,)
    torch.testing.assert_close(wide.log_prob(z), prior.log_prob(z))


class Tabulated:
    """The law exp(-factor energy) in the manner of scipy, on a fine grid of its own."""

    def __init__(self, energy, factor):
        self.exponent = lambda z: -factor * energy(torch.as_tensor(z).double()).numpy()
        self.grid = np.linspace(-8, 8, 20_001)
        mass = cumulative_trapezoid(np.exp(self.exponent(self.grid)), self.grid, initial=0)
        self.mass, self.levels = mass[-1], mass / mass[-1]

    def cdf(self, z):
        return np.interp(z, self.grid, self.levels)

    def logpdf(self, z):
        return self.exponent(z) - np.log(self.mass)


def _pieces(prior, z):
    """The independent scalars that `z` is made of, each with its law in scipy."""
    if isinstance(prior, pc.priors.LaplaceTransition):
        first = [(z[..., 0, k], stats.norm()) for k in range(prior.dim)]
        steps = [
            (z[..., t, k] - z[..., t - 1, k], stats.laplace(scale=1 / float(prior.rate[k])))
            for t in range(1, prior.frames)
            for k in range(prior.dim)
        ]
        return first + steps
    if isinstance(prior, pc.priors.BoltzmannWells):
        factor = prior.reference / float(prior.temperature)
        return [(z[..., k], Tabulated(e, factor)) for k, e in enumerate(prior.energies)]
    scale = getattr(prior, "scale", torch.ones(prior.event_shape))
    return [(z[..., k], stats.norm(scale=float(s))) for k, s in enumerate(scale)]


def test_samples_fit_the_density(prior):
    """Kolmogorov-Smirnov on every independent piece, and that no two pieces correlate."""
    torch.manual_seed(1)
    pieces = _pieces(prior, prior.sample((20_000,)))
    for values, law in pieces:
        assert stats.kstest(values.numpy(), law.cdf).pvalue > 1e-3
    if len(pieces) > 1:
        correlation = torch.corrcoef(torch.stack([values for values, _ in pieces]))
        assert (correlation - torch.eye(len(pieces))).abs().max() < 0.03


def test_density_is_the_product_of_its_pieces(prior):
    z = 2 * torch.randn(50, *prior.event_shape)
    expected = sum(law.logpdf(values.numpy()) for values, law in _pieces(prior, z))
    torch.testing.assert_close(
        prior.log_prob(z).double(), torch.as_tensor(expected), rtol=1e-4, atol=1e-4
    )


def test_density_integrates_to_one(prior):
    """By importance sampling from a wide Student-t."""
    torch.manual_seed(2)
    event = prior.event_shape
    wide = dist.StudentT(3.0, 0.0, 1.5).expand(event).to_event(len(event))
    z = wide.sample((400_000,))
    weight = (prior.log_prob(z) - wide.log_prob(z)).exp()
    error = weight.std() / math.sqrt(len(weight))
    assert abs(weight.mean() - 1) < 4 * error
    assert error < 0.03


def test_samples_carry_gradients():
    rate = torch.tensor([2.0, 3.0], requires_grad=True)
    pc.priors.LaplaceTransition(2, rate).rsample((50,)).abs().sum().backward()
    assert (rate.grad < 0).all()
    scale = torch.tensor([1.0, 2.0], requires_grad=True)
    BoltzmannNormal(torch.zeros(2), scale).rsample((50,)).square().sum().backward()
    assert (scale.grad > 0).all()


def test_kl_is_exact(prior):
    """Against Monte Carlo, for a correlated and turned posterior."""
    torch.manual_seed(3)
    q, p = _posterior((3,), prior), prior.expand((3,))
    z = q.sample((200_000,))
    terms = q.log_prob(z) - p.log_prob(z)
    error = terms.std(0) / math.sqrt(len(terms))
    assert ((kl_divergence(q, p) - terms.mean(0)).abs() < 5 * error).all()


def test_kl_survives_the_plate(prior):
    """A prior without `expand` would lose its KL inside a plate, silently."""
    q = _posterior((4,), prior)
    assert kl_divergence(q, prior.expand((4,))).shape == (4,)


@pytest.mark.parametrize(
    ("m", "s", "rate", "expected"),
    [(0.0, 1.0, 6.0, 2.26976), (0.7, 0.3, 6.0, 2.89837), (-2.0, 0.05, 6.0, 12.47818)],
)
def test_kl_of_normal_from_laplace(m, s, rate, expected):
    """Reference values of KL(N(m, s²) || Laplace(0, rate)) = -ln(λ/2) + λ F - ½ ln(2πe s²)."""
    m, s = torch.tensor(m).double(), torch.tensor(s).double()
    f = rate * expected_absolute(m, s) - math.log(rate / 2)
    kl = f - 0.5 * torch.log(2 * math.pi * math.e * s**2)
    assert float(kl) == pytest.approx(expected, abs=1e-5)


def test_smallest_kl_from_laplace():
    """min over s at m = 0 is ½ + ln(2/π), for any rate."""
    s = torch.linspace(0.05, 3, 200_001).double()
    kl = expected_absolute(torch.zeros_like(s), s) + math.log(2)
    kl = kl - 0.5 * torch.log(2 * math.pi * math.e * s**2)
    assert float(kl.min()) == pytest.approx(0.5 + math.log(2 / math.pi), abs=1e-6)


@pytest.mark.parametrize(("degrees", "gap"), [(10, 0.0217), (22.5, 0.0719), (45, 0.1213)])
def test_a_rotation_costs_what_theory_says(degrees, gap):
    """G(θ) = 2 [(c² + cs + s²) / (c + s) - 1] nats a pair; N(z_1; 0, I) does not notice."""
    torch.manual_seed(4)
    prior = pc.priors.LaplaceTransition(2, 2.0)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    z = prior.sample((400_000,))
    turned = z @ torch.tensor([[c, s], [-s, c]])
    cost = prior.log_prob(z) - prior.log_prob(turned)
    assert float(cost.mean()) == pytest.approx(gap, abs=5 * float(cost.std()) / 400_000**0.5)
    assert 2 * ((c * c + c * s + s * s) / (c + s) - 1) == pytest.approx(gap, abs=1e-4)


def test_transition_weight_counts_transitions_only():
    prior = pc.priors.LaplaceTransition(2, 2.0)
    q = _posterior((3,), prior)
    one, two, none = (
        kl_divergence(q, prior.with_transition_weight(w).expand((3,))) for w in (1.0, 2.0, 0.0)
    )
    torch.testing.assert_close(two - one, one - none)
    first = RotatedNormal(
        q.base_dist.loc[:, 0], q.base_dist.scale_tril[:, 0], q.base_dist.rotation
    )
    torch.testing.assert_close(none, kl_divergence(first, pc.priors.IsotropicNormal(2)))
    z = prior.sample((5,))
    torch.testing.assert_close(prior.with_transition_weight(7.0).log_prob(z), prior.log_prob(z))


def test_harmonic_wells_spread_as_the_root_of_temperature():
    prior = pc.priors.Boltzmann(stiffness=(300.0, 1200.0))
    law = prior(torch.tensor([300.0, 75.0]))
    torch.testing.assert_close(law.scale, torch.tensor([[1.0, 0.5], [0.5, 0.25]]))
    torch.testing.assert_close(prior.stiffness, torch.tensor([300.0, 1200.0]))


def test_learned_table_keeps_its_warmest_row():
    prior = pc.priors.Boltzmann(table={200: (0.5, 0.2), 300: (1.0, 1.0)}, learned=True)
    prior(torch.tensor([200.0, 300.0])).scale.sum().backward()
    with torch.no_grad():
        prior.free -= 0.5 * prior.free.grad
    scales = prior.scales()
    assert scales[300.0] == [1.0, 1.0]
    assert scales[200.0] != pytest.approx([0.5, 0.2])
    prior.reset_parameters()
    assert prior.scales()[200.0] == pytest.approx([0.5, 0.2])


def test_learned_wells_keep_their_overall_scale():
    prior = pc.priors.Boltzmann(stiffness=(300.0, 1200.0), learned=True)
    with torch.no_grad():
        prior.free += torch.tensor([[1.0, 0.0]])
        stiffness = prior.stiffness
    assert float(stiffness.log().mean()) == pytest.approx(math.log(600.0), abs=1e-5)
    assert float(stiffness[0] / stiffness[1]) == pytest.approx(math.e / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.priors.IsotropicNormal(0), "dim: expected at least one"),
        (lambda: pc.priors.LaplaceTransition(2, -1.0), "rate: expected one positive"),
        (lambda: pc.priors.LaplaceTransition(2, torch.ones(3)), "rate: .* or 2 of them"),
        (lambda: pc.priors.LaplaceTransition(2, 1.0, frames=1), "frames: .* at least 2"),
        (lambda: pc.priors.Boltzmann(), "exactly one of"),
        (lambda: pc.priors.Boltzmann((1.0,), table={3: (1,)}), "exactly one of"),
        (lambda: pc.priors.Boltzmann(table={300: (1, 1), 200: (1,)}), "same number"),
        (lambda: pc.priors.Boltzmann(table={300: (1, 0)}), "must all be positive"),
        (lambda: pc.priors.Boltzmann(stiffness=(1.0, -2.0)), "must all be positive"),
    ],
)
def test_wrong_input_is_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()
