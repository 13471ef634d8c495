"""Transition priors against scipy, Pyro, brute force and quadrature."""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import Independent, kl_divergence

import pyrocryo as pc
from pyrocryo.priors.quadrature import resolved
from pyrocryo.priors.transition import Transition, log_sum
from pyrocryo.rotated_normal import RotatedNormal, RotationLayer
from pyrocryo.testing import check_prior

P = pc.priors
UNEVEN = torch.tensor([[[0.1], [0.5]], [[1.0], [0.2]], [[0.4], [0.4]]]).expand(3, 2, 2)
PRIORS = {
    "laplace, uneven": lambda: P.LaplaceTransition(2, UNEVEN * torch.tensor([3.0, 6.0]), frames=3),
    "student, uneven": lambda: P.StudentTransition(2, 0.3 * UNEVEN, df=5.0, frames=3),
    "sharp pseudo-huber": lambda: P.PseudoHuberTransition(2, 0.3, width=0.1),
    "jump, 4 frames": lambda: P.JumpTransition(1, 0.2, small=0.2, large=0.5, frames=4),
    "gaussian, uneven": lambda: P.GaussianTransition(2, UNEVEN, frames=3),
    "switching": lambda: P.SwitchingTransition(2, 0.5, frames=3),
    "shared": lambda: P.SharedFactors(2, 0.6, frames=3),
    "nearly the same": lambda: P.SharedFactors(1, 0.999, width=0.05),
}


@pytest.fixture(params=PRIORS)
def prior(request):
    return PRIORS[request.param]()


def _posterior(lead, frames, dim, spread=0.3):
    layer = RotationLayer(dim)
    with torch.no_grad():
        layer.angle.uniform_(-0.3, 0.3)
    factor = 0.3 * torch.randn(*lead, frames, dim, dim).tril(-1)
    factor = spread * (factor + torch.diag_embed(0.3 + torch.rand(*lead, frames, dim)))
    return RotatedNormal(torch.randn(*lead, frames, dim), factor, layer().detach()).to_event(1)


def test_every_check_passes(prior):
    found = check_prior(prior, dim=prior.dim, frames=prior.frames)
    sampled = isinstance(prior, P.SwitchingTransition)
    assert found["KL"].startswith("none registered" if sampled else "closed form")
    assert found["normalisation"].startswith("integrates to")
    assert found["samples"].startswith("follow")


def _step_law(prior):
    """The law of a step in the manner of scipy, for priors with one number for all steps."""
    if isinstance(prior, P.LaplaceTransition):
        return stats.laplace(scale=1 / float(prior.rate[0])).logpdf
    if isinstance(prior, P.StudentTransition):
        return stats.t(prior.df, scale=float(prior.scale[0])).logpdf
    if isinstance(prior, P.PseudoHuberTransition):
        s, w = float(prior.scale[0]), prior.width
        return stats.genhyperbolic(1.0, w, 0.0, scale=w * s).logpdf
    small, large = (stats.norm(scale=float(v[0])) for v in (prior.small, prior.large))
    still = math.exp(-float(prior.rate[0]))
    return lambda x: np.logaddexp(
        math.log(still) + small.logpdf(x), math.log(1 - still) + large.logpdf(x)
    )


STEPS = {
    "laplace": lambda: P.LaplaceTransition(1, 2.0),
    "student": lambda: P.StudentTransition(1, 0.3, df=10.0),
    "pseudo-huber": lambda: P.PseudoHuberTransition(1, 0.3),
    "sharp pseudo-huber": lambda: P.PseudoHuberTransition(1, 0.3, width=0.1),
    "jump": lambda: P.JumpTransition(1, 0.2),
}
KURTOSIS = {"laplace": 3.0, "student": 1.0}


@pytest.fixture(params=STEPS)
def steps(request):
    return STEPS[request.param]()


