import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints
from torch.distributions.kl import register_kl

import pyrocryo as pc
from pyrocryo.rotated_normal import RotatedNormal
from pyrocryo.testing import CheckFailed, check_pair, check_prior

TEMPERATURES = {"temperature": torch.tensor([300.0, 200.0])}


class StudentSteps(dist.TorchDistribution):
    """N(0, I), then steps with heavy tails; what a user would write, with no KL in closed form."""

    arg_constraints = {"scale": constraints.positive}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, dim, scale, *, frames=2, df=3.0, validate_args=None):
        self.scale, self.df = torch.as_tensor(scale), df
        super().__init__(torch.Size(), torch.Size([frames, dim]), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(StudentSteps, _instance)
        new.scale, new.df = self.scale, self.df
        super(StudentSteps, new).__init__(torch.Size(batch_shape), self.event_shape)
        return new

    def rsample(self, sample_shape=torch.Size()):
        z = self.scale.new_zeros(self._extended_shape(sample_shape))
        steps = dist.StudentT(self.df, z[..., 1:, :], self.scale).rsample()
        return torch.cat([torch.randn_like(z[..., :1, :]), steps], dim=-2).cumsum(-2)

    def log_prob(self, value):
        first = -0.5 * (value[..., 0, :].square() + math.log(2 * math.pi)).sum(-1)
        steps = dist.StudentT(self.df, 0.0, self.scale.to(value))
        return first + steps.log_prob(value.diff(dim=-2)).sum((-1, -2))


def tempered(temperature):
    return dist.Laplace(torch.zeros_like(temperature)[..., None], (temperature / 300)[..., None])


GOOD = {
    "normal": lambda: (pc.priors.IsotropicNormal(3), {"dim": 3}),
    "laplace": lambda: (pc.priors.LaplaceTransition(2, 2.0), {"dim": 2, "frames": 2}),
    "laplace, 3 frames": lambda: (
        pc.priors.LaplaceTransition(2, torch.tensor([1.0, 20.0]), frames=3), {},
    ),
    "harmonic": lambda: (
        pc.priors.Boltzmann((300.0, 100.0), learned=True), {"context": TEMPERATURES},
    ),
    "table": lambda: (
        pc.priors.Boltzmann(table={300: (1, 1), 200: (0.5, 0.1)}),
        {"context": TEMPERATURES, "frames": 2},
    ),
    "Pyro's normal": lambda: (dist.Normal(torch.zeros(2), 1.0).to_event(1), {}),
    "Pyro's multivariate normal": lambda: (
        dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]])), {},
    ),
    "two peaks": lambda: (
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2, 2)),
            dist.Normal(torch.tensor([[-2.0, 2.0], [-4.0, 4.0]]), 0.5),
        ).to_event(1), {},
    ),
    "no variance": lambda: (dist.StudentT(2.0, torch.zeros(2), 1.0).to_event(1), {}),
    "a function": lambda: (
        lambda temperature: tempered(temperature).to_event(1),
        {"context": TEMPERATURES, "frames": 3},
    ),
    "many rows, double": lambda: (
        dist.Normal(torch.zeros(30, 2).double(), 1.0).to_event(1), {},
    ),
    "one latent, rows": lambda: (pc.priors.LaplaceTransition(1, 2.0).expand((4,)), {}),
    "a table copied once": lambda: (Keeps(), {}),
    "heavy steps": lambda: (StudentSteps(2, 0.3), {"frames": 2}),
    "Cauchy steps": lambda: (StudentSteps(2, 0.05, frames=3, df=1.0), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_priors_pass(name):
    prior, options = GOOD[name]()
    state = torch.get_rng_state()
    found = check_prior(prior, **options)
    assert torch.equal(state, torch.get_rng_state())
    assert found["normalisation"].startswith("integrates to")
    assert found["samples"].startswith("follow")
    priors = pc.priors.IsotropicNormal, pc.priors.LaplaceTransition, nn.Module
    if isinstance(prior, priors) or name in ("Pyro's normal", "many rows, double"):
        assert found["KL"].startswith("closed form")
    else:
        assert found["KL"].startswith("none registered")


def test_heavy_steps_drop_into_a_pair(pairs_in_time):
    pair = pc.Pair(StudentSteps(2, 0.3), pc.volumes.Grid(), pairs_in_time.box)
    fit = pc.fit(pair, pairs_in_time, steps=3, batch_size=16)
    assert not fit.exact_kl
    assert np.isfinite(fit.history["loss"]).all()


class Plain(dist.TorchDistribution):
    """A correct N(0, s² I), to be broken in one place."""

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, scale=(1.0, 0.5), *, batch_shape=torch.Size(), validate_args=None):
        self.scale = torch.as_tensor(scale)
        super().__init__(batch_shape, self.scale.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.scale, batch_shape=torch.Size(batch_shape))

    def rsample(self, sample_shape=torch.Size()):
        return self.scale * torch.randn(
            self._extended_shape(sample_shape), device=self.scale.device
        )

    def log_prob(self, value):
        return dist.Normal(0.0, self.scale).log_prob(value).sum(-1)


