import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.special import log_ndtr

import pyrocryo as pc
from pyrocryo.identify import posterior_sd, power
from pyrocryo.identify.power import _information, _needed, _reading
from pyrocryo.priors.laplace import expected_absolute


class Steps(dist.TorchDistribution):
    """A user's own prior: N(0, 1) and two steps of any law, nothing but sample and log_prob."""

    def __init__(self, law, dim=2):
        self.law = law
        super().__init__(torch.Size(), torch.Size([3, dim]), validate_args=False)

    def sample(self, sample_shape=torch.Size()):
        first = torch.randn(*sample_shape, 1, self.event_shape[1])
        steps = self.law.sample(torch.Size([*sample_shape, 2, self.event_shape[1]]))
        return torch.cat([first, steps], dim=-2).cumsum(-2)

    def log_prob(self, z):
        first = dist.Normal(0.0, 1.0).log_prob(z[..., 0, :]).sum(-1)
        return first + self.law.log_prob(z.diff(dim=-2)).sum((-1, -2))


def _gap(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return 2 * ((c * c + c * s + s * s) / (c + s) - 1)


@pytest.mark.parametrize(("dim", "rate", "frames"), [(2, 1.0, 2), (2, 4.0, 4), (3, 2.0, 2)])
def test_turned_laplace_steps_cost_what_they_should(dim, rate, frames):
    result = power(pc.priors.LaplaceTransition(dim, rate, frames=frames), draws=200_000)
    assert [round(_gap(a), 4) for a in result.degrees] == [0.0217, 0.0719, 0.1213]
    for angle, gap, error in zip(result.degrees, result.gap, result.gap_se, strict=True):
        # the cheapest of several planes is a little below all of them
        assert gap == pytest.approx((frames - 1) * _gap(angle), abs=4 * error)
        assert error < 0.003 * (frames - 1)
    assert result.information == result.gap
    assert result.nats == result.gap[2] == result.noiseless
    assert result.pairs_per_nat == pytest.approx(1 / result.nats)
    assert result.pairs_needed[10.0] == pytest.approx(3 / result.gap[0])
    assert not result.invariant


def _seen_through_noise(r):
    """Gap at 45° with noise r on an increment of Laplace scale 1, by quadrature."""
    w = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    noise = torch.tensor(r, dtype=w.dtype)
    one = 0.5 * torch.exp(-w.abs())  # a step
    two = 0.25 * (1 + w.abs()) * torch.exp(-w.abs())  # the difference of two
    turned = two * expected_absolute(w / math.sqrt(2), noise)
    return 2 * torch.trapezoid(turned - one * expected_absolute(w, noise), w).item()


def _divergence(r):
    """KL at 45° of the laws of noisy increments, on a grid."""
    x = np.linspace(-25, 25, 1001)

    def logs(x):
        down, up = x + log_ndtr(-x / r - r), -x + log_ndtr(x / r - r)
        return math.log(0.5) + r * r / 2 + np.logaddexp(down, up)

    a, b = np.meshgrid(x, x)
    here = logs(a) + logs(b)
    turned = logs((a - b) / math.sqrt(2)) + logs((a + b) / math.sqrt(2))
    return float((np.exp(here) * (here - turned)).sum() * (x[1] - x[0]) ** 2)


@pytest.mark.parametrize(
    ("r", "gap", "information"),
    [(0.5, 0.0890, 0.0670), (1.0, 0.0539, 0.0250), (2.0, 0.0204, 0.00283)],
)
def test_noise_hides_what_a_turn_costs(r, gap, information):
    assert _seen_through_noise(r) == pytest.approx(gap, abs=2e-4)
    assert _divergence(r) == pytest.approx(information, rel=0.02)
    # steps so small that their noise is all in the increment, where N(0, 1) is flat
    prior = pc.priors.LaplaceTransition(2, 50.0)
    result = power(prior, r / 50 / math.sqrt(2), degrees=(), draws=200_000)
    assert result.nats == pytest.approx(gap, abs=4 * result.gap_se[0])
    error = result.information_se[0]
    assert result.information[0] == pytest.approx(information, abs=4 * error)
    assert error < 0.25 * information
    assert result.pairs_needed[45.0] == pytest.approx(3 / result.information[0])


def test_noise_of_each_component_and_of_each_frame():
    prior = pc.priors.LaplaceTransition(2, 4.0)
    same = [
        power(prior, sd, degrees=(), draws=2000)
        for sd in (0.1, (0.1, 0.1), torch.full((2, 2), 0.1))
    ]
    assert len({s.information for s in same}) == len({s.gap for s in same}) == 1
    worse = power(prior, (0.1, 0.4), degrees=(), draws=2000)
    assert worse.information[0] < same[0].information[0]


def test_unequal_widths_charge_turns_without_any_step():
    a, b = math.sqrt(2) * 0.2, math.sqrt(2) * 0.4
    result = power(pc.priors.LaplaceTransition(2, 60.0), (0.2, 0.4), degrees=(), draws=200_000)
    alone = 60 * math.sqrt(2 / math.pi) * (math.sqrt(2 * (a * a + b * b)) - a - b)
    assert result.nats == pytest.approx(alone, rel=0.05)
    assert alone > 10 * result.noiseless


@pytest.mark.parametrize(
    "prior",
    [
        pc.priors.IsotropicNormal(3),
        dist.Normal(0.0, torch.ones(2, 2)).to_event(2),
        dist.Normal(0.0, torch.tensor([1.0, 3.0])).expand([2, 2]).to_event(2),  # whitened
        Steps(dist.Normal(0.0, 0.3)),
    ],
)
@pytest.mark.parametrize("sd", [0.0, 0.3])
def test_priors_that_cannot_see_turns_say_so(prior, sd):
    result = power(prior, sd)
    assert result.invariant
    assert set(result.pairs_needed.values()) == {math.inf}
    assert abs(result.noiseless) < 1e-4
    assert "no number of molecules" in result.sentence


def test_unequal_gaussians_are_told_unless_whitened():
    prior = dist.Normal(0.0, torch.tensor([1.0, 3.0])).expand([2, 2]).to_event(2)
    assert not power(prior, pooled=False).invariant


@pytest.mark.parametrize(
    "law",
    [
        dist.StudentT(4.0, 0.0, 0.3),
        dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.8, 0.2])),
            dist.Normal(torch.zeros(2), torch.tensor([0.1, 1.0])),
        ),
    ],
)
def test_other_sparse_steps(law):
    sharp = power(Steps(law), degrees=(), draws=20_000)
    dull = power(Steps(law), 0.3, degrees=(), draws=2000)
    assert sharp.nats > 0.05
    assert 0 < dull.information[0] < 0.5 * sharp.nats
    assert "molecules on" in dull.sentence


