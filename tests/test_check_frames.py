"""What a prior over frames can identify: turns, and the rank test of PCL."""

import pyro.distributions as dist
import pytest
import torch

import pyrocryo as pc
from pyrocryo.identify import check_prior, power
from pyrocryo.priors import Transition


class Steps(Transition):
    """Steps of any density."""

    def __init__(self, dim, law):
        self.law = law
        super().__init__(dim, unused=1.0)

    def step_log_prob(self, step):
        return self.law.log_prob(step)

    def step_sample(self, shape):
        return self.law.sample(shape)


class Langevin(Transition):
    """Euler steps in a double well, with one diffusivity."""

    def __init__(self, lag=0.1):
        self.lag = lag
        super().__init__(2, unused=1.0)

    def drift(self, z):
        return z + self.lag * 4 * z * (1 - z.square())

    def log_steps(self, z):
        return dist.Normal(self.drift(z[..., :-1, :]), (2 * self.lag) ** 0.5).log_prob(
            z[..., 1:, :]
        )

    def follow(self, first):
        later = self.drift(first)
        return torch.cat([first, later + (2 * self.lag) ** 0.5 * torch.randn_like(later)], -2)


class Spread(Langevin):
    """A diffusivity that depends on where it is."""

    def width(self, z):
        return (0.2 + 0.5 * z.square()).sqrt()

    def log_steps(self, z):
        return dist.Normal(z[..., :-1, :], self.width(z[..., :-1, :])).log_prob(z[..., 1:, :])

    def follow(self, first):
        return torch.cat([first, first + self.width(first) * torch.randn_like(first)], -2)


class Sech(dist.TorchDistribution):
    """A density as 1 / cosh."""

    arg_constraints = {}

    def log_prob(self, x):
        return -(2 * x.abs() + torch.log1p((-2 * x.abs()).exp())) + x.abs()

    def sample(self, shape=()):
        return (torch.pi / 2 * torch.rand(shape)).tan().log()


def logistic():
    sigmoid = dist.transforms.SigmoidTransform().inv
    return dist.TransformedDistribution(dist.Uniform(0.0, 1.0), [sigmoid])


@pytest.mark.parametrize(
    ("prior", "ratio"),
    [
        (pc.priors.GaussianTransition(2, 0.5), 0.0),
        (pc.priors.LaplaceTransition(2, 1.0), 0.0),
        (Steps(2, logistic()), 0.546),
        (Steps(2, Sech()), 0.803),
        (pc.priors.StudentTransition(2, 1.0, df=3.0), 0.625),
        (Langevin(), 0.0),
    ],
)
def test_rank_of_the_dependence(prior, ratio):
    found = check_prior(prior).singular_values["pcl"]
    assert found == pytest.approx([ratio, ratio], abs=0.02)  # the grid is in sd of the draws


@pytest.mark.parametrize(
    ("prior", "free", "linear"),
    [
        (pc.priors.GaussianTransition(2, 0.5), "rotation", "rotation"),
        (pc.priors.GaussianTransition(2, torch.tensor([0.5, 2.0])), "unknown", "permutation"),
        (pc.priors.LaplaceTransition(2, 4.0), "permutation", "permutation"),
        (pc.priors.LaplaceTransition(3, torch.tensor([2.0, 3.0, 4.0])), "permutation", None),
        (pc.priors.PseudoHuberTransition(2, 0.3), "permutation", "permutation"),
        (pc.priors.StudentTransition(2, 0.3), "permutation", "permutation"),
        (pc.priors.JumpTransition(2, 0.2), "permutation", "permutation"),
        (pc.priors.SharedFactors(2, 0.5), "permutation", "permutation"),
        (pc.priors.SwitchingTransition(2, 0.3, frames=4), "permutation", "permutation"),
        (Spread(), "permutation", "permutation"),
        (Langevin(), "unknown", None),
    ],
)
def test_verdicts(prior, free, linear):
    check = check_prior(prior)
    assert check.temporal
    assert check.rank_j is None
    assert check.verdict.learned.free.kind == free
    if linear:
        assert check.verdict.learned.linear.kind == linear
    if free == "permutation":
        assert check.verdict.known.free.axes
        assert check.advice == ()
    else:
        assert check.advice
    assert "nats a pair" in str(check)


