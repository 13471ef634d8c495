"""Energies of modes from a trajectory, and reading one."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import ndtr

import pyrocryo as pc
from pyrocryo.molecules import amplitudes, anharmonic, overlap
from pyrocryo.molecules.trajectory import effective_frames

OPEN = pc.molecules.AdenylateKinase().ca_open
KELVIN = 310.0


@pytest.fixture(scope="module")
def modes():
    return pc.molecules.normal_modes(OPEN, 3, cutoff=10.0)


def _two(z):
    """Wells at about ± 1.5, the left one lower by .6; the barrier is 2.3 over it."""
    return 2 * ((z / 1.5) ** 2 - 1) ** 2 + 0.3 * z / 1.5


def _one(z):
    return 0.5 * ((z - 0.4) / 1.3) ** 2


def _skewed(z):
    return np.exp(z) - z


def _series(n, energy, rng, alike=0.8):
    """Correlated draws of exactly exp(-energy), from a Gaussian series by its ranks."""
    x = rng.standard_normal(n)
    for i in range(1, n):
        x[i] = alike * x[i - 1] + np.sqrt(1 - alike**2) * x[i]
    z = np.linspace(-8, 8, 8001)
    below = np.cumsum(np.exp(-energy(z) + energy(z).min()))
    return np.interp(ndtr(x), below / below[-1], z)


def _frames(modes, q, rng, amplitude=1.0):
    """Frames of these amplitudes `(M, n)`, each turned and shifted in some way."""
    x = modes.positions + np.tensordot(q * modes.scales(amplitude), modes.vectors, axes=1)
    turn = pc.rotations.random_in_space((len(q),), rng)
    return x @ turn.transpose(0, 2, 1) + rng.normal(0, 20, (len(q), 1, 3))


def test_amplitudes_are_what_moved_the_frames(modes, rng):
    q = 2 * rng.standard_normal((20, 3))
    frames = _frames(modes, q, rng, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(amplitudes(modes, frames, [1.0, 2.0, 3.0]), q, atol=1e-8)
    np.testing.assert_allclose(amplitudes(modes, frames), q * [1, 2, 3], atol=1e-8)


def test_how_much_of_closing_modes_can_show():
    """The numbers that NormalModes tells, after superposition."""
    molecule = pc.molecules.AdenylateKinase()
    closed = molecule.centres(torch.full((1, 2), 3.0, dtype=torch.float64)).numpy()
    modes = pc.molecules.normal_modes(OPEN, 20)
    found = overlap(modes, np.concatenate([closed, molecule.ca_closed[None]]))
    expected = [[0.72, 0.93, 0.93], [0.71, 0.93, 0.94]]
    np.testing.assert_allclose(found[:, [1, 9, 19]], expected, atol=0.006)
    z = torch.randn(200, 2, dtype=torch.float64)
    some = molecule.centres(z).numpy()
    few = modes.take(range(10))
    far = (amplitudes(few, some) ** 2 @ few.thermal() ** 2) * (1 / overlap(few, some)[:, -1] - 1)
    assert np.median(np.sqrt(far / 214)) == pytest.approx(0.56, abs=0.05)


def test_wells_and_barriers_are_recovered(modes):
    """Five trajectories of 2000 frames, nine alike in a row; the truth is 2.32 k_B T."""
    z = np.linspace(-3, 3, 2001)
    truth = _two(0.0) - _two(z).min()
    found = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        q = np.stack([_series(2000, u, rng) for u in (_two, _one, _skewed)], axis=1)
        told = anharmonic(modes, _frames(modes, q, rng, 2.0), temperature=KELVIN, amplitude=2.0)
        assert [well.kind for well in told.wells] == ["double well", "harmonic", "single well"]
        double, harmonic, _ = told.wells
        np.testing.assert_allclose(double.profile.wells, [-1.53, 1.46], atol=0.15)
        assert harmonic.profile.mean == pytest.approx(q[:, 1].mean(), abs=0.01)
        assert harmonic.energy.energy.stiffness == pytest.approx(KELVIN / q[:, 1].var(), rel=0.01)
        assert harmonic.energy.energy.stiffness == pytest.approx(KELVIN / 1.3**2, rel=0.25)
        assert double.gains["double well"][0] > 10 * double.gains["double well"][1]
        assert 120 < min(well.frames for well in told.wells) < 500  # 222 of a Gaussian series
        found.append(double.profile.heights[0])
    assert np.mean(found) == pytest.approx(truth, abs=0.3)
    assert np.std(found) < 0.3
    assert "double well at 310 K" in str(told)
    assert "largest correlation" in str(told)


def test_harmonic_modes_are_not_taken_for_others(modes):
    """Two standard errors, two energies that try, 18 modes."""
    wrong = 0
    for seed in range(6):
        rng = np.random.default_rng(100 + seed)
        q = np.stack([_series(1000, _one, rng) for _ in range(3)], axis=1)
        told = anharmonic(modes, _frames(modes, q, rng), temperature=KELVIN)
        wrong += sum(well.kind != "harmonic" for well in told.wells)
    assert wrong <= 2


def test_frames_that_are_alike_count_less(rng):
    for alike in (0.0, 0.5, 0.9):
        x = _series(40_000, lambda z: 0.5 * z**2, rng, alike)
        expected = 40_000 * (1 - alike) / (1 + alike)
        assert effective_frames(x) == pytest.approx(expected, rel=0.15)


@pytest.fixture(scope="module")
def told(modes):
    rng = np.random.default_rng(0)
    q = np.stack([_series(1500, u, rng) for u in (_two, _skewed)], axis=1)
    few = modes.take([0, 1])
    return anharmonic(few, _frames(few, q, rng, 4.0), temperature=KELVIN, amplitude=4.0)


def test_the_prior_is_one_and_stays_what_was_fitted(told, modes):
    prior = told.prior()
    context = {"temperature": torch.tensor([250.0, 310.0, 350.0])}
    assert "KL" in pc.testing.check_prior(prior, context=context, dim=2)
    z = np.linspace(-2, 2, 50)
    for mine, theirs in zip(
        prior.profiles(KELVIN, z=z), (well.profile for well in told.wells), strict=True
    ):
        expected = np.interp(z, theirs.z, theirs.free_energy)
        np.testing.assert_allclose(
            mine.free_energy - mine.free_energy[25], expected - expected[25], atol=0.02
        )
    assert not list(prior.parameters())
    before = [energy(torch.tensor([0.3, 1.2])) for energy in told.energies]
    for module in prior.modules():
        getattr(module, "reset_parameters", lambda: None)()
    for energy, value in zip(told.energies, before, strict=True):
        torch.testing.assert_close(energy(torch.tensor([0.3, 1.2])), value)
    molecule = pc.molecules.Elastic(modes.take([0, 1]), amplitude=4.0)
    imaged = {"box": 20, "pixel_size": 5.0, "temperatures": [350.0, 310.0]}
    particles = pc.simulate.temperature(molecule, n=60, prior=prior, **imaged)
    volume = pc.volumes.NormalModes(modes, pixel_size=5.0, amplitude=4.0)
    assert "capture" in pc.testing.check_pair(pc.Pair(prior, volume, 20, rotate=False), particles)


def test_what_the_prior_identifies_is_said(told):
    """Two wells of different shapes, one temperature: turned axes cost, but flows remain."""
    check = pc.identify.check_prior(told.prior(temperature=KELVIN))
    assert check.dim == 2
    assert not check.rotations
    several = pc.identify.check_prior(told.prior(), {"temperature": [250.0, 310.0, 350.0]})
    assert several.rank_j == 1  # energies that do not depend on temperature, whatever it is
    assert several.verdict


def test_paths_are_not_equilibrium(modes, rng):
    there = np.linspace(0, 1, 200)[:, None] * [6.0, -3.0, 0.0] + 0.3 * rng.standard_normal(
        (200, 3)
    )
    with pytest.raises(pc.InputError, match=r"drifts along mode 1 \(9\d % of the variance"):
        anharmonic(modes, _frames(modes, there, rng), temperature=KELVIN)
    bent = np.tanh(np.linspace(-4, 4, 100))[:, None] * [3.0, 1.0, 0.5]
    with pytest.raises(pc.InputError, match="drifts along mode"):
        anharmonic(modes, _frames(modes, bent, rng), temperature=KELVIN)
    back = np.vstack([there, there[::-1]])
    with pytest.raises(pc.InputError, match=r"400 frames are worth \d+ independent .* longer"):
        anharmonic(modes, _frames(modes, back, rng), temperature=KELVIN)


def test_short_trajectories_and_small_units_are_warned_of(modes, rng, caplog):
    q = np.stack([_series(400, _one, rng) for _ in range(3)], axis=1)
    with caplog.at_level(logging.WARNING):
        anharmonic(modes, _frames(modes, q, rng), temperature=KELVIN)
    assert "its 400 frames are worth" in caplog.text
    assert "amplitude" not in caplog.text
    with caplog.at_level(logging.WARNING):
        anharmonic(modes, _frames(modes, q + 5, rng), temperature=KELVIN)
    assert "z is 5." in caplog.text


@pytest.mark.parametrize(
    ("shape", "kelvin", "message"),
    [
        ((30, 213, 3), 300.0, r"trajectory: expected frames \(M, 214, 3\)"),
        ((214, 3), 300.0, r"got shape \(214, 3\)"),
        ((5, 214, 3), 300.0, "expected at least 20 frames, got 5"),
        ((30, 214, 3), 0.0, "temperature: expected positive K"),
    ],
)
def test_wrong_trajectories_are_named(shape, kelvin, message, modes):
    frames = np.random.default_rng(0).standard_normal(shape)
    with pytest.raises(pc.InputError, match=message):
        anharmonic(modes, frames, temperature=kelvin)
    frames[:] = np.nan
    with pytest.raises(pc.InputError):
        anharmonic(modes, frames, temperature=300.0)
