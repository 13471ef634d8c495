import copy
import gc

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

import pyrocryo as pc


def _pair(prior, particles, **options):
    return pc.Pair(prior, volume=pc.volumes.Grid(), box=particles.box, **options)


def _turned(pair, angle=0.07):
    with torch.no_grad():
        pair.rotation.angle.fill_(angle)
    return pair


PRIORS = {
    "normal": (lambda: pc.priors.IsotropicNormal(2), "pairs_in_time"),
    "laplace": (lambda: pc.priors.LaplaceTransition(2, 2.0), "pairs_in_time"),
    "a Pyro distribution": (lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1), "pairs_in_time"),
    "harmonic": (lambda: pc.priors.Boltzmann((300.0, 200.0), learned=True), "at_temperatures"),
    "table": (
        lambda: pc.priors.Boltzmann(table=pc.simulate.default_scales(2)), "at_temperatures",
    ),
}  # fmt: skip


@pytest.fixture(params=PRIORS)
def case(request):
    make, data = PRIORS[request.param]
    particles = request.getfixturevalue(data)
    return _turned(_pair(make(), particles)), particles.batch(np.arange(12))


def test_sites_and_shapes(case):
    pair, batch = case
    guide = poutine.trace(pair.guide).get_trace(batch)
    model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(batch)
    frames = batch.images.shape[1:-2]
    assert guide.nodes["z"]["value"].shape == (12, *frames, 2)
    assert model.nodes["x"]["is_observed"]
    assert model.nodes["x"]["fn"].batch_shape == (12,)
    model.compute_log_prob()
    assert model.nodes["z"]["log_prob"].shape == model.nodes["x"]["log_prob"].shape == (12,)


def test_the_closed_form_kl_is_used_and_right(case):
    """One loss of the mean-field ELBO against many of the sampled one, which it must undercut in
    variance and match in mean."""
    pair, batch = case
    exact, sampled = TraceMeanField_ELBO(), Trace_ELBO()
    with torch.no_grad():
        a = np.array([exact.loss(pair.model, pair.guide, batch) for _ in range(60)])
        b = np.array([sampled.loss(pair.model, pair.guide, batch) for _ in range(60)])
    kl = torch.distributions.kl_divergence(pair.posterior_of(batch), pair.prior_of(batch))
    assert kl.shape == (12,)
    error = np.sqrt(a.var() / 60 + b.var() / 60)
    assert abs(a.mean() - b.mean()) < 5 * error
    # the mean-field loss is -E ln p(x | z) + KL exactly: check against the trace's own draw
    torch.manual_seed(7)
    loss = exact.loss(pair.model, pair.guide, batch)
    torch.manual_seed(7)
    with torch.no_grad():
        guide = poutine.trace(pair.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(batch)
    model.compute_log_prob()
    expected = kl.sum() - model.nodes["x"]["log_prob"].sum()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)


def test_context_of_a_molecule_holds_for_all_its_frames(rng):
    particles = pc.Particles(
        rng.standard_normal((6, 3, 8, 8)).astype(np.float32),
        rotation=np.tile(np.eye(3), (6, 3, 1, 1)),
        temperature=np.array([300.0, 300, 300, 200, 200, 200]),
    )
    pair = _pair(pc.priors.Boltzmann(table={300: (1, 1), 200: (0.5, 0.1)}), particles)
    pair.check(particles)
    prior = pair.prior_of(particles.batch(np.arange(6)))
    assert prior.batch_shape == (6,)
    assert prior.event_shape == (3, 2)
    torch.testing.assert_close(prior.base_dist.scale[4, 2], torch.tensor([0.5, 0.1]))


def test_a_volume_given_twice_is_not_shared(pairs_in_time):
    volume = pc.volumes.Grid()
    a = pc.Pair(pc.priors.IsotropicNormal(2), volume, box=32)
    b = pc.Pair(pc.priors.IsotropicNormal(3), volume, box=16)
    assert a.volume.box == 32
    assert b.volume.side == 16
    assert not hasattr(volume, "network")
    a.check(pairs_in_time)


def test_a_distribution_follows_its_pair_to_another_device():
    from pyrocryo.context import on_device

    for prior in (
        pc.priors.LaplaceTransition(2, 2.0),
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
    ):
        moved = on_device(prior, torch.device("meta"))
        base = getattr(moved, "base_dist", moved)
        tensor = base.rate if hasattr(base, "rate") else base.loc
        assert tensor.is_meta
        assert not getattr(prior, "base_dist", prior).__dict__.get("rate", torch.ones(1)).is_meta