def test_density_of_a_step_is_scipys(steps):
    x = np.linspace(-4, 4, 101)
    found = steps.step_log_prob(torch.as_tensor(x).view(-1, 1, 1)).flatten()
    np.testing.assert_allclose(found, _step_law(steps)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_moments_of_a_step(name):
    """The variance that the prior says, and the kurtosis of its density."""
    prior = STEPS[name]()
    pdf = lambda x: np.exp(_step_law(prior)(x))  # noqa: E731
    second, fourth = (
        2 * integrate.quad(lambda x, n=n: x**n * pdf(x), 0, 60, points=[0.1, 1, 5], limit=200)[0]
        for n in (2, 4)
    )
    assert float(prior.step_variance) == pytest.approx(second, rel=1e-4)
    excess = fourth / second**2 - 3
    assert excess == pytest.approx(KURTOSIS.get(name, excess), rel=1e-3)
    if name == "jump":
        c = 1 - math.exp(-0.2)
        assert excess == pytest.approx(3 * c * (1 - c) * 0.99**2 / second**2, rel=1e-4)
    x = prior.sample((200_000,)).diff(dim=1).flatten().double()
    assert float(x.var()) == pytest.approx(second, rel=0.02)
    assert float(x.pow(4).mean() / x.var() ** 2 - 3) == pytest.approx(excess, rel=0.1)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("spread", [0.02, 0.3, 3.0])
def test_expected_cost_is_that_of_adaptive_quadrature(name, spread):
    """Also under posteriors ten and more times as wide as a step."""
    prior = STEPS[name]()
    for mean in (0.0, 0.2, 2.0):
        law, density = _step_law(prior), stats.norm(mean, spread).pdf
        reach = np.array([-9, 9]) * spread + mean
        edges = np.unique(np.clip([*reach, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, mean], *reach))
        expected = sum(
            integrate.quad(lambda x, f=law, g=density: -f(x) * g(x), a, b, epsabs=1e-10)[0]
            for a, b in itertools.pairwise(edges)
        )
        m, s = torch.full((1, 1), mean).double(), torch.full((1, 1), spread).double()
        tolerance = 1e-5 if name != "sharp pseudo-huber" else 2e-3
        assert float(prior.expected_cost(m, s)) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("family", [P.StudentTransition, P.PseudoHuberTransition])
def test_quadrature_has_the_gradient_of_the_integral(family):
    """In mean, spread and the prior's scale, against finite differences."""

    def cost(mean, sd, scale):
        return family(1, scale, validate_args=False).expected_cost(mean, sd)

    at = [torch.full((1, 1), v).double().requires_grad_() for v in (0.3, 0.8, 0.2)]
    assert torch.autograd.gradcheck(cost, at)


def test_the_rule_integrates_polynomials_of_far_and_narrow_laws():
    mean, sd = torch.tensor([0.0, 5.0, -3.0]).double(), torch.tensor([10.0, 0.01, 0.5]).double()
    x, weights = resolved(mean, sd, torch.tensor(0.1).double())
    torch.testing.assert_close(weights.sum(0), torch.ones(3).double())
    torch.testing.assert_close((weights * x).sum(0), mean, rtol=1e-6, atol=1e-6)
    square = (weights * x.square()).sum(0)
    torch.testing.assert_close(square, mean**2 + sd**2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frames", [2, 3, 8])
@pytest.mark.parametrize(
    "family", ["laplace", "student", "pseudo-huber", "jump", "gaussian", "shared"]
)
def test_kl_is_that_of_monte_carlo(family, frames):
    torch.manual_seed(frames)
    made = {
        "laplace": lambda: P.LaplaceTransition(2, 2.0, frames=frames),
        "student": lambda: P.StudentTransition(2, 0.3, frames=frames),
        "pseudo-huber": lambda: P.PseudoHuberTransition(2, 0.3, frames=frames),
        "jump": lambda: P.JumpTransition(2, 0.2, frames=frames),
        "gaussian": lambda: P.GaussianTransition(2, 0.3, frames=frames),
        "shared": lambda: P.SharedFactors(2, 0.6, frames=frames),
    }[family]()
    q, p = _posterior((3,), frames, 2), made.expand((3,))
    z = q.sample((20_000,))
    terms = q.log_prob(z) - p.log_prob(z)
    error = terms.std(0) / math.sqrt(len(terms))
    assert ((kl_divergence(q, p) - terms.mean(0)).abs() < 5 * error).all()


def test_shared_factors_against_a_dense_grid():
    prior = P.SharedFactors(1, 0.7, width=torch.tensor([0.1]))
    x = torch.linspace(-7, 7, 1501).double()
    weight = (-0.5 * x.square()).softmax(0)
    for mean, variance in (
        ((0.0, 0.5), (0.5, 0.5)),
        ((0.3, 0.3), (0.01, 0.02)),
        ((1, -1), (1, 1)),
    ):
        m, v = (torch.tensor(a).double().view(2, 1) for a in (mean, variance))
        first, later = (m + v.sqrt() * x).unbind(0)
        z = torch.stack(torch.meshgrid(first, later, indexing="ij"), dim=-1).unsqueeze(-1)
        cost = -(weight[:, None] * weight * prior.log_steps(z).squeeze(-1).squeeze(-1)).sum()
        assert float(prior.expected_steps(m, v)) == pytest.approx(float(cost), abs=1e-4)


def test_every_frame_of_stationary_priors_is_standard_normal():
    for prior in (
        P.GaussianTransition(2, torch.tensor([0.2, 2.0]), frames=8),
        P.SharedFactors(2, 0.5, width=0.5, frames=8),
    ):
        z = prior.sample((50_000,))
        torch.testing.assert_close(z.var(0), torch.ones(8, 2), rtol=0, atol=0.03)
        assert z.mean(0).abs().max() < 0.03
        assert stats.kstest(z[:, -1, 0].numpy(), stats.norm().cdf).pvalue > 1e-3


def test_gaussian_steps_are_one_multivariate_normal():
    """Ornstein-Uhlenbeck covariance exp(-|t - t'| / τ), at uneven times."""
    time, tau = np.array([0.0, 0.3, 1.0, 1.1]), np.array([0.5, 2.0])
    rate = torch.as_tensor(np.diff(time)[:, None] / tau)
    prior = P.GaussianTransition(2, rate, frames=4)
    z = torch.randn(20, 4, 2)
    expected = sum(
        stats.multivariate_normal(cov=np.exp(-np.abs(time[:, None] - time) / t)).logpdf(z[..., k])
        for k, t in enumerate(tau)
    )
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-4, atol=1e-4)


def test_switching_sums_over_every_path_of_states():
    torch.manual_seed(0)
    share, rate, sizes = 0.3, 0.7, (0.2, 0.9)
    prior = P.SwitchingTransition(2, rate, slow=0.2, fast=0.9, share=share, frames=5)
    z = prior.sample((10,)).double()
    pi = np.array([1 - share, share])
    change = math.exp(-rate) * np.eye(2) + (1 - math.exp(-rate)) * pi
    x = z.diff(dim=-2).numpy()
    total = np.zeros((10, 2))
    for path in itertools.product((0, 1), repeat=4):
        p = pi[path[0]] * np.prod([change[a, b] for a, b in itertools.pairwise(path)])
        total += p * np.prod(
            [stats.norm(scale=sizes[s]).pdf(x[:, t]) for t, s in enumerate(path)], 0
        )
    first = stats.norm().logpdf(z[:, 0]).sum(-1)
    np.testing.assert_allclose(prior.log_prob(z), first + np.log(total).sum(-1), rtol=1e-5)
    # and as Pyro has it
    hmm = dist.DiscreteHMM(
        torch.tensor(pi).log(), torch.tensor(change).log(), dist.Normal(0.0, torch.tensor(sizes))
    )
    found = sum(hmm.log_prob(z.diff(dim=-2)[..., k]) for k in range(2))
    torch.testing.assert_close(
        prior.log_prob(z), torch.as_tensor(first) + found, rtol=1e-5, atol=0
    )


def test_switching_is_jumping_where_there_is_nothing_to_remember():
    jump = -math.log(1 - 0.2)
    for frames, rate in ((2, 0.3), (4, 50.0)):
        switching = P.SwitchingTransition(2, rate, frames=frames)
        jumping = P.JumpTransition(2, jump, frames=frames)
        z = jumping.sample((100,))
        torch.testing.assert_close(
            switching.log_prob(z), jumping.log_prob(z), rtol=1e-4, atol=1e-3
        )
    z = P.SwitchingTransition(1, 0.2, frames=4).sample((100_000,)).diff(dim=1).abs().squeeze(-1)
    correlation = torch.corrcoef(z.T)  # fast times last: e-fold per 1 / rate steps
    assert correlation[0, 1] / correlation[0, 2] == pytest.approx(math.exp(0.2), rel=0.05)
    assert correlation[0, 1] > 0.2


def _gap(prior, degrees=45, n=200_000):
    torch.manual_seed(1)
    z = prior.sample((n,)).double()
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = z @ torch.tensor([[c, s], [-s, c]]).double()
    cost = prior.log_prob(z) - prior.log_prob(turned)
    return float(cost.mean()), float(cost.std()) / math.sqrt(n)


GAPS = {  # nats at 45°
    "laplace": (lambda: P.LaplaceTransition(2, 2.0), 0.1213),
    "student": (lambda: P.StudentTransition(2, 0.3), 0.133),
    "student, 10": (lambda: P.StudentTransition(2, 0.3, df=10.0), 0.0141),
    "pseudo-huber": (lambda: P.PseudoHuberTransition(2, 0.3), 0.0489),
    "jump": (lambda: P.JumpTransition(2, 0.2), 0.677),
    "switching": (lambda: P.SwitchingTransition(2, 0.2), 0.709),
    "shared": (lambda: P.SharedFactors(2, 0.5), 0.958),
    "gaussian, unequal": (lambda: P.GaussianTransition(2, torch.tensor([0.2, 0.4])), 0.0939),
    "gaussian": (lambda: P.GaussianTransition(2, 0.2), 0.0),
    "gaussian, 8 frames": (lambda: P.GaussianTransition(2, 0.2, frames=8), 0.0),
}


@pytest.mark.parametrize("name", GAPS)
def test_what_a_turn_of_the_axes_costs(name):
    make, expected = GAPS[name]
    gap, error = _gap(make())
    print(f"{name}: {gap:.4f} ± {error:.4f} nats")
    assert gap == pytest.approx(expected, abs=5 * error + 1e-5)
    if expected:
        assert gap > 10 * error


@pytest.mark.parametrize(("degrees", "gap"), [(10, 0.0217), (22.5, 0.0719), (45, 0.1213)])
def test_a_pseudo_huber_law_without_width_is_laplace(degrees, gap):
    prior = P.PseudoHuberTransition(2, 0.5, width=1e-3)
    found, error = _gap(prior, degrees)
    assert found == pytest.approx(gap, abs=5 * error)
    laplace = P.LaplaceTransition(2, 2.0)
    z = laplace.sample((50,))
    torch.testing.assert_close(prior.log_prob(z), laplace.log_prob(z), rtol=0, atol=0.01)
    assert 2 * 1e-3 * special.k1(1e-3) == pytest.approx(2, rel=1e-5)


def test_transition_weight_counts_transitions_only(prior):
    if isinstance(prior, P.SwitchingTransition):
        return
    q = _posterior(prior.batch_shape, prior.frames, prior.dim)
    one, two, none = (kl_divergence(q, prior.with_transition_weight(w)) for w in (1.0, 2.0, 0.0))
    torch.testing.assert_close(two - one, one - none)
    assert type(prior.with_transition_weight(2.0).expand((4, *prior.batch_shape))) is type(prior)


@pytest.mark.parametrize(
    ("rate", "sd", "mean", "exact", "plugin"),
    [
        (2.0, 0.3, 0.5, 0.8845, 0.8088),
        (4.0, 0.2, 0.0, 0.4001, 0.1357),
        (10, 0.1, 0, 0.4026, 0.0721),
    ],
)
def test_what_the_published_recipe_leaves_out(rate, sd, mean, exact, plugin):
    """Nats of one step; by hand λ [F(m, √2 s) - F(m, s)], .33 λ s where m = 0."""
    q = RotatedNormal(
        torch.tensor([[0.0], [mean]]), torch.full((2, 1, 1), float(sd)), torch.eye(1)
    ).to_event(1)
    prior = [P.LaplaceTransition(1, rate, plugin=plugin) for plugin in (False, True)]
    step = [kl_divergence(q, p) - kl_divergence(q, p.with_transition_weight(0.0)) for p in prior]
    assert float(step[0]) == pytest.approx(exact, abs=1e-4)
    assert float(step[1]) == pytest.approx(plugin, abs=1e-4)
    if mean == 0:
        left = rate * sd * math.sqrt(2 / math.pi) * (math.sqrt(2) - 1)
        assert float(step[0] - step[1]) == pytest.approx(left, abs=1e-4)


def test_mixtures_have_second_derivatives_everywhere():
    """Gauss-Newton and variability checks ask for them; logaddexp has none far out."""
    x = torch.linspace(-30, 30, 301, requires_grad=True)
    for prior in (P.JumpTransition(1, 0.2, small=0.01), P.SwitchingTransition(1, 0.2)):
        z = torch.stack([torch.zeros_like(x), x], dim=-1).unsqueeze(-1)
        slope = torch.autograd.grad(prior.log_prob(z).sum(), x, create_graph=True)[0]
        assert torch.autograd.grad(slope.sum(), x)[0].isfinite().all()
    a, b = torch.tensor([-3.0, 5.0, -1e5]), torch.tensor([1.0, -2.0, 0.3])
    torch.testing.assert_close(log_sum(a, b), torch.logaddexp(a, b))


def test_samples_carry_gradients_or_say_that_they_do_not():
    scale = torch.tensor([0.1, 0.2], requires_grad=True)
    for family in (P.StudentTransition, P.PseudoHuberTransition):
        family(2, scale).rsample((200,)).diff(dim=1).abs().sum().backward()
        assert (scale.grad > 0).all()
    with pytest.raises(NotImplementedError, match="without gradient"):
        P.JumpTransition(2, 0.2).rsample()


def test_a_step_of_ones_own_is_one_class():
    """A user's family: density and draws of a step, and its width; all else is inherited."""

    class Logistic(Transition):
        arg_constraints = {}  # noqa: RUF012

        def __init__(self, dim, scale, *, frames=2, validate_args=None):
            super().__init__(dim, frames=frames, validate_args=validate_args, scale=scale)

        @property
        def knee(self):
            return self.scale

        def step_log_prob(self, step):
            x = step / self.scale.to(step)
            return -x - 2 * torch.nn.functional.softplus(-x) - self.scale.log()

        def step_sample(self, shape):
            u = torch.rand(shape)
            return self.scale * (u.log() - (-u).log1p())

    found = check_prior(Logistic(2, 0.2, frames=3))
    assert found["KL"].startswith("closed form")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: P.StudentTransition(0, 1.0), "dim: expected at least one"),
        (lambda: P.StudentTransition(2, -1.0), "scale: expected one positive"),
        (lambda: P.StudentTransition(2, torch.ones(3)), "scale: .* or 2 of them"),
        (lambda: P.StudentTransition(2, torch.ones(3, 2), frames=3), "a row for each step"),
        (lambda: P.StudentTransition(2, 1.0, df=0.0), "df: expected a positive"),
        (lambda: P.StudentTransition(2, 1.0, df="a"), "df: expected a positive"),
        (lambda: P.PseudoHuberTransition(2, 1.0, width=0.0), "width: expected a number between"),
        (lambda: P.PseudoHuberTransition(2, 1.0, width="a"), "width: expected a number between"),
        (lambda: P.LaplaceTransition(2, "a"), "rate: expected numbers, got 'a'"),
        (lambda: P.JumpTransition(2, 1.0, small=2.0), "small: expected less than large"),
        (lambda: P.GaussianTransition(2, 1.0, frames=1), "frames: .* at least 2"),
        (lambda: P.SwitchingTransition(2, 1.0, slow=2.0), "slow: expected less than fast"),
        (lambda: P.SwitchingTransition(2, 1.0, share=1.0), "share: expected less than 1"),
        (lambda: P.SharedFactors(2, 1.5), "share: expected a chance"),
        (lambda: P.SharedFactors(2, 0.5, width=1.0), "width: expected less than 1"),
    ],
)
def test_wrong_input_is_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()