def test_a_seed_gives_the_same_and_leaves_the_rest_alone():
    prior = pc.priors.LaplaceTransition(2, 4.0)
    before = torch.get_rng_state()
    first = power(prior, 0.1, draws=1000, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert power(prior, 0.1, draws=1000, seed=3) == first
    assert power(prior, 0.1, draws=1000, seed=4) != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": dist.Normal(0.0, 1.0)}, r"prior: expected a distribution of event shape"),
        ({"prior": "Laplace"}, r"prior: expected a distribution of event shape"),
        ({"prior": pc.priors.IsotropicNormal(2).expand([4])}, r"batch shape \(4,\)"),
        ({"prior": pc.priors.IsotropicNormal(1)}, "one latent has no axes"),
        ({"sd": -0.1}, "sd: expected standard deviations"),
        ({"sd": (0.1, 0.1, 0.1)}, r"sd: expected a number, \(2,\) or \(2, 2\), got shape \(3,\)"),
        ({"sd": "a"}, "sd: expected standard deviations, got 'a'"),
        ({"draws": 3}, "draws: expected at least 1000, got 3"),
        ({"prior": dist.Uniform(torch.zeros(2), 1.0).to_event(1)}, "density above 0 everywhere"),
        ({"prior": dist.Exponential(torch.ones(2)).to_event(1)}, "density above 0 everywhere"),
        ({"ratio": 0}, "ratio: expected a positive number"),
    ],
)
def test_wrong_input_is_named(change, message):
    given = {"prior": pc.priors.LaplaceTransition(2, 1.0)} | change
    with pytest.raises(pc.InputError, match=message):
        power(**given)


def _gaussian_divergence(sds, noise, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn, error = np.array([[c, -s], [s, c]]), noise**2 * np.eye(2)
    own = np.diag(np.square(sds)) + error
    turned = turn.T @ np.diag(np.square(sds)) @ turn + error
    logs = np.linalg.slogdet(turned)[1] - np.linalg.slogdet(own)[1]
    return 0.5 * (np.trace(np.linalg.solve(turned, own)) - 2 + logs)


@pytest.mark.parametrize(("sds", "noise"), [((1.0, 0.05), 0.1), ((1.0, 0.02), 0.05)])
def test_turned_posteriors_far_from_the_own_ones(sds, noise):
    prior = dist.Normal(0.0, torch.tensor(sds)).to_event(1)
    result = power(prior, noise, pooled=False, draws=5000)
    exact = [_gaussian_divergence(sds, noise, angle) for angle in result.degrees]
    assert exact[2] > 15
    for found, error, known in zip(result.information, result.information_se, exact, strict=True):
        assert found == pytest.approx(known, abs=4 * error)
        assert error < 0.04 * known


def test_what_the_draws_cannot_reach_is_not_given():
    law = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.9, 0.1])),
        dist.Normal(torch.zeros(2), torch.tensor([1e-5, 1.0])),
    )
    result = power(Steps(law), 0.3, degrees=(), draws=1000)
    assert math.isnan(result.information[0])
    assert "could not be computed" in result.sentence


