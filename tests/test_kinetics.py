"""Transitions per unit time, and every transition prior in a pair."""

import copy

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

import pyrocryo as pc
from pyrocryo.svi.loss import negative_elbo
from pyrocryo.svi.weights import Weights
from pyrocryo.testing import check_prior

P = pc.priors
TIME = torch.tensor([[0.0, 0.1, 1.0], [0.0, 2.0, 2.5], [3.0, 4.0, 5.0]])
FAMILIES = {
    "laplace": (P.LaplaceTransition, 3.0, {}),
    "student": (P.StudentTransition, 0.3, {"df": 4.0}),
    "pseudo-huber": (P.PseudoHuberTransition, 0.3, {"width": 0.5}),
    "jump": (P.JumpTransition, 0.3, {"small": 0.1, "large": torch.tensor([1.0, 2.0])}),
    "gaussian": (P.GaussianTransition, torch.tensor([0.2, 1.0]), {}),
    "switching": (P.SwitchingTransition, 0.5, {"slow": 0.1, "fast": 1.0}),
}


def _made(name, **more):
    family, value, options = FAMILIES[name]
    return P.Kinetics(family, 2, value, **options, **more)


@pytest.mark.parametrize("name", ["jump", "switching"])
def test_every_check_passes(name):
    found = check_prior(_made(name, learned=True), context={"time": TIME}, dim=2, frames=3)
    assert found["KL"].startswith("none" if name == "switching" else "closed form")


@pytest.mark.parametrize("name", FAMILIES)
def test_even_seconds_are_the_family_itself(name):
    family, value, options = FAMILIES[name]
    time = torch.arange(4.0).expand(5, 4)
    law, itself = _made(name)(time), family(2, value, frames=4, **options)
    assert (law.batch_shape, law.event_shape) == ((5,), (4, 2))
    z = itself.sample((5,))
    torch.testing.assert_close(law.log_prob(z), itself.log_prob(z))


def test_variance_grows_with_time():
    """As a power of it, and for jumps and relaxation as their laws say."""
    for name in ("laplace", "student", "pseudo-huber"):
        variance = _made(name)(TIME).step_variance
        torch.testing.assert_close(variance[1, 0] / variance[1, 1], torch.full((2,), 4.0))
        variance = _made(name, exponent=1.0)(TIME).step_variance
        torch.testing.assert_close(variance[1, 0] / variance[1, 1], torch.full((2,), 16.0))
    gaussian = _made("gaussian")(TIME)
    torch.testing.assert_close(gaussian.decay[1, 0], torch.tensor([-0.4, -2.0]).exp())
    jump = _made("jump")(TIME)
    torch.testing.assert_close(jump.rate[1], torch.tensor([[0.6, 0.6], [0.15, 0.15]]))
    torch.testing.assert_close(jump.small[1, 0], torch.full((2,), 0.1 * 2**0.5))
    wide = torch.tensor([1.0, 2.0]).square() + 0.01 * (TIME.diff(dim=-1)[1, 0] - 1)
    torch.testing.assert_close(jump.large[1, 0], wide.sqrt())


