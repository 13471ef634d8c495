"""A pair is an ordinary Pyro model and guide: everything of Pyro's works on it, unmodified."""

import copy
import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.reparam import ProjectedNormalReparam
from torch.distributions import constraints

import pyrocryo as pc


def _time(particles, **options):
    volume = options.pop("volume", pc.volumes.Grid())
    return pc.Pair(pc.priors.LaplaceTransition(2, 2.0), volume, particles.box, **options)


KINDS = {
    "known pose": lambda p: _time(p),
    "unknown pose": lambda p: _time(p, pose=pc.poses.InPlane()),
    "implicit": lambda p: _time(p, volume=pc.volumes.Implicit()),
    "atoms": lambda p: _time(p, volume=pc.volumes.Atoms(pixel_size=p.pixel_size)),
    "isotropic": lambda p: pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(), p.box),
}


@pytest.fixture(params=KINDS)
def pair(request, pairs_in_time):
    return KINDS[request.param](pairs_in_time)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize(
    "optimiser",
    [
        pyro.optim.ClippedAdam({"lr": 3e-3, "lrd": 0.999}),
        pyro.optim.RMSprop({"lr": 1e-3}),
        pyro.optim.PyroLRScheduler(
            torch.optim.lr_scheduler.ExponentialLR,
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 3e-3}, "gamma": 0.99},
        ),
    ],
    ids=["ClippedAdam", "RMSprop", "scheduled"],
)
def test_svi_with_any_optimiser(elbo, optimiser, pairs_in_time):
    pair = KINDS["unknown pose"](pairs_in_time)
    batch = pairs_in_time.batch(np.arange(32))
    svi = SVI(pair.model, pair.guide, copy.deepcopy(optimiser), elbo())
    losses = [svi.step(batch) for _ in range(25)]
    assert np.mean(losses[-5:]) < 0.97 * losses[0]


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_elbos_as_modules(elbo, pair, pairs_in_time):
    """As in Pyro's svi_torch example: the module has the pair's parameters, all of them."""
    batch = pairs_in_time.batch(np.arange(32))
    loss = elbo()(pair.model, pair.guide)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in pair.parameters()}
    optimiser = torch.optim.Adam(loss.parameters(), lr=4e-3)
    values = []
    for _ in range(25):
        optimiser.zero_grad()
        value = loss(batch)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert np.mean(values[-5:]) < 0.97 * values[0]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_pairs_one_after_another_all_learn(order, pairs_in_time):
    """By plain SVI and by fit, in any order, in one process and one parameter store."""
    kinds = ["known pose", "unknown pose", "isotropic"]
    batch = pairs_in_time.batch(np.arange(48))
    for n in order:
        pair = KINDS[kinds[n]](pairs_in_time)
        before = copy.deepcopy(pair.state_dict())
        if n % 2 == order[0] % 2:
            svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 4e-3}), TraceMeanField_ELBO())
            losses = [svi.step(batch) / 48 for _ in range(20)]
        else:
            fit = pc.fit(pair, pairs_in_time, steps=20, batch_size=48)
            losses, pair = fit.history["loss"][0], fit.pairs[0]
        assert losses[-1] < losses[0] - 100
        after = pair.state_dict()
        for part in ("encoder.network.0.weight", "volume.network.0.weight", "noise_steps"):
            assert not torch.equal(before[part], after[part]), (kinds[n], part)


def test_predictive(pair, pairs_in_time):
    pair.eval()
    batch = pairs_in_time.batch(np.arange(5))
    model = poutine.uncondition(pair.model)
    drawn = Predictive(model, guide=pair.guide, num_samples=3)(batch)
    assert drawn["x"].shape == (3, 5, 2, 32, 32)
    assert not torch.equal(drawn["x"][0], batch.images)
    assert drawn["z"].shape == (3, 5, 2, 2)
    prior = Predictive(model, num_samples=200)(batch)
    assert float(prior["z"][:, :, 0].std()) == pytest.approx(1, abs=0.1)


def test_poutine_conditions_and_blocks(pair, pairs_in_time):
    batch = pairs_in_time.batch(np.arange(5))
    z = torch.zeros(5, 2, 2)
    trace = poutine.trace(poutine.condition(pair.model, {"z": z})).get_trace(batch)
    assert trace.nodes["z"]["is_observed"]
    trace = poutine.trace(poutine.block(pair.model, hide=["z"])).get_trace(batch)
    assert "z" not in trace.nodes
    assert "x" in trace.nodes


