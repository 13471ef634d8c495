import numpy as np
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