def test_defaults_of_a_function_are_not_fields(at_temperatures):
    def tempered(temperature, width=2.0):
        return dist.Normal(torch.zeros(2), width * (temperature / 300)[:, None]).to_event(1)

    pair = _pair(tempered, at_temperatures, dim=2)
    pair.check(at_temperatures)
    assert pair.prior_name == "tempered"


def test_a_function_is_a_prior(at_temperatures):
    """Its parameters are named as the fields it wants."""

    def tempered(temperature):
        return dist.Laplace(torch.zeros(2), (temperature / 300)[:, None]).to_event(1)

    pair = _pair(tempered, at_temperatures, dim=2)
    pair.check(at_temperatures)
    fit = pc.fit(pair, at_temperatures, steps=3, batch_size=16)
    assert not fit.exact_kl
    assert np.isfinite(fit.history["loss"]).all()


def test_rotating_z_and_decoder_costs_a_gaussian_prior_nothing(pairs_in_time, trained_vae):
    """The rotation argument, exactly, with torch's own multivariate normals: turn posterior means
    and covariances and undo it before the decoder; ELBO unmoved, MCC anywhere."""
    pair = trained_vae
    particles = pairs_in_time
    batch = particles.batch(np.arange(200))
    loc, scale = (a.detach().double() for a in pair.encoder(batch.images, *pair.pose(batch)))
    eps = torch.randn_like(loc)
    standard = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    elbos, scores = [], []
    for degrees in range(0, 91, 15):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn = torch.tensor([[c, -s], [s, c]])
        mean = loc @ turn.T
        covariance = turn @ scale @ scale.transpose(-1, -2) @ turn.T
        z = mean + (eps.unsqueeze(-2) @ (turn @ scale).transpose(-1, -2)).squeeze(-2)
        with torch.no_grad():
            clean = pair.volume((z @ turn).float(), *pair.pose(batch))
        likelihood = dist.Normal(clean, pair.noise.detach()).log_prob(batch.images).double()
        kl = torch.distributions.kl_divergence(dist.MultivariateNormal(mean, covariance), standard)
        elbos.append(float((likelihood.sum((-1, -2)) - kl).sum(-1).mean()))
        factors = batch.truth.reshape(-1, 2).numpy()
        scores.append(pc.metrics.mcc(factors, mean.reshape(-1, 2).numpy()).value)
    assert max(elbos) - min(elbos) < 1e-3
    assert max(scores) - min(scores) > 0.1


@pytest.mark.parametrize("kind", ["normal", "equal at each temperature", "laplace"])
def test_the_rotation_layer_feels_the_prior_only(kind, pairs_in_time, at_temperatures):
    """Under priors isotropic in each condition R has no gradient; under Laplace steps it has."""
    particles = at_temperatures if "temperature" in kind else pairs_in_time
    prior = {
        "normal": pc.priors.IsotropicNormal(2),
        "equal at each temperature": pc.priors.Boltzmann(
            table={300: (1, 1), 240: (0.7, 0.7), 180: (0.4, 0.4)}
        ),
        "laplace": pc.priors.LaplaceTransition(2, 2.0),
    }[kind]
    pair = pc.fit(_pair(prior, particles), particles, steps=30, batch_size=32).pairs[0]
    _turned(pair)
    pair.zero_grad()
    batch = particles.batch(np.arange(200))
    TraceMeanField_ELBO().differentiable_loss(pair.model, pair.guide, batch).backward()
    decoder = torch.cat([p.grad.flatten() for p in pair.volume.parameters()]).norm()
    share = float(pair.rotation.angle.grad.norm() / decoder)
    if kind == "laplace":
        assert share > 1e-3
    else:
        assert share <= 1e-5


def test_without_the_layer_nothing_turns(pairs_in_time):
    pair = _pair(pc.priors.LaplaceTransition(2, 2.0), pairs_in_time, rotate=False)
    trained = pc.fit(pair, pairs_in_time, steps=5).pairs[0]
    torch.testing.assert_close(trained.rotation(), torch.eye(2))


def test_several_pairs_learn_under_plain_svi(pairs_in_time):
    """Pyro's own trainer and parameter store, one pair after another, in one process."""
    pyro.clear_param_store()
    batch = pairs_in_time.batch(np.arange(64))
    for make in (pc.priors.IsotropicNormal(2), pc.priors.LaplaceTransition(2, 2.0)) * 2:
        pair = _pair(make, pairs_in_time)
        before = copy.deepcopy(pair.state_dict())
        svi = SVI(pair.model, pair.guide, Adam({"lr": 4e-3}), TraceMeanField_ELBO())
        losses = [svi.step(batch) for _ in range(12)]
        assert losses[-1] < 0.95 * losses[0]
        after = pair.state_dict()
        for part in ("encoder.network.0.weight", "volume.network.0.weight", "noise_steps"):
            assert not torch.equal(before[part], after[part]), part