def test_a_longer_interval_is_two_short_ones():
    """The laws that are exact in time: relaxation, and the chain's memory."""
    short = _made("gaussian")(torch.tensor([[0.0, 0.3, 1.0]]))
    long = _made("gaussian")(torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(short.decay.prod(-2), long.decay[..., 0, :])
    a, v = short.decay[0], short.step_variance[0]
    torch.testing.assert_close(a[1] ** 2 * v[0] + v[1], long.step_variance[0, 0])


@pytest.mark.parametrize(
    ("name", "start", "truth"),
    [
        ("laplace", 3.0, (1.5, 6.0)),
        ("student", 0.3, (0.15, 0.6)),
        ("pseudo-huber", 0.3, (0.15, 0.6)),
        ("jump", 0.3, (0.1, 0.6)),
        ("gaussian", 0.5, (0.2, 1.0)),
        ("switching", 1.0, (0.3, 2.0)),
    ],
)
def test_rates_are_found_by_maximum_likelihood(name, start, truth):
    """From z itself at uneven times."""
    torch.manual_seed(0)
    family, _, options = FAMILIES[name]
    time = torch.cat([torch.zeros(2500, 1), 0.2 + 2 * torch.rand(2500, 5)], dim=-1).cumsum(-1)
    z = P.Kinetics(family, 2, torch.tensor(truth), **options)(time).sample()
    prior = P.Kinetics(family, 2, start, learned=True, **options)
    optimiser = torch.optim.Adam(prior.parameters(), lr=0.03)
    for _ in range(70):
        optimiser.zero_grad()
        (-prior(time).log_prob(z).mean()).backward()
        optimiser.step()
    found = prior.value.detach().numpy()
    np.testing.assert_allclose(found, truth, rtol=0.15 if name == "switching" else 0.06)
    prior.reset_parameters()
    np.testing.assert_allclose(prior.value.detach(), start, rtol=1e-6)


BOX = 16
PRIORS = {
    "student": (lambda: P.StudentTransition(2, 0.3), True),
    "pseudo-huber": (lambda: P.PseudoHuberTransition(2, 0.3), True),
    "jump": (lambda: P.JumpTransition(2, 0.2), True),
    "gaussian": (lambda: P.GaussianTransition(2, 0.3), True),
    "switching": (lambda: P.SwitchingTransition(2, 0.5), False),
    "shared": (lambda: P.SharedFactors(2, 0.6), True),
    "kinetics": (lambda: _made("student", learned=True), True),
}


@pytest.fixture(scope="module")
def in_time():
    particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=80, seed=0, box=BOX)
    gap = np.random.default_rng(0).uniform(0.5, 2, len(particles))
    return particles.having(time=np.stack([0 * gap, gap], axis=1))


def _pair(prior):
    return pc.Pair(prior, pc.volumes.Grid(hidden=(16,)), BOX, guide=pc.guides.Amortised((16,)))


@pytest.mark.parametrize("name", PRIORS)
def test_stacked_and_traced_steps_are_those_of_python(name, in_time, caplog):
    make, exact = PRIORS[name]
    options = {"steps": 5, "batch_size": 8, "seeds": 2, "gamma": 2.0 if exact else 1.0}
    as_python = pc.fit(_pair(make()), in_time, capture=False, **options)
    caplog.clear()
    stacked = pc.fit(_pair(make()), in_time, capture=True, together=2, **options)
    assert "not traced" not in caplog.text
    assert "one after another" not in caplog.text
    assert stacked.exact_kl == exact
    np.testing.assert_allclose(stacked.history["loss"], as_python.history["loss"], rtol=1e-4)
    if "kinetics" in name:  # their rates learn
        assert (stacked.pairs[0].prior.log_speed != 0).all()
    post = pc.posterior(stacked, in_time.test, draws=5, predictive=1)
    assert np.isfinite(np.asarray(post["sample_stats"]["log_prior"])).all()
    gap = pc.identify.rotation_gap(stacked.pairs[0], stacked.example)
    print(f"{name}: {gap:.4f} nats at 45°")
    assert abs(gap) < 1e-4 if name == "gaussian" else gap > 0.02


@pytest.mark.parametrize("name", PRIORS)
def test_elbos_of_pyro_agree_with_ours(name, in_time):
    make, exact = PRIORS[name]
    pair, batch = _pair(make()), in_time.batch(np.arange(16))
    with torch.no_grad():
        torch.manual_seed(0)
        ours = negative_elbo(pair, batch, Weights())
        torch.manual_seed(0)
        theirs = TraceMeanField_ELBO().loss(pair.model, pair.guide, batch) / 16
        assert float(ours) == pytest.approx(theirs, rel=1e-5)
        if not exact:
            return
        # the only chance that is left is the image's: a sampled KL has more
        kl = kl_divergence(pair.posterior_of(batch), pair.prior_of(batch))
        law, prior = pair.posterior_of(batch), pair.prior_of(batch)
        z = law.sample((4000,))
        sampled = law.log_prob(z) - prior.log_prob(z)
        error = sampled.std(0) / 4000**0.5
        assert ((kl - sampled.mean(0)).abs() < 5.5 * error + 1e-4).all()
    loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, batch)
    loss.backward()
    assert loss.isfinite()


