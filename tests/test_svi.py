import copy
import logging

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

import pyrocryo as pc
from pyrocryo.svi import Settings, Weights, checkpoints
from pyrocryo.svi.loss import elbo, negative_elbo


def _loss(pair, batch, **weights):
    torch.manual_seed(0)
    with Weights(**weights), torch.no_grad():
        return TraceMeanField_ELBO().loss(pair.model, pair.guide, batch)


def test_weights_scale_the_kl_and_its_transitions(slowvae, pairs_in_time):
    batch = pairs_in_time.batch(np.arange(10))
    with torch.no_grad():
        q, p = slowvae.posterior_of(batch), slowvae.prior_of(batch)
        kl = torch.distributions.kl_divergence
        whole = float(kl(q, p).sum())
        first = float(kl(q, p.with_transition_weight(0.0)).sum())
    plain = _loss(slowvae, batch)
    for beta, gamma in ((1.0, 1.0), (4.0, 1.0), (0.0, 1.0), (1.0, 10.0), (2.0, 0.5)):
        expected = plain - whole + beta * (first + gamma * (whole - first))
        assert _loss(slowvae, batch, beta=beta, gamma=gamma) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rigid", [False, True])
def test_the_loss_is_the_mean_elbo_of_the_particles(slowvae, pairs_in_time, rigid):
    batch = pairs_in_time.batch(np.arange(6))
    with torch.no_grad():
        torch.manual_seed(0)
        each = elbo(slowvae.eval(), batch, rigid=rigid)
        torch.manual_seed(0)
        loss = negative_elbo(slowvae, batch, Weights(rigid=rigid))
    assert each.shape == (6,)
    assert float(each.mean()) == pytest.approx(-float(loss), rel=1e-6)


def test_schedules():
    settings = Settings(steps=100, lr=1.0, beta=2.0, kl_warmup=10)
    rates = [settings.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.02, abs=0.002)
    assert settings.beta_at(0) == pytest.approx(0.2)
    assert settings.beta_at(50) == 2.0
    assert Settings().beta_at(0) == 1.0


def test_fit_learns_and_leaves_the_given_pair_alone(slowvae, pairs_in_time):
    before = copy.deepcopy(slowvae.state_dict())
    fit = pc.fit(slowvae, pairs_in_time, steps=40, seeds=2, batch_size=32)
    for name, value in slowvae.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert fit.history["loss"].shape == (2, 40)
    assert (fit.history["loss"][:, -5:].mean(1) < 0.95 * fit.history["loss"][:, 0]).all()
    assert fit.exact_kl
    assert fit.seeds == (0, 1)
    assert len(fit.example.images) == 64


def test_a_seed_is_the_same_alone_and_in_company(slowvae, pairs_in_time):
    together = pc.fit(slowvae, pairs_in_time, steps=8, seeds=[3, 5])
    alone = pc.fit(slowvae, pairs_in_time, steps=8, seeds=[5])
    np.testing.assert_array_equal(together.history["loss"][1], alone.history["loss"][0])
    assert not np.allclose(together.history["loss"][0], alone.history["loss"][0])


def test_the_callers_random_numbers_are_left_alone(slowvae, pairs_in_time):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    pc.fit(slowvae, pairs_in_time, steps=2)
    assert torch.equal(torch.rand(1), expected)


def test_held_out_particles_are_not_looked_at(slowvae, rng):
    particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=60, seed=1)
    spoilt = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=60, seed=1)
    spoilt.images[spoilt.test.index] = 1e3
    a, b = (pc.fit(slowvae, p, steps=6, batch_size=54) for p in (particles, spoilt))
    np.testing.assert_array_equal(a.history["loss"], b.history["loss"])


def test_every_epoch_shows_every_particle_once(slowvae, pairs_in_time):
    from pyrocryo.svi.train import _rows

    epoch = np.concatenate([_rows(216, 54, step, seed=1) for step in range(4)])
    assert sorted(epoch) == list(range(216))
    assert not np.array_equal(
        epoch, np.concatenate([_rows(216, 54, s, seed=1) for s in (4, 5, 6, 7)])
    )