class NoExpand(Plain):
    expand = dist.TorchDistribution.expand


class NotSummed(Plain):
    def log_prob(self, value):
        return dist.Normal(0.0, self.scale).log_prob(value)


class Overgeneralised(Plain):
    def log_prob(self, value):
        return super().log_prob(value).sum(-1)


class Detached(Plain):
    def log_prob(self, value):
        return super().log_prob(value.detach())


class ByNumPy(Plain):
    def log_prob(self, value):
        scale = self.scale.numpy()
        white = value.numpy() / scale
        return torch.as_tensor(-(0.5 * white**2 + np.log(scale * (2 * np.pi) ** 0.5)).sum(-1))


class HalfDetached(Plain):
    def log_prob(self, value):
        value = torch.cat([value[..., :1], value[..., 1:].detach()], dim=-1)
        return super().log_prob(value)


class DetachedSamples(Plain):
    def rsample(self, sample_shape=torch.Size()):
        return super().rsample(sample_shape).detach()


class Unnormalised(Plain):
    def log_prob(self, value):
        return super().log_prob(value) + 0.3


class OneSided(Plain):
    def rsample(self, sample_shape=torch.Size()):
        return super().rsample(sample_shape).abs()

    def log_prob(self, value):
        return dist.HalfNormal(self.scale, validate_args=False).log_prob(value).sum(-1)


WIDTHS = torch.tensor([1.0, 0.5])


class Bound(Plain):
    def log_prob(self, value):
        return dist.Normal(0.0, WIDTHS).log_prob(value).sum(-1)


class BoundInAMatrix(Plain):
    def log_prob(self, value):
        half = -0.5 * torch.einsum("...i,ij,...j->...", value, WIDTHS.pow(-2).diag(), value)
        return half - float(WIDTHS.log().sum()) - math.log(2 * math.pi)


class BoundModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = WIDTHS  # not a buffer: .to() leaves it

    def forward(self, temperature):
        return dist.Normal(0.0, self.scale * temperature[..., None] / 300).to_event(1)


class Immovable(BoundModule):
    def __deepcopy__(self, memo):
        raise NotImplementedError("not copied")


class WrongSamples(Plain):
    def rsample(self, sample_shape=torch.Size()):
        return 1.08 * super().rsample(sample_shape)


class Uncorrelated(Plain):
    """Its margins are right, but its samples are independent."""

    def log_prob(self, value):
        first, second = (value / self.scale).unbind(-1)
        second = (second - 0.1 * first) / 0.99**0.5
        white = torch.stack([first, second], dim=-1)
        return dist.Normal(0.0, 1.0).log_prob(white).sum(-1) - math.log(0.5 * 0.99**0.5)


class WrongKL(Plain):
    pass


@register_kl(RotatedNormal, WrongKL)
def _wrong(q, p):
    return 0.9 * (q.variance + q.mean.square()).sum(-1) - q.entropy()


class CrashingKL(Plain):
    pass


@register_kl(RotatedNormal, CrashingKL)
def _crashing(q, p):
    return q.no_such_thing


class Asks(Plain):
    def log_prob(self, value):
        log_prob = super().log_prob(value)
        return log_prob if log_prob.max().item() < 1e9 else 2 * log_prob


class Copies(Plain):
    def log_prob(self, value):
        return dist.Normal(0.0, WIDTHS.to(value.device)).log_prob(value).sum(-1)


class BoundSamples(Plain):
    def rsample(self, sample_shape=torch.Size()):
        return self.scale * torch.randn(self._extended_shape(sample_shape))