def test_a_killed_fit_with_learned_rates_resumes(in_time, tmp_path):
    def fit(path, **more):
        torch.manual_seed(0)
        options = {"steps": 8, "batch_size": 8, "checkpoint": path, "progress": False}
        return pc.fit(_pair(_made("student", learned=True)), in_time, **options, **more)

    whole = fit(tmp_path / "a.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrocryo.svi.checkpoints.EVERY", 4)
        calls = iter(range(100))
        from pyrocryo.svi.step import Step

        step = Step.__call__

        def dies(self, *args, **kwargs):
            if next(calls) == 6:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        patch.setattr(Step, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "b.pt")
        patch.setattr(Step, "__call__", step)
        again = fit(tmp_path / "b.pt", resume=True)
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    torch.testing.assert_close(again.pairs[0].prior.log_speed, whole.pairs[0].prior.log_speed)


def test_seeds_start_from_the_rate_given(in_time):
    pair = _pair(_made("student", learned=True))
    with torch.no_grad():
        pair.prior.log_speed.fill_(1.0)
    fit = pc.fit(pair, in_time, steps=1, lr=1e-6, batch_size=8)
    torch.testing.assert_close(
        fit.pairs[0].prior.value, torch.tensor([0.3, 0.3]), rtol=1e-3, atol=0
    )
    assert copy.deepcopy(pair).prior.log_speed[0] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: P.Kinetics(P.IsotropicNormal, 2, 1.0), "family: expected a class of transition"),
        (lambda: P.Kinetics(P.StudentTransition, 2, -1.0), "scale: expected one positive"),
        (lambda: P.Kinetics(P.StudentTransition, 2, 1.0, df=-1.0), "df: expected a positive"),
        (lambda: P.Kinetics(P.StudentTransition, 2, 1.0, exponent=-1.0), "exponent: expected"),
        (lambda: P.Kinetics(P.StudentTransition, 2, torch.ones(1, 1, 2)), "expected numbers or 2"),
        (lambda: P.Kinetics(P.SharedFactors, 2, 0.5)(TIME), "SharedFactors: its frames have no"),
        (
            lambda: _made("student").check(time=np.zeros(3)),
            r"time: expected \(N, T\) for at least",
        ),
        (
            lambda: _made("student").check(time=np.array([[0.0, 1.0], [2.0, 2.0]])),
            "time: must increase .* particle 1 is 2, 2 s",
        ),
    ],
)
def test_wrong_input_is_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()


def test_particles_need_times_that_increase(in_time):
    pair = _pair(_made("laplace"))
    with pytest.raises(pc.InputError, match="time: the prior Kinetics needs the time"):
        pair.check(in_time.without("time"))
    with pytest.raises(pc.InputError, match="time: must increase"):
        pair.check(in_time.having(time=-in_time.time))


def test_a_pair_in_double_precision_learns_in_double(in_time):
    pair = _pair(_made("student", learned=True)).double()
    law = pair.prior(torch.tensor([[0.0, 0.3]]).double())
    assert law.scale.dtype == torch.double
    assert law.sample().dtype == torch.double


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (pc.priors.StudentTransition, {"foo": 3}, "StudentTransition: .*foo"),
        (pc.priors.SwitchingTransition, {"plugin": True}, "SwitchingTransition: .*plugin"),
        (pc.priors.LaplaceTransition, {"frames": 3}, "frames: is not an option"),
        (pc.priors.SharedFactors, {}, "no law of time"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_family_does_not_take_is_said_at_once(family, options, message):
    with pytest.raises(pc.InputError, match=message):
        pc.priors.Kinetics(family, 2, 0.5, **options)


def test_jumps_stay_larger_than_what_small_steps_have_grown_to():
    prior = pc.priors.Kinetics(pc.priors.JumpTransition, 1, 0.2, small=0.3, large=0.5)
    law = prior(torch.tensor([[0.0, 100.0], [0.0, 1.0]]))
    assert (law.small < law.large).all()
    assert law.small[0].item() == pytest.approx(3.0)
    assert law.large[1].item() == pytest.approx(0.5)


def test_late_times_must_keep_their_intervals():
    prior = pc.priors.Kinetics(pc.priors.LaplaceTransition, 2, 2.0)
    with pytest.raises(pc.InputError, match="subtract the time of the first frame"):
        prior.check(time=np.array([[1e6, 1e6 + 0.1]]))
    prior.check(time=np.array([[0.0, 0.1]]))
