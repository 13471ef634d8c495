"""The conditional prior: any field of the particles, as classes or numbers."""

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.context import wanted
from pyrocryo.testing import check_prior

BOX = 16
Conditional = pc.priors.Conditional


def _moved(prior):
    """The prior somewhere else than where it starts."""
    torch.manual_seed(0)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return prior


MADE = {
    "number": (lambda: Conditional("ligand", 2), torch.linspace(-1, 2, 5)),
    "vector": (lambda: Conditional("ligand", 3, size=2), torch.randn(5, 2)),
    "class": (lambda: Conditional("ligand", 2, classes=4), torch.tensor([0, 1, 3])),
    "mean": (lambda: Conditional("ligand", 2, scale=False), torch.linspace(-1, 2, 5)),
    "scale": (lambda: Conditional("ligand", 2, classes=3, mean=False), torch.tensor([0, 1, 2])),
}


@pytest.mark.parametrize("name", MADE)
def test_every_check_passes(name):
    make, u = MADE[name]
    prior = _moved(make())
    assert wanted(prior) == ["ligand"]
    found = check_prior(prior, context={"ligand": u}, dim=prior.dim, frames=2)
    assert found["KL"].startswith("closed form")
    law = prior(ligand=u)
    assert law.loc.std() > 0.1 or not prior.mean
    assert law.scale.std() > 0.1 or not prior.scale
    assert name != "mean" or (law.scale == 1).all()
    assert name != "scale" or (law.loc == 0).all()


@pytest.mark.parametrize("name", MADE)
def test_the_anchor_is_standard_normal_whatever_was_learned(name):
    make, u = MADE[name]
    prior = make()
    start = prior(ligand=u)
    torch.testing.assert_close(start.loc, torch.zeros_like(start.loc))
    torch.testing.assert_close(start.scale, torch.ones_like(start.scale))
    field = u.numpy() if u.dtype == torch.int64 else 3 + 2 * u.numpy()
    prior.check(ligand=field)
    anchor = torch.tensor([0]) if u.dtype == torch.int64 else torch.tensor(field).mean(0)
    law = _moved(prior)(ligand=anchor)
    torch.testing.assert_close(law.loc, torch.zeros_like(law.loc), rtol=0, atol=1e-5)
    torch.testing.assert_close(law.scale, torch.ones_like(law.scale), rtol=0, atol=1e-5)
    _reset(prior)
    torch.testing.assert_close(prior(ligand=u).scale, torch.ones_like(start.scale))


def _reset(prior):
    """As the trainer does: a module before its children."""
    for module in prior.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def _learn(prior, z, u, steps, lr):
    optimiser = torch.optim.Adam(prior.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        (-prior(ligand=u).log_prob(z).mean()).backward()
        optimiser.step()


def test_moments_of_classes_are_found_by_maximum_likelihood():
    torch.manual_seed(0)
    loc = torch.tensor([[0.0, 0.0], [1.0, -2.0], [-0.5, 0.3]])
    scale = torch.tensor([[1.0, 1.0], [0.3, 1.5], [2.0, 0.7]])
    u = torch.arange(9000) % 3
    z = loc[u] + scale[u] * torch.randn(9000, 2)
    prior = Conditional("ligand", 2, classes=3)
    _learn(prior, z, u, 200, 0.05)
    law = prior(ligand=torch.arange(3))
    torch.testing.assert_close(law.loc, loc, rtol=0, atol=0.1)
    torch.testing.assert_close(law.scale, scale, rtol=0.05, atol=0)


def test_moments_of_a_number_are_found_by_maximum_likelihood():
    torch.manual_seed(0)
    u = 250 + 50 * torch.rand(4000)
    t = (u - 275) / 25
    loc = torch.stack([torch.sin(2 * t), t], dim=-1)
    scale = torch.stack([0.5 * t, -0.4 * t], dim=-1).exp()
    z = loc + scale * torch.randn(4000, 2)
    prior = Conditional("ligand", 2, hidden=(32,))
    prior.check(ligand=u.numpy())
    _learn(prior, z, u, 400, 0.02)
    law = prior(ligand=u)
    assert (law.loc - loc).square().mean().sqrt() < 0.1
    assert (law.scale / scale).log().square().mean().sqrt() < 0.1


@pytest.fixture(scope="module")
def segments():
    particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=80, seed=0, box=BOX)
    rng = np.random.default_rng(0)
    fields = {"segment": rng.integers(0, 3, 80), "dose": rng.uniform(0, 40, 80)}
    time = rng.uniform(0, 9, (80, 2))
    return particles.having(**fields, exposure=rng.uniform(0, 1, (80, 3)), time=time)


@pytest.fixture(scope="module")
def images():
    particles = pc.simulate.poses(pc.molecules.TwoArms(), n=80, seed=0, box=BOX)
    rng = np.random.default_rng(0)
    fields = {"segment": rng.integers(0, 3, 80), "dose": rng.uniform(0, 40, 80)}
    return particles.having(**fields, exposure=rng.uniform(0, 1, (80, 3)))


def _pair(prior):
    return pc.Pair(prior, pc.volumes.Grid(hidden=(16,)), BOX, guide=pc.guides.Amortised((16,)))