def test_a_pair_leaves_nothing_in_the_parameter_store(slowvae, pairs_in_time):
    pyro.clear_param_store()
    pairs = pc.fit(slowvae, pairs_in_time, steps=2, seeds=2).pairs
    assert not len(pyro.get_param_store())  # fit has no use for it
    svi = SVI(pairs[1].model, pairs[1].guide, pyro.optim.Adam({}), Trace_ELBO())
    svi.step(pairs_in_time.batch(np.arange(5)))
    assert len(pyro.get_param_store())
    del pairs, svi
    gc.collect()
    assert not len(pyro.get_param_store())


def test_predictive_replicates_images(slowvae, pairs_in_time):
    batch = pairs_in_time.batch(np.arange(5))
    model = poutine.uncondition(slowvae.model)
    drawn = Predictive(model, guide=slowvae.guide, num_samples=3)(batch)
    assert drawn["x"].shape == (3, 5, 2, 32, 32)
    assert not torch.equal(drawn["x"][0], batch.images)


def test_density_decodes_z_not_u(slowvae):
    _turned(slowvae, 0.3)
    z = torch.tensor([[1.0, -0.5]])
    with torch.no_grad():
        expected = slowvae.volume.density(z @ slowvae.rotation())
    torch.testing.assert_close(slowvae.density(z), expected)
    assert not torch.allclose(slowvae.density(z), slowvae.volume.density(z).detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: _pair(pc.priors.Boltzmann((300.0, 300.0)), p),
            "temperature: .* in a column pyrocryoTemperature",
        ),
        (lambda p: _pair(pc.priors.LaplaceTransition(2, 1.0, frames=3), p), "event shape .3, 2."),
        (lambda p: pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(), box=16), "box: the"),
        (lambda p: _pair(lambda: torch.zeros(2), p, dim=2), "returned Tensor, not a distribution"),
        (
            lambda p: _pair(dist.HalfNormal(torch.ones(2)).to_event(1), p),
            "a law over GreaterThanEq.lower_bound=0.0., but guides put mass on all real numbers",
        ),
    ],
)
def test_pair_and_particles_must_go_together(make, message, pairs_in_time):
    with pytest.raises(pc.InputError, match=message):
        make(pairs_in_time).check(pairs_in_time)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.Pair(dist.Normal(0.0, 1.0), pc.volumes.Grid(), 8), r"event shape \(\); exp"),
        (lambda: pc.Pair(lambda: None, pc.volumes.Grid(), 8), "dim: a prior given as a function"),
        (lambda: pc.Pair(3, pc.volumes.Grid(), 8), "prior: expected a distribution or a func"),
        (
            lambda: pc.Pair(pc.priors.IsotropicNormal, pc.volumes.Grid(), 8, dim=2),
            "got the class IsotropicNormal; call it",
        ),
        (
            lambda: pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid, 8),
            "volume: expected a module with build.., got Grid",
        ),
        (lambda: pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(), 8, dim=3), "dim: 3 was"),
        (lambda: pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(), 8, noise=0), "noise: "),
        (lambda: pc.volumes.Grid(dim=4), "dim: a grid has 2 or 3"),
        (lambda: pc.volumes.Grid(side=1), "side: expected at least 2"),
    ],
)
def test_wrong_input_is_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()


def test_poses_are_needed(rng):
    particles = pc.Particles(rng.standard_normal((8, 8, 8)))
    pair = _pair(pc.priors.IsotropicNormal(2), particles)
    with pytest.raises(pc.InputError, match="rlnAngleRot, rlnAngleTilt and rlnAnglePsi"):
        pair.check(particles)


def test_a_flat_volume_refuses_tilted_particles(rng):
    tilted = pc.rotations.matrix_from_euler(np.full((8, 3), 30.0))
    particles = pc.Particles(rng.standard_normal((8, 8, 8)), rotation=tilted)
    pair = _pair(pc.priors.IsotropicNormal(2), particles)
    with pytest.raises(pc.InputError, match="8 images are tilted out of the plane"):
        pair.check(particles)


def test_an_unpickled_pair_has_a_name_of_its_own(slowvae, pairs_in_time):
    import pickle

    again = pickle.loads(pickle.dumps(slowvae))
    assert again._name != slowvae._name
    batch = pairs_in_time.batch(np.arange(4))
    torch.testing.assert_close(again.posterior_of(batch).mean, slowvae.posterior_of(batch).mean)