def test_information_below_its_error_is_no_number_of_molecules():
    told = [(1.6e-7, 3.4e-6), (math.nan, math.nan), (0.02, 0.001)]
    gaps = [(0.1, 0.01), (0.1, 0.06), (0.1, 0.01)]
    needed = _needed((5.0, 10.0, 45.0), gaps, told, False, 3.0)
    assert needed == {5.0: math.inf, 10.0: math.inf, 45.0: pytest.approx(150)}
    told = {5.0: (0.0, 0.1), 45.0: (0.0176, 0.001)}
    text = _reading({5.0: math.inf, 45.0: 170.4}, told, 0.12, False, 3.0)
    assert text.endswith("from 170 molecules on.")
    text = _reading({5.0: 48_321.0, 45.0: 170.4}, told, 0.12, False, 3.0)
    assert text.endswith("from 170 molecules on, one by 5° from 48000.")


def test_a_gap_within_its_error_of_none_is_not_none():
    prior = Steps(dist.StudentT(20.0, 0.0, 1.0))
    found = [power(prior, degrees=(), draws=1000, seed=n) for n in range(10)]
    assert min(result.noiseless for result in found) < 1e-3
    assert not any(result.invariant for result in found)


def test_turns_either_way_round_are_tried():
    one, other = (
        power(dist.Gumbel(0.0, torch.tensor(scales)).to_event(1), pooled=False)
        for scales in ((1.0, 0.3), (0.3, 1.0))  # mirror images
    )
    for a, b, error in zip(one.gap, other.gap, one.gap_se, strict=True):
        assert a == pytest.approx(b, abs=6 * error)


def test_everything_lies_where_the_draws_do():
    prior = dist.Normal(torch.zeros(2), torch.tensor([1.0, 0.5])).to_event(1)
    z, noise = prior.sample((50,)), torch.full((2,), 0.3)
    with torch.device("meta"):  # what names no device ends there
        told = _information(prior, z, z, noise, [lambda z: z.flip(-1)], 32)
    assert math.isfinite(told[0][0])


class Linear:
    """A molecule whose images are linear in z: two stripes, and a third that z does not move."""

    dim = 2

    def __init__(self, *gains):
        self.gains = gains

    def render(self, z, rotation, shift, *, box, pixel_size):
        image = z.new_zeros(*z.shape[:-1], box, box)
        image[..., 2, :] = 10.0
        for k, gain in enumerate(self.gains):
            image[..., k, :] = gain * z[..., k, None]
        return image


def test_how_sharply_linear_images_tell_z():
    molecule = Linear(1.0, 2.0)
    sd = posterior_sd(molecule, snr=0.1, n=200, box=8)
    assert (sd[0] / sd[1]).item() == pytest.approx(2)
    again = posterior_sd(molecule, snr=0.4, n=200, box=8)
    assert torch.allclose(sd, 2 * again)
    p = pc.simulate.poses(molecule, 200, 0, snr=0.1, box=8)
    bright = p.batch(np.arange(200)).images[:, 2, :].mean().item() / 10
    assert 1 / (bright * math.sqrt(8)) == pytest.approx(sd[0].item(), rel=0.05)


def test_sharpness_is_what_the_exact_posterior_reaches():
    molecule = pc.molecules.TwoArms()
    sd = posterior_sd(molecule, snr=0.1)
    particles = pc.simulate.poses(molecule, 150, seed=1, snr=0.1)
    best = pc.simulate.information_limit(molecule, particles, pc.priors.IsotropicNormal(2))
    reached = np.sqrt(np.square(best - particles.truth).mean(axis=0))
    assert (sd**-2 + 1) ** -0.5 == pytest.approx(reached, rel=0.25)
    assert (posterior_sd(molecule, snr=0.1, n=50, ctf=True) > 0).all()


def test_what_cannot_be_seen_is_named():
    with pytest.raises(pc.InputError, match="cannot be seen in images"):
        posterior_sd(Linear(1.0, 0.0), snr=1.0, n=20, box=8)
    with pytest.raises(pc.InputError, match="contrast: the sharpness of z"):
        posterior_sd(Linear(1.0, 1.0), snr=1.0, n=20, box=8, contrast=0.1)