def test_laplace_steps_are_named_for_what_they_are():
    check = check_prior(pc.priors.LaplaceTransition(2, 4.0))
    assert "isometries of the L1 norm" in check.verdict.learned.free.sentence
    assert set(check.permutations) == {(-1, 2), (1, -2), (2, 1)}
    uneven = check_prior(pc.priors.LaplaceTransition(2, torch.tensor([2.0, 5.0])))
    assert set(uneven.permutations) == {(-1, 2), (1, -2)}
    assert uneven.verdict.known.free.kind == "identified"


@pytest.mark.parametrize("frames", [2, 5])
def test_turns_of_laplace_steps_cost_what_they_should(frames):
    # 2 [(c² + c s + s²) / (c + s) - 1] a pair
    (gap,) = check_prior(pc.priors.LaplaceTransition(2, 3.0, frames=frames)).gaps
    assert gap.cheapest == pytest.approx(0.1213, abs=4 * gap.se)
    assert gap.se < 0.005
    for angle, nats in ((10.0, 0.0217), (22.5, 0.0719)):
        assert gap.turns[angle] == pytest.approx(nats, rel=0.15)
    assert gap.turns[10.0] < gap.turns[22.5] < gap.turns[45.0] == gap.cheapest


def test_gaps_agree_with_power():
    prior = pc.priors.StudentTransition(2, 0.3)
    (gap,) = check_prior(prior).gaps
    other = power(prior, sd=0.0)
    assert gap.cheapest == pytest.approx(other.nats, abs=4 * (gap.se + other.gap_se[-1]))
    (blind,) = check_prior(pc.priors.GaussianTransition(2, 0.5)).gaps
    assert abs(blind.cheapest) < 1e-4


def test_conditions_are_times_where_the_prior_wants_times():
    kinetics = pc.priors.Kinetics(pc.priors.LaplaceTransition, 2, 3.0, learned=True)
    check = check_prior(kinetics, {"time": [[0.0, 1.0, 2.0], [0.0, 1.0, 3.0]]})
    assert check.temporal
    assert check.conditions == 2
    assert check.verdict.learned.free.kind == "permutation"
    with pytest.raises(pc.InputError, match="time is missing"):
        check_prior(kinetics)


def test_one_latent_has_no_axes_to_mix():
    check = check_prior(pc.priors.LaplaceTransition(1, 3.0))
    assert check.verdict.known.free.kind == "identified"
    assert check.gaps == ()


def test_rates_that_are_learned_may_differ():
    kinetics = pc.priors.Kinetics(pc.priors.GaussianTransition, 2, 1.0, learned=True)
    verdict = check_prior(kinetics, {"time": [[0.0, 1.0]]}).verdict
    assert verdict.known.linear.kind == "rotation"
    assert verdict.learned.linear.kind == "permutation"


class Returning(pc.priors.LaplaceTransition):
    """Laplace steps from where half of the frame before is left."""

    @property
    def decay(self):
        return torch.full((2,), 0.5)


def test_laplace_steps_of_what_falls_back_are_not_called_independent():
    check = check_prior(Returning(2, rate=2.0))
    assert "have straight pieces and corners" in check.verdict.known.free.sentence
    assert not check.verdict.known.free.axes
    assert check.verdict.known.linear.axes  # steps are not Gaussian, whatever is left


def test_independent_frames_are_no_transitions():
    for law in (dist.Laplace(0.0, 1.0), dist.StudentT(4.0)):
        check = check_prior(law.expand([2, 2]).to_event(2))
        assert check.verdict.known.free.kind == check.verdict.learned.free.kind == "unknown"
        assert "are independent" in check.verdict.known.free.sentence
        assert check.verdict.learned.linear.kind == "permutation"


def test_dependent_components_have_no_theorem():
    class Shared(Transition):
        """One step size for both components."""

        def __init__(self):
            super().__init__(2, unused=1.0)

        def log_steps(self, z):
            return -2 * (1 + z.diff(dim=-2).square().sum(-1, keepdim=True)).log()

        def follow(self, first):
            step = dist.MultivariateStudentT(2.0, torch.zeros(2), torch.eye(2)).sample(
                first.shape[:-1]
            )
            return torch.cat([first, first + step], -2)

    check = check_prior(Shared())
    assert not check.factorises
    assert (check.symmetry, check.verdict.known.free.kind) == ("any rotation", "rotation")