class Keeps(Plain):
    """Copies its table once: no hindrance to recording the steps after."""

    table = {}

    def log_prob(self, value):
        if value.device not in self.table:
            self.table[value.device] = WIDTHS.to(value.device)
        return dist.Normal(0.0, self.table[value.device]).log_prob(value).sum(-1)


class Crashes(Plain):
    def log_prob(self, value):
        return value.no_such_thing


class Uneven(nn.Module):
    """Learns a width that its law does not use."""

    def __init__(self):
        super().__init__()
        self.width = nn.Parameter(torch.ones(2))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, temperature):
        return dist.Normal(0.0, self.width * temperature[..., None] / 300).to_event(1)


FAULTY = {
    "no expand": (NoExpand(), "expand", "becomes ExpandedDistribution"),
    "no to_event": (dist.Normal(torch.zeros(2), 1.0), "event shape", r"to_event\(1\)"),
    "not summed": (NotSummed(), "event shape", r"shape \(7, 2\), expected \(7,\)"),
    "summed too far": (Overgeneralised(), "event shape", "no more, no fewer"),
    "detached": (Detached(), "gradient", "cut off from z"),
    "through NumPy": (ByNumPy(), "gradient", "numpy.* on Tensor .*test_testing.py"),
    "half detached": (HalfDetached(), "gradient", "not its slope"),
    "detached samples": (DetachedSamples(), "gradient", "samples are cut off"),
    "a parameter without gradient": (Uneven(), "gradient", "cut off from the parameter idle"),
    "unnormalised": (Unnormalised(), "normalisation", r"integrates to 1\.3[45]"),
    "one-sided, said real": (OneSided(), "support", "log_prob is -inf at z ="),
    "half-normal": (dist.HalfNormal(torch.ones(2)).to_event(1), "support", "Gaussian guides"),
    "gamma": (dist.Gamma(torch.ones(2), 1.0).to_event(1), "support", "Gaussian guides"),
    "box": (dist.Uniform(-torch.ones(2), 1.0).to_event(1), "support", "Gaussian guides"),
    "bound": (Bound(), "device", r"shape \(2,\) stays on the cpu.*test_testing.py"),
    "bound in a matrix": (BoundInAMatrix(), "device", "stays on the cpu"),
    "no buffer": (BoundModule(), "device", "stays on the cpu"),
    "cannot be moved": (Immovable(), "device", "not copied"),
    "wrong samples": (WrongSamples(), "samples", "do not follow"),
    "uncorrelated samples": (Uncorrelated(), "samples", "do not follow"),
    "wrong KL": (WrongKL(), "KL", "closed form gives"),
    "crashing KL": (CrashingKL(), "KL", "no_such_thing"),
    "asks": (Asks(), "capture", r"\.item\(\).*test_testing.py"),
    "copies": (Copies(), "capture", "copied between"),
    "crashes": (Crashes(), "event shape", "no_such_thing"),
    "not a distribution": (lambda temperature: temperature, "event shape", "returned Tensor"),
    "cannot be made": (
        lambda temperature: dist.Normal(0.0, -temperature), "event shape", "ValueError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_prior_is_named_by_its_fault_alone(name):
    prior, check, sentence = FAULTY[name]
    needs = isinstance(prior, nn.Module) or "temperature" in str(getattr(prior, "__code__", ""))
    context = TEMPERATURES if needs or name in ("not a distribution", "cannot be made") else None
    with pytest.raises(CheckFailed, match=sentence) as failed:
        check_prior(prior, context=context)
    assert list(failed.value.faults) == [check]
    assert f"{check}: {failed.value.faults[check]}" in str(failed.value)


def test_the_prior_that_is_broken_in_the_tests_is_right_otherwise():
    assert "samples" in check_prior(Plain())["gradient"]
    Plain(validate_args=True).log_prob(torch.zeros(2))


def test_samples_that_stay_behind_are_told_of():
    said = pc.testing.check_prior(BoundSamples())["device"]
    assert "sampling on a GPU will fail" in said
    assert "stays on the cpu" in said


def test_every_fault_is_named():
    class Both(NoExpand, Unnormalised):
        pass

    with pytest.raises(
        CheckFailed, match="Both has 2 faults\nexpand: .*\nnormalisation: "
    ) as failed:
        check_prior(Both())
    assert set(failed.value.faults) == {"expand", "normalisation"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dim": 3}, "expected K = 3"), ({"frames": 3}, "expected T = 3")],
)
def test_expected_sizes(options, message):
    with pytest.raises(CheckFailed, match=message):
        check_prior(pc.priors.LaplaceTransition(2, 1.0), **options)


@pytest.mark.parametrize(
    ("prior", "context", "message"),
    [
        (pc.priors.Boltzmann((300.0,)), {}, "needs temperature; give context="),
        (pc.priors.Boltzmann((300.0,)), TEMPERATURES | {"time": 0}, "does not ask for time"),
        (3, {}, "prior: expected a distribution"),
    ],
)
def test_wrong_input_is_named(prior, context, message):
    with pytest.raises(pc.InputError, match=message):
        check_prior(prior, context=context)


@pytest.mark.parametrize("kind", ["laplace", "normal", "table", "a function", "heavy steps"])
def test_good_pairs_pass(kind, pairs_in_time, at_temperatures):
    prior, particles = {
        "laplace": (pc.priors.LaplaceTransition(2, 2.0), pairs_in_time),
        "normal": (pc.priors.IsotropicNormal(2), pairs_in_time),
        "table": (
            pc.priors.Boltzmann(table=pc.simulate.default_scales(2), learned=True),
            at_temperatures,
        ),
        "a function": (lambda temperature: tempered(temperature).to_event(1), at_temperatures),
        "heavy steps": (StudentSteps(2, 0.3), pairs_in_time),
    }[kind]
    dim = 1 if kind == "a function" else None
    pair = pc.Pair(prior, pc.volumes.Grid(), particles.box, dim=dim)
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    state, store = torch.get_rng_state(), set(pyro.get_param_store())
    found = check_pair(pair, particles)
    assert "standard errors" in found["ELBO"]
    assert ("rotation.angle" in found["gradient"]) == (kind == "normal")
    assert torch.equal(state, torch.get_rng_state())
    assert set(pyro.get_param_store()) == store
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    assert all(p.grad is None for p in pair.parameters())
    assert pair.training


class IdleVolume(pc.volumes.Grid):
    def build(self, latent, box):
        super().build(latent, box)
        self.idle = nn.Linear(2, 2)
        return self


class FixedVolume(pc.volumes.Grid):
    def build(self, latent, box):
        super().build(latent, box)
        self.gain = nn.Parameter(torch.ones(()))
        return self

    def forward(self, z, rotation, shift):
        return self.gain * super().forward(z, rotation, shift)


class FlatVolume(pc.volumes.Grid):
    def density(self, z):
        return super().density(z).flatten(0, -3)


class BoundVolume(pc.volumes.Grid):
    def forward(self, z, rotation, shift):
        return super().forward(z * torch.ones(2), rotation, shift)


class AskingGuide(pc.guides.Amortised):
    def forward(self, images, rotation, shift):
        if images.abs().max() > 1e9:
            images = images / images.abs().max()
        return super().forward(images, rotation, shift)


FAULTY_PAIRS = {
    "idle": ({"volume": IdleVolume()}, "gradient", "none reaches volume.idle.weight"),
    "no reset": ({"volume": FixedVolume()}, "reset", r"volume \(FixedVolume\)"),
    "flat density": ({"volume": FlatVolume()}, "density", r"of z \(2, 3, 2\) has shape \(6, 32"),
    "bound": ({"volume": BoundVolume()}, "device", "stays on the cpu.*test_testing.py"),
    "asks": ({"guide": AskingGuide()}, "capture", r"\.item\(\).*test_testing.py"),
    "no expand": ({"prior": WrongKL()}, "ELBO", "standard errors apart"),
    "wrong box": ({"box": 16}, "particles", "box: the particles are 32"),
}


@pytest.mark.parametrize("name", FAULTY_PAIRS)
def test_a_faulty_pair_is_named_by_its_fault_alone(name, pairs_in_time):
    changed, check, sentence = FAULTY_PAIRS[name]
    particles = pairs_in_time
    if "prior" in changed:  # one frame each
        particles = pc.Particles(pairs_in_time.images[:, 0], rotation=pairs_in_time.rotation[:, 0])
    options = {"prior": pc.priors.LaplaceTransition(2, 2.0), "volume": pc.volumes.Grid()}
    pair = pc.Pair(**(options | {"box": particles.box} | changed))
    with pytest.raises(CheckFailed, match=sentence) as failed:
        check_pair(pair, particles)
    assert list(failed.value.faults) == [check]