class Wall(Exception):
    pass


def test_a_killed_fit_resumes_to_the_same_numbers(slowvae, pairs_in_time, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 5)
    path = tmp_path / "checkpoint.pt"
    options = {"steps": 12, "seeds": 2, "batch_size": 32}
    whole = pc.fit(slowvae, pairs_in_time, **options)

    from pyrocryo.svi import train

    calls = iter(range(10**6))
    original = train._rows

    def rows(*args):
        if next(calls) == 20:  # in the second seed, three steps after its checkpoint
            raise Wall
        return original(*args)

    monkeypatch.setattr(train, "_rows", rows)
    with pytest.raises(Wall):
        pc.fit(slowvae, pairs_in_time, checkpoint=path, **options)
    monkeypatch.setattr(train, "_rows", original)
    resumed = pc.fit(slowvae, pairs_in_time, checkpoint=path, resume=True, **options)
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"])
    for a, b in zip(resumed.pairs, whole.pairs, strict=True):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name


def test_checkpoints_hold_tensors_only_and_must_match(slowvae, pairs_in_time, tmp_path):
    path = tmp_path / "checkpoint.pt"
    pc.fit(slowvae, pairs_in_time, steps=2, checkpoint=path)
    content = torch.load(path, weights_only=True)
    assert set(content["done"]) == {0}
    with pytest.raises(pc.InputError, match=r"other settings \(steps 2, now 3\)$"):
        pc.fit(slowvae, pairs_in_time, steps=3, checkpoint=path, resume=True)
    with pytest.raises(pc.InputError, match="resume: there is no checkpoint"):
        pc.fit(slowvae, pairs_in_time, checkpoint=tmp_path / "no.pt", resume=True)
    with pytest.raises(pc.InputError, match="was made with other data$"):
        pc.fit(slowvae, pairs_in_time.take(range(200)), steps=2, checkpoint=path, resume=True)
    for prior in (pc.priors.LaplaceTransition(2, 50.0), pc.priors.LaplaceTransition(3, 2.0)):
        other = pc.Pair(prior, pc.volumes.Grid(), pairs_in_time.box)
        with pytest.raises(pc.InputError, match="was made with other model$"):
            pc.fit(other, pairs_in_time, steps=2, checkpoint=path, resume=True)
    path.write_bytes(b"nothing")
    with pytest.raises(pc.InputError, match="is not a checkpoint of pyrocryo"):
        pc.fit(slowvae, pairs_in_time, checkpoint=path, resume=True)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("seeds", [1, 3])
def test_nan_stops_with_seed_step_and_site(capture, seeds):
    particles = pc.simulate.poses(pc.molecules.TwoArms(), n=100, seed=0)
    dose = np.ones(100)
    bad = particles.train.index[17]
    dose[bad] = -1.0
    particles = pc.Particles(particles.images, rotation=particles.rotation, dose=dose)

    def prior(dose):
        scale = dose.sqrt().unsqueeze(-1).expand(-1, 2)
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)

    pair = pc.Pair(prior, pc.volumes.Grid(hidden=(8,)), 32, dim=2)
    from pyrocryo.svi.train import _rows

    steps = [
        next(step for step in range(9) if 17 in _rows(90, 10, step, seed)) for seed in range(seeds)
    ]
    first = int(np.argmin(steps)) if seeds > 1 and capture else 0
    with pytest.raises(
        FloatingPointError,
        match=f"seed {first}, step {steps[first]}: the loss is nan .* site 'z'",
    ):
        pc.fit(pair, particles, steps=9, batch_size=10, seeds=seeds, capture=capture, together=3)


