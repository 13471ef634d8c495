import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyrocryo as pc
from pyrocryo.simulate.images import reflected

MAKE = {
    "poses": pc.simulate.poses,
    "time": pc.simulate.time_resolved,
    "temperature": pc.simulate.temperature,
}


def _wells(dim):
    return pc.priors.Boltzmann(energies=(pc.priors.Harmonic(1.0),) * dim, reference=300.0)


def _under(molecule, conditions):
    return pc.simulate.conditions(molecule, n=2, prior=_wells(2), conditions=conditions, box=4)


@pytest.mark.parametrize("kind", MAKE)
def test_same_seed_same_particles(kind):
    one, same, other = (
        MAKE[kind](pc.molecules.TwoArms(), n=20, seed=seed).digest() for seed in (0, 0, 1)
    )
    assert one == same != other


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("snr", [0.3, 2.0])
def test_signal_to_noise_is_as_stated(kind, snr):
    molecule = pc.molecules.Arms(3)
    particles = MAKE[kind](molecule, n=300, seed=0, snr=snr, box=24, pixel_size=4.0)
    batch = particles.batch(np.arange(300))
    clean = molecule.render(
        batch.truth, batch.rotation, batch.shift, box=24, pixel_size=particles.pixel_size
    )
    clean *= torch.sqrt(snr / clean.var(dim=(-1, -2), correction=0).mean())
    residual = batch.images - clean
    assert float(residual.std()) == pytest.approx(1.0, rel=0.01)
    assert float((residual * clean).mean()) == pytest.approx(0, abs=0.02)


def test_time_steps_are_laplace():
    particles = pc.simulate.time_resolved(
        pc.molecules.TwoArms(), n=4000, seed=0, scale=0.3, frames=3, box=4, interval=2.0
    )
    assert particles.images.shape == (4000, 3, 4, 4)
    assert particles.time[0].tolist() == [0, 2, 4]
    step = np.diff(particles.truth, axis=1)
    inside = step[np.abs(particles.truth[:, :-1]).max(-1) < 1.5]
    assert np.abs(inside).mean() == pytest.approx(0.3, rel=0.05)
    assert np.abs(particles.truth).max() <= 3
    excess = (inside**4).mean() / (inside**2).mean() ** 2 - 3
    assert 1.5 < excess < 4.5
    assert particles.truth[:, 0].std() == pytest.approx(1, abs=0.05)


def test_each_temperature_has_its_spreads():
    scales = {300.0: (1.0, 0.5), 100.0: (0.2, 0.4)}
    particles = pc.simulate.temperature(
        pc.molecules.TwoArms(), n=4000, seed=0, scales=scales, box=4
    )
    for tau, row in scales.items():
        cold = particles.truth[particles.temperature == tau]
        assert len(cold) == 2000
        np.testing.assert_allclose(cold.std(axis=0), row, rtol=0.06)


def test_any_law_of_temperature():
    wells = (pc.priors.DoubleWell(3.0), pc.priors.Harmonic(2.0))
    prior = pc.priors.Boltzmann(energies=wells, reference=300.0)
    before = torch.get_rng_state()
    particles, same = (
        pc.simulate.temperature(pc.molecules.TwoArms(), n=6000, seed=0, prior=prior, box=4)
        for _ in range(2)
    )
    assert particles.digest() == same.digest()
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(set(particles.temperature)) == [180, 240, 300]
    for tau in (300, 180):
        z = particles.truth[particles.temperature == tau]
        assert len(z) == 2000
        assert np.abs(z[:, 0]).mean() == pytest.approx(0.95, abs=0.05)
        assert z[:, 1].var() == pytest.approx(tau / 600, rel=0.1)
    two = pc.simulate.temperature(
        pc.molecules.TwoArms(), n=10, prior=prior, temperatures=(250, 100), box=4
    )
    assert sorted(set(two.temperature)) == [100, 250]