@pytest.mark.parametrize(
    ("data", "field", "options"),
    [
        ("segments", "segment", {"classes": 3}),
        ("images", "dose", {}),
        ("segments", "exposure", {"size": 3}),
        ("segments", "time", {"scale": False}),
    ],
)
def test_stacked_and_traced_steps_are_those_of_python(data, field, options, request, caplog):
    particles = request.getfixturevalue(data)
    settings = {"steps": 3, "batch_size": 8, "seeds": 2}
    as_python = pc.fit(
        _pair(Conditional(field, 2, **options)), particles, capture=False, **settings
    )
    caplog.clear()
    pair = _pair(Conditional(field, 2, **options))
    stacked = pc.fit(pair, particles, capture=True, together=2, **settings)
    assert "not traced" not in caplog.text
    assert "one after another" not in caplog.text
    assert stacked.exact_kl
    np.testing.assert_allclose(stacked.history["loss"], as_python.history["loss"], rtol=1e-4)
    learned = stacked.pairs[1].prior
    last = learned.table if learned.classes else learned.network[-1].weight
    assert (last != 0).all()
    post = pc.posterior(stacked, particles.test, draws=5, predictive=1)
    assert np.isfinite(np.asarray(post["sample_stats"]["log_prior"])).all()
    assert np.isfinite(pc.identify.rotation_gap(stacked.pairs[0], stacked.example))


def test_constants_come_from_the_particles_once(images):
    pair = _pair(Conditional("dose", 2))
    fit = pc.fit(pair, images, steps=1, batch_size=8)
    prior = fit.pairs[0].prior
    assert float(prior.centre) == pytest.approx(images.dose.mean(), rel=1e-5)
    assert float(prior.spread) == pytest.approx(images.dose.std(), rel=1e-5)
    pc.posterior(fit, images.test, draws=2)  # other particles, the same prior
    assert float(prior.centre) == pytest.approx(images.dose.mean(), rel=1e-5)
    again = _pair(Conditional("dose", 2, standard=(1.0, 2.0)))
    again.check(images)
    assert float(again.prior.centre) == 1
    again.load_state_dict(fit.pairs[0].state_dict())
    assert float(again.prior.centre) == pytest.approx(images.dose.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conditional("dose", 0), "dim: expected at least one"),
        (lambda: Conditional("dose", 2, mean=False, scale=False), "mean and scale are both False"),
        (lambda: Conditional("dose", 2, classes=1), "classes: expected at least 2"),
        (lambda: Conditional("dose", 2, size=0), "size: expected at least one"),
        (lambda: Conditional("dose", 2, standard=(0.0, 0.0)), "standard: expected a positive"),
        (lambda: Conditional("dose", 2, standard=([0.0] * 2, 1.0)), "standard: expected a number"),
        (lambda: Conditional("u", 2, classes=2).check(u=np.array([0, 2])), "u: .* from 0 to 1"),
        (lambda: Conditional("u", 2, classes=2).check(u=np.array([0.0])), "u: expected whole"),
        (lambda: Conditional("u", 2).check(u=np.array([1.0, np.nan])), "u: expected finite"),
        (lambda: Conditional("u", 2).check(u=np.ones((5, 3))), r"give Conditional\(size=3\)"),
        (lambda: Conditional("u", 2).check(u=np.ones(3)), "u: is .* for every particle"),
        (lambda: Conditional("u", 2, size=2).check(u=np.ones((5, 3))), r"vectors \(\.\.\., 2\)"),
    ],
)
def test_wrong_input_is_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()


def test_the_field_must_be_there(images):
    with pytest.raises(pc.InputError, match="ligand: the prior Conditional needs the ligand"):
        _pair(Conditional("ligand", 2)).check(images)


def test_a_reset_in_any_order_leaves_the_prior_standard_normal():
    prior = pc.priors.Conditional("dose", 2, standard=(0.0, 1.0))
    _reset(prior)
    law = prior(dose=torch.tensor([2.0]))
    assert (law.loc == 0).all()
    assert (law.scale == 1).all()


def test_classes_are_one_a_particle():
    with pytest.raises(pc.InputError, match="a class for each particle"):
        pc.priors.Conditional("part", 2, classes=3).check(part=np.zeros((5, 2), dtype=int))
    with pytest.raises(pc.InputError, match="no use for size"):
        pc.priors.Conditional("part", 2, classes=3, size=2)


@pytest.mark.parametrize("idle", [{"hidden": (8,)}, {"size": 2}, {"standard": (0.0, 1.0)}])
def test_classes_refuse_what_only_numbers_need(idle):
    with pytest.raises(pc.InputError, match=f"no use for {next(iter(idle))}"):
        pc.priors.Conditional("segment", 2, classes=3, **idle)


def test_a_class_that_is_not_there_is_named_before_it_is_looked_up(images):
    labels = np.full(len(images), 7)
    pair = pc.Pair(pc.priors.Conditional("part", 2, classes=3), pc.volumes.Grid(), images.box)
    with pytest.raises(pc.InputError, match="part: expected whole numbers from 0 to 2"):
        pair.check(images.having(part=labels))