@pytest.mark.parametrize("capture", [False, True])
def test_an_exploding_parameter_is_named(slowvae, pairs_in_time, capture):
    with pytest.raises(FloatingPointError, match="step [1-9]: .*(site|parameter|gradient)"):
        pc.fit(slowvae, pairs_in_time, steps=10, lr=1e6, capture=capture)


def test_a_module_that_cannot_be_reset_is_pointed_out(pairs_in_time, caplog):
    class Rough(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.log_scale = torch.nn.Parameter(torch.zeros(2))

        def forward(self, time):
            return pc.priors.BoltzmannNormal(
                torch.zeros(2), self.log_scale.exp() + 0 * time[..., None]
            )

    pair = pc.Pair(Rough(), pc.volumes.Grid(), pairs_in_time.box, dim=2)
    with caplog.at_level(logging.WARNING, logger="pyrocryo"):
        pc.fit(pair, pairs_in_time, steps=1)
    assert "prior (Rough) has parameters but no reset_parameters()" in caplog.text


def test_progress_is_logged_in_ten_lines(slowvae, pairs_in_time, caplog):
    with caplog.at_level(logging.INFO, logger="pyrocryo"):
        pc.fit(slowvae, pairs_in_time, steps=20, progress=False)
    lines = [r.message for r in caplog.records if "ELBO" in r.message]
    assert len(lines) == 10
    assert "images/s" in lines[0]
    assert "s left" in lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a positive"),
        ({"lr": -1}, "lr: expected a positive"),
        ({"beta": -1}, "beta: expected 0 or more"),
        (
            {"steps": 10, "kl_warmup": 20},
            "steps: 10 leave no room for rigid_steps 0 and kl_warmup 20",
        ),
        ({"step": 3}, "unknown setting step; fit knows steps, batch_size"),
        ({"steps": 3.5}, "steps: expected a whole number, got 3.5"),
        ({"seeds": 0}, "seeds: expected at least one, each different, got 0"),
        ({"seeds": [1, 1]}, "seeds: .* each different"),
    ],
)
def test_wrong_settings_are_named(slowvae, pairs_in_time, options, message):
    with pytest.raises(pc.InputError, match=message):
        pc.fit(slowvae, pairs_in_time, **options)


def test_gamma_needs_transitions(pairs_in_time):
    pair = pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(), pairs_in_time.box)
    with pytest.raises(pc.InputError, match="gamma: 10 weighs transition terms"):
        pc.fit(pair, pairs_in_time, gamma=10.0)


def test_other_settings_of_parts_are_another_model():
    from pyrocryo.svi.plan import _fingerprint

    def told(volume, **options):
        return _fingerprint(pc.Pair(pc.priors.IsotropicNormal(2), volume, 16, **options))

    molecule = pc.molecules.TwoArms()
    faster = pc.molecules.TwoArms()
    faster.swing *= 2
    marks = [
        told(pc.volumes.Implicit(2)),
        told(pc.volumes.Implicit(2, pixels=64)),
        told(pc.volumes.Implicit(2, side=8)),
        told(pc.volumes.Atoms.known(molecule, pixel_size=6.0)),
        told(pc.volumes.Atoms.known(faster, pixel_size=6.0)),
        told(pc.volumes.Grid(), guide=pc.guides.GaussNewton(2)),
        told(pc.volumes.Grid(), guide=pc.guides.GaussNewton(3)),
    ]
    assert len(set(marks)) == len(marks)
    assert told(pc.volumes.Implicit(2)) == marks[0]


def test_a_trained_pair_trains_on_a_share_of_the_pixels_again(pairs_in_time):
    pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Implicit(pixels=64), 32)
    fit = pc.fit(pair, pairs_in_time, steps=2)
    assert not fit.pairs[0].training
    seen = []
    fit.pairs[0].volume.register_forward_hook(lambda *a: seen.append(a[-1].shape[-1]))
    pc.fit(fit.pairs[0], pairs_in_time, steps=2)
    assert seen[-2:] == [64, 64]