def test_temperatures_are_drawn_as_they_always_were():
    """The order of draws, so that data simulated once can be simulated again."""
    prior, kelvin = _wells(2), np.array([310.0, 200.0, 180.0])
    rng = np.random.default_rng(7)
    kelvin = rng.permutation(kelvin[np.arange(50) % 3])
    torch.manual_seed(7)
    z = prior(torch.as_tensor(kelvin, dtype=torch.float32)).sample()
    for particles in (
        pc.simulate.temperature(
            pc.molecules.TwoArms(), 50, 7, prior=prior, temperatures=(310, 200, 180), box=4
        ),
        pc.simulate.temperature(
            pc.molecules.TwoArms(), 50, 7, prior=lambda tau: prior(tau), box=4,
            temperatures=(310, 200, 180),
        ),
        pc.simulate.conditions(
            pc.molecules.TwoArms(), 50, 7, prior=prior, box=4,
            conditions={"temperature": (310, 200, 180)},
        ),
    ):  # fmt: skip
        np.testing.assert_array_equal(particles.temperature, kelvin)
        np.testing.assert_array_equal(particles.truth, z.double().numpy())


def test_each_condition_has_its_law():
    prior = pc.priors.Boltzmann(
        energies=(pc.priors.Harmonic(1.0), pc.priors.Harmonic(2.0)),
        tilts={"force": {0: None}},
        reference=300.0,
    )
    conditions = {"temperature": [300, 150, 300], "force": [0, 0, 1], "mutant": [4, 4, 7]}
    particles = pc.simulate.conditions(
        pc.molecules.TwoArms(), n=6000, prior=prior, conditions=conditions, box=4
    )
    found = np.unique(np.stack([particles.temperature, particles.force, particles.mutant]), axis=1)
    np.testing.assert_array_equal(found, [[150, 300, 300], [0, 0, 1], [4, 4, 7]])
    assert (particles.temperature.dtype.kind, particles.force.dtype.kind) == ("f", "i")
    for tau, force in ((300, 0), (150, 0), (300, 1)):
        z = particles.truth[(particles.temperature == tau) & (particles.force == force)]
        assert len(z) == 2000
        np.testing.assert_allclose(z.mean(axis=0), [force, 0], atol=0.08)
        np.testing.assert_allclose(z.var(axis=0), [tau / 300, tau / 600], rtol=0.1)


def test_fields_of_any_name_go_with_their_particles():
    particles = pc.simulate.conditions(
        pc.molecules.TwoArms(),
        n=40,
        prior=pc.priors.IsotropicNormal(2),
        conditions={"ph": [6.5, 7.0], "ions": [[0, 1], [2, 3]]},
        box=4,
    )
    paired = {6.5: [0, 1], 7.0: [2, 3]}
    for part in (particles, particles.train, particles.test, particles.take(np.array([3, 1]))):
        batch = part.batch(np.arange(len(part)))
        assert batch.ph.shape == (len(part),)
        assert batch.ions.tolist() == [paired[ph] for ph in batch.ph.tolist()]
    np.testing.assert_array_equal(particles.test.ph, particles.ph[particles.test.index])


def test_a_function_of_several_fields_is_a_prior():
    def prior(shift_of, width):
        loc = torch.stack([shift_of, 0 * shift_of], dim=-1)
        return dist.Normal(loc, width[:, None]).to_event(1)

    particles = pc.simulate.conditions(
        pc.molecules.TwoArms(),
        n=4000,
        prior=prior,
        conditions={"shift_of": [0.0, 2.0], "width": [1.0, 0.1]},
        box=4,
    )
    assert particles.truth[particles.width == 0.1, 0].mean() == pytest.approx(2, abs=0.02)
    assert particles.truth[particles.width == 0.1].std(axis=0) == pytest.approx(0.1, rel=0.1)


def test_default_temperatures_are_not_proportional():
    for dim in (2, 3, 4):
        table = np.log(np.array(list(pc.simulate.default_scales(dim).values())))
        assert np.linalg.matrix_rank(table[1:] - table[:1]) == min(2, dim)