def test_an_expanded_prior_has_a_density_for_each_of_its_batch():
    z = torch.randn(3, 2)
    for make in PRIORS.values():
        prior = make()
        if prior.event_shape == (3, 2) and not prior.batch_shape:
            assert prior.expand([5]).log_prob(z).shape == (5,)


def test_a_batch_does_not_expand_to_another():
    with pytest.raises(ValueError, match="does not expand"):
        P.LaplaceTransition(2, torch.ones(3, 1, 2)).expand([1])
    with pytest.raises(RuntimeError):
        P.LaplaceTransition(2, torch.ones(3, 1, 2)).expand([5])


def test_numbers_of_steps_keep_their_precision():
    third = torch.tensor(1 / 3, dtype=torch.float64)
    prior = P.LaplaceTransition(1, third)
    z = torch.zeros(2, 1, dtype=torch.float64)
    exact = -math.log(2 * math.pi) / 2 - math.log(6)
    assert prior.rate.dtype == prior.sample().dtype == torch.float64
    assert abs(prior.log_prob(z).item() - exact) < 1e-12
    assert P.LaplaceTransition(1, 1 / 3).rate.dtype == torch.get_default_dtype()


def test_a_transition_that_lacks_a_part_says_which():
    class Half(pc.priors.Transition):
        def __init__(self):
            super().__init__(2, scale=1.0)

    with pytest.raises(TypeError, match="Half: a transition needs step_log_prob"):
        Half().log_prob(torch.zeros(2, 2))
    posterior = Independent(
        RotatedNormal(torch.zeros(4, 2, 2), torch.eye(2).expand(4, 2, 2, 2), torch.eye(2)), 1
    )
    with pytest.raises(TypeError, match="knee, or expected_cost"):
        kl_divergence(posterior, Half())


def test_numbers_of_steps_are_finite():
    with pytest.raises(pc.InputError, match="rate"):
        pc.priors.LaplaceTransition(2, math.inf)