def test_render_model(pair, pairs_in_time):
    batch = pairs_in_time.batch(np.arange(5))
    source = pyro.render_model(pair.model, model_args=(batch,)).source
    assert "z -> x" in source
    assert ("pose -> x" in source) == pair.pose.latent
    assert "particle" in source


# a quarter of the pixels at four times the signal tells as much
COARSE = {"box": 16, "pixel_size": 6.0, "snr": 4.0, "max_shift": 0.0}


@pytest.fixture(scope="module")
def settled():
    """A pair whose volume is the truth, so that posteriors are sharp and known."""
    molecule = pc.molecules.TwoArms()
    particles = pc.simulate.poses(molecule, n=300, seed=2, **COARSE)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2),
        pc.volumes.Atoms.known(molecule, pixel_size=particles.pixel_size),
        particles.box,
        pose=pc.poses.InPlane(),
        rotate=False,
    )
    fit = pc.fit(pair, particles, steps=500, rigid_steps=150, batch_size=32, lr=4e-3)
    return fit.pairs[0], particles


def test_nuts_for_one_particle(settled):
    """NUTS finds the pose and conformation that made the image; the sphere needs its reparam."""
    pair, particles = settled
    batch = particles.batch(np.array([7]))
    with torch.no_grad():
        start = pair.pose_of(batch).mean
        # through the reparametrisation the direction is safe_normalize of a standard normal
        first = {"pose_normal": 2 * start, "z": pair.posterior_of(batch).mean}
    for parameter in pair.parameters():
        parameter.requires_grad_(False)
    model = poutine.reparam(pair.model, {"pose": ProjectedNormalReparam()})
    mcmc = MCMC(
        NUTS(model, jit_compile=False), num_samples=50, warmup_steps=60, initial_params=first,
        disable_progbar=True,
    )  # fmt: skip
    mcmc.run(batch)
    drawn = mcmc.get_samples()
    z, direction = drawn["z"][:, 0], drawn["pose_normal"][:, 0]
    direction = direction / direction.norm(dim=-1, keepdim=True)
    truth = particles.truth[7]
    spread = z.std(0).numpy()
    assert (np.abs(z.mean(0).numpy() - truth) < 4 * spread + 0.05).all()
    assert (spread < 0.5).all()
    angle = float(pc.metrics.in_plane_angle(particles.rotation[7]))
    mean = direction.mean(0)
    error = np.angle(np.exp(1j * (float(torch.atan2(mean[1], mean[0])) - angle)))
    assert abs(np.rad2deg(error)) < 5
    for parameter in pair.parameters():
        parameter.requires_grad_(True)


class StudentTransition(dist.TorchDistribution):
    """A prior of a user's: Student-t steps between two frames."""

    arg_constraints = {"scale": constraints.positive}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, dim, scale, batch_shape=(), validate_args=None):
        self.scale = torch.as_tensor(scale)
        super().__init__(torch.Size(batch_shape), torch.Size([2, dim]), validate_args)

    def expand(self, batch_shape, _instance=None):
        return StudentTransition(self.event_shape[1], self.scale, batch_shape)

    def rsample(self, sample_shape=()):
        first = torch.randn(*sample_shape, *self.batch_shape, 1, self.event_shape[1])
        steps = dist.StudentT(3.0, 0.0, self.scale).rsample(first.shape)
        return torch.cat([first, first + steps], dim=-2)

    def log_prob(self, z):
        steps = dist.StudentT(3.0, 0.0, self.scale).log_prob(z.diff(dim=-2))
        return dist.Normal(0.0, 1.0).log_prob(z[..., 0, :]).sum(-1) + steps.sum((-1, -2))


def test_a_prior_of_your_own_drops_in(pairs_in_time):
    prior = StudentTransition(2, 0.4)
    assert pc.testing.check_prior(prior)
    pair = pc.Pair(prior, pc.volumes.Grid(), pairs_in_time.box)
    fit = pc.fit(pair, pairs_in_time, steps=40)
    assert not fit.exact_kl
    assert fit.history["loss"][0, -5:].mean() < fit.history["loss"][0, 0] - 100
    post = pc.posterior(fit, pairs_in_time.test, draws=3)
    assert pc.identify.report(fit, post)["prior"]["sees_rotations"]