def test_reflection_folds_back():
    np.testing.assert_allclose(
        reflected(np.array([0, 2.9, 3.1, -3.5, 9.0])), [0, 2.9, 2.9, -2.5, -3], atol=1e-12
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: pc.simulate.poses(m, n=0), "n: expected at least one"),
        (lambda m: pc.simulate.poses(m, n=1, snr=0), "snr: expected a positive"),
        (lambda m: pc.simulate.poses(m, n=1, box=1), "box: expected"),
        (lambda m: pc.simulate.poses(m, n=1, max_shift=-1), "max_shift: expected"),
        (lambda m: pc.simulate.time_resolved(m, n=1, frames=1), "frames: .* at least 2"),
        (lambda m: pc.simulate.time_resolved(m, n=1, scale=0), "scale: expected"),
        (lambda m: pc.simulate.temperature(m, n=1, scales={300: (1,)}), "scales: expected 2"),
        (lambda m: pc.simulate.temperature(pc.molecules.Arms(5), n=1), "scales: give the"),
        (
            lambda m: pc.simulate.temperature(m, n=1, scales={300: (1, 1)}, prior=_wells(2)),
            "either scales or prior",
        ),
        (lambda m: pc.simulate.temperature(m, n=1, temperatures=(300,)), "only with a prior"),
        (
            lambda m: pc.simulate.temperature(m, n=1, prior=_wells(2), temperatures=(0,)),
            "temperatures: expected positive K",
        ),
        (lambda m: pc.simulate.temperature(m, n=1, prior=_wells(3)), "prior: expected draws"),
        (
            lambda m: pc.simulate.temperature(m, n=1, prior=_wells(2), temperatures=(9000,)),
            "does not confine",
        ),
        (lambda m: _under(m, {}), "conditions: expected as many values of each field, got {}"),
        (lambda m: _under(m, {"temperature": [300, 200], "u": [1]}), "as many values of each"),
        (lambda m: _under(m, {"u": [1.0]}), "conditions: the prior needs the temperature"),
        (lambda m: _under(m, {"temperature": [-1.0]}), "temperature: expected positive K"),
        (lambda m: _under(m, {"temperature": 300.0}), "temperature: expected a list of numbers"),
        (lambda m: _under(m, {"temperature": [300], "u": ["a"]}), "u: expected a list"),
        (lambda m: _under(m, {"temperature": [300], "u": [np.nan]}), "u: expected finite"),
        (lambda m: _under(m, {"temperature": [300], "truth": [0]}), "truth cannot be one"),
        (lambda m: _under(m, {"temperature": [300], "snr": [0]}), "snr cannot be one"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(pc.InputError, match=message):
        call(pc.molecules.TwoArms())


def test_a_limit_that_the_grid_cannot_resolve_is_refused():
    molecule = pc.molecules.TwoArms()
    sharp = pc.simulate.poses(molecule, n=6, snr=500.0)
    with pytest.raises(pc.InputError, match="too sharp for a grid"):
        pc.simulate.information_limit(molecule, sharp, pc.priors.IsotropicNormal(2))
    with pytest.raises(pc.InputError, match="event shape .2,., got"):
        pc.simulate.information_limit(molecule, sharp, pc.priors.LaplaceTransition(2, 1.0))


def test_particles_of_another_law():
    flat = dist.Uniform(torch.full((2,), -3.0), 3.0)
    law = flat.to_event(1)
    made = pc.simulate.poses(pc.molecules.TwoArms(), n=4000, seed=3, prior=law)
    assert np.abs(made.truth).max() < 3
    np.testing.assert_allclose(made.truth.std(0), 3**0.5, rtol=0.03)
    again = pc.simulate.poses(pc.molecules.TwoArms(), n=4000, seed=3, prior=law)
    np.testing.assert_array_equal(made.truth, again.truth)
    with pytest.raises(pc.InputError, match=r"prior: expected draws \(10, 2\)"):
        pc.simulate.poses(
            pc.molecules.TwoArms(), n=10, prior=dist.Normal(torch.zeros(3), 1).to_event(1)
        )
    with pytest.raises(pc.InputError, match="prior: expected a distribution, got float"):
        pc.simulate.poses(pc.molecules.TwoArms(), n=10, prior=1.0)
