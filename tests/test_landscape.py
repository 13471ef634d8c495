"""Is there heterogeneity, and who is where along each latent."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from toys import Reading, Written

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.diagnose.deconvolution import deconvolved, resampled
from pyrocryo.diagnose.free_energy import KILOJOULE
from pyrocryo.diagnose.weighted import log_evidence, log_weights, sampled
from pyrocryo.io.landscape import caveat, write_landscape
from pyrocryo.simulate.images import imaged
from pyrocryo.svi import Fit

BARRIER = 2.0
GRID = np.linspace(-4, 4, 4001)


def _wells():
    """A tilted double well: its law on GRID, whose free energy is known."""
    energy = BARRIER * (GRID**2 - 1) ** 2 + 0.5 * GRID
    law = np.exp(-energy)
    return law / law.sum()


def _masses(edges, law):
    return np.maximum(np.histogram(GRID, [-9, *edges[1:-1], 9], weights=law)[0], 1e-9)


@pytest.fixture(scope="module")
def read():
    """Posterior masses of a double well seen through noise, exactly, under a standard normal."""
    rng, noise, n = np.random.default_rng(3), 0.35, 1500
    z = rng.choice(GRID, size=n, p=_wells())
    variance = 1 / (1 + 1 / noise**2)
    mean = variance * (z + noise * rng.standard_normal(n)) / noise**2
    edges = np.linspace(-2.0, 1.9, 27)
    open_ = np.array([-9, *edges[1:-1], 9])
    mass = np.diff(norm.cdf((open_ - mean[:, None]) / math.sqrt(variance)), axis=1)
    prior = np.diff(norm.cdf(open_))
    return edges, mass / prior, prior, mean, mass


def test_deconvolution_finds_the_wells_that_means_and_draws_do_not(read):
    edges, likelihood, prior, mean, mass = read
    true = _masses(edges, _wells())
    found = deconvolved(likelihood, prior)
    near = true > 0.005

    def off(law):
        return np.sqrt(np.mean(np.log(np.maximum(law, 1e-4) / true)[near] ** 2))

    means = np.histogram(mean, [-9, *edges[1:-1], 9])[0] / len(mean)
    assert found.population.sum() == pytest.approx(1)
    assert off(found.population) < 0.35
    assert off(means) > 1.5 * off(found.population)
    assert off(mass.mean(axis=0)) > 1.5 * off(found.population)
    samples = resampled(likelihood, found, count=40)
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    assert ((low <= true) & (true <= high))[near].mean() > 0.8
    assert samples[:, near].std(axis=0).min() > 0


def test_deconvolution_knows_no_direction_and_no_scale(read):
    _, likelihood, prior, *_ = read
    found = deconvolved(likelihood, prior).population
    turned = deconvolved(likelihood[:, ::-1], prior[::-1]).population
    np.testing.assert_allclose(turned[::-1], found, rtol=1e-3, atol=1e-6)
    scaled = deconvolved(likelihood * np.linspace(1, 9, len(likelihood))[:, None], 3 * prior)
    np.testing.assert_allclose(scaled.population, found, rtol=1e-3, atol=1e-6)


def test_images_that_tell_nothing_leave_the_prior():
    prior = np.diff(norm.cdf(np.linspace(-3, 3, 13)))
    found = deconvolved(np.ones((50, 12)), prior)
    np.testing.assert_allclose(found.population, prior / prior.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (np.ones((5, 7)), "for the"),
        (-np.ones((5, 8)), "masses of 0 or more"),
        (np.zeros((5, 8)), "possible in no bin"),
    ],
)
def test_deconvolution_refuses(likelihood, message):
    with pytest.raises(pc.InputError, match=message):
        deconvolved(likelihood, np.full(8, 0.125))


def _written(noise=0.4, n=1500, temperature=None, seed=0, known=True):
    """Particles whose images are z and noise, and the pair that knows so."""
    rng = np.random.default_rng(seed)
    z = np.stack([rng.choice(GRID, size=n, p=_wells()), rng.standard_normal(n)], axis=1)
    rotation = pc.rotations.random_in_plane((n,), rng)
    images = noise * rng.standard_normal((n, 64))
    images[:, :2] += z
    images[:, 2:4] += rotation[:, :2, 0]
    fields = {} if temperature is None else {"temperature": temperature}
    particles = pc.Particles(
        images.reshape(n, 8, 8).astype(np.float32), rotation=rotation, truth=z, **fields
    )
    return particles, _knowing(noise, known=known)


def _knowing(noise, sign=1.0, known=True):
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), Written(), 8, guide=Reading(sign / (1 + noise**2)),
        noise=noise if known else None, rotate=False,
    )  # fmt: skip
    with torch.no_grad():
        pair.encoder.spread.fill_(math.log(noise / math.sqrt(1 + noise**2)))
        pair.volume.gain.fill_(sign)
    return pair.eval()


def _fit(pairs, particles):
    return Fit(
        pairs, tuple(range(len(pairs))), {}, pc.svi.Settings(steps=10), 0.0, True,
        particles.batch(np.arange(8)), {"data": particles.digest()},
    )  # fmt: skip


def test_the_evidence_of_a_guide_that_is_the_posterior_is_exact():
    noise = 0.4
    particles, pair = _written(noise, n=40)
    found = sampled(pair, particles, 3)
    assert found["z"].shape == (3, 40, 2)
    x = particles.batch(np.arange(40)).images.numpy().reshape(40, 64).astype(float)
    x[:, 2:4] -= particles.rotation[:, :2, 0]
    sd = np.full(64, noise)
    sd[:2] = math.sqrt(1 + noise**2)
    exact = norm.logpdf(x, scale=sd).sum(axis=1)
    np.testing.assert_allclose(log_evidence(log_weights(found)), exact, atol=2e-3)
    rigid = log_evidence(log_weights(sampled(pair, particles, 1, rigid=True)))
    sd[:2] = noise
    np.testing.assert_allclose(rigid, norm.logpdf(x, scale=sd).sum(1), atol=2e-3)


@pytest.fixture(scope="module")
def profiles():
    particles, pair = _written(temperature=np.full(1500, 310.0))
    fit = _fit([pair, _knowing(0.4, sign=-1.0)], particles)
    return pc.diagnose.populations(fit, particles, resamples=30, draws=60)


def test_populations_of_two_wells(profiles):
    first, second = profiles
    true = _masses(first.edges, _wells())
    near = true > 0.01
    assert ((first.low <= true) & (true <= first.high))[near].mean() >= 0.75
    assert first.population.sum() == pytest.approx(1)
    assert len(first.wells.wells) == 2
    left = _wells()[GRID < 0.1].sum()
    assert first.wells.populations[0] == pytest.approx(left, abs=0.06)
    height = np.log(true.max() / true[np.argmin(np.abs(first.centres - 0.1))])
    assert abs(first.wells.heights[0] - height) < 3 * first.height_error[0]
    assert first.height_error[0] < 1.0
    assert len(second.wells.wells) == 1  # a normal
    assert "barrier" in first.sentence
    assert "barrier" not in second.sentence


def test_a_seed_with_its_latents_mirrored_says_the_same(profiles):
    first = profiles[0]
    assert first.agreement == pytest.approx([1, 1], abs=0.01)
    bars = first.high - first.low
    assert (np.abs(first.per_seed[0] - first.per_seed[1]) < bars).mean() > 0.9


def test_units(profiles):
    first = profiles[0]
    assert first.temperature == 310.0
    assert KILOJOULE == pytest.approx(1.380649e-23 * 6.02214076e23 / 1000, rel=1e-6)
    np.testing.assert_allclose(first.kilojoules, 8.314462618e-3 * 310 * first.free_energy)
    told = first.as_dict()
    assert told["axis"] == 1
    np.testing.assert_allclose(told["kelvin"], 310 * first.free_energy)


class _Bent(Written):
    """A map that changes with z + z³/3: the way is 1 + z² as long where z has gone that far."""

    def density(self, z):
        maps = z.new_zeros(*z.shape[:-1], 8, 8)
        maps[..., 0, 0] = z[..., 0] + z[..., 0] ** 3 / 3
        return maps


def test_the_law_along_the_motion_takes_a_warp_of_the_latent_into_account():
    particles, pair = _written(n=400)
    pair.volume.__class__ = _Bent
    first = pc.diagnose.populations(pair, particles, resamples=5, draws=30)[0]
    size = np.diff(first.edges + first.edges**3 / 3)
    np.testing.assert_allclose(first.width, size / size.sum(), rtol=1e-4)
    expected = -np.log(first.population / first.width)[1:-1]
    np.testing.assert_allclose(first.along_motion[1:-1], expected - expected.min(), atol=1e-6)
    assert np.isnan(first.along_motion[[0, -1]]).all()  # open bins


def test_particles_of_one_temperature():
    kelvin = np.repeat([300.0, 200.0], 50)
    particles, pair = _written(n=100, temperature=kelvin)
    options = {"resamples": 3, "draws": 10}
    assert pc.diagnose.populations(pair, particles, **options)[0].temperature == 300.0
    cold = pc.diagnose.populations(pair, particles, temperature=200.0, **options)[0]
    alone = pc.diagnose.populations(pair, particles.take(np.arange(50, 100)), **options)[0]
    np.testing.assert_array_equal(cold.population, alone.population)
    with pytest.raises(pc.InputError, match=r"no particle at 250 K, expected one of 200, 300"):
        pc.diagnose.populations(pair, particles, temperature=250.0)
    with pytest.raises(pc.InputError, match="bins: expected at least 6"):
        pc.diagnose.populations(pair, particles, bins=3)


def _arms(moving, n=500, snr=1.0, seed=0):
    rng = np.random.default_rng(seed)
    z = moving * rng.standard_normal((n, 2)).clip(-3, 3)
    return imaged(pc.molecules.TwoArms(), z, rng, snr=snr, box=16, pixel_size=6.0)


def _trained(particles, steps=180):
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), pc.volumes.Grid(hidden=(32, 32)), 16,
        guide=pc.guides.Amortised((64,)),
    )  # fmt: skip
    return pc.fit(pair, particles, steps=steps, batch_size=64, lr=1e-2, progress=False)


def test_nothing_moves_and_nothing_is_found():
    particles = _arms(0.0, snr=0.1)
    found = pc.diagnose.heterogeneity(_trained(particles, 100), particles, draws=16)
    assert found.verdict == "homogeneous"
    assert found.axes == 0
    assert found.sentence.startswith("No heterogeneity found: on 50 held-out particles")


def _read_and_trained(second):
    """Two numbers written into each image, the second times ``second``, and a fit of them."""
    particles, pair = _written(n=1500, known=False)
    off = (1 - second) * particles.truth[:, 1]
    images = particles.batch(np.arange(1500)).images.numpy()
    images[:, 0, 1] -= off.astype(np.float32)
    particles = pc.Particles(images, rotation=particles.rotation)
    return pc.fit(pair, particles, steps=120, batch_size=64, lr=0.03, progress=False), particles


def test_two_numbers_are_two_axes(tmp_path):
    fit, particles = _read_and_trained(1.0)
    found = pc.diagnose.heterogeneity(fit, particles, axes=True, draws=32)
    assert found.verdict == "heterogeneous"
    assert found.axes == 2
    assert "two axes" in found.sentence
    assert found.directions[0].active.all()
    # what latents gain one after another is what they gain together
    assert found.steps.sum() == pytest.approx(found.gain.mean(), rel=1e-6)
    told = write_landscape(
        tmp_path,
        found,
        pc.diagnose.populations(fit, particles, resamples=5, draws=20),
        verdict="Not identified: the prior cannot see rotations.",
    )
    held = json.loads((tmp_path / "landscape.json").read_text())
    assert held["heterogeneity"]["axes"] == 2
    assert held["caveat"] == told["caveat"] != ""
    assert held["axes"][0]["free_energy"][0] is None  # an open bin
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"landscape_heterogeneity.png", "landscape_populations.png"}


def test_one_number_is_one_axis():
    fit, particles = _read_and_trained(0.0)
    found = pc.diagnose.heterogeneity(fit, particles, axes=True, draws=32)
    assert found.axes == 1
    assert "one axis" in found.sentence
    assert found.steps[0, 0] > 0 > found.steps[0, 1]


def test_arms_that_move_are_found():
    particles = _arms(1.0)
    found = pc.diagnose.heterogeneity(_trained(particles), particles, draws=16)
    assert found.verdict == "heterogeneous"
    assert found.axes >= 1
    assert found.gain.mean() > 2


def test_other_particles_are_refused():
    particles, pair = _written(n=100)
    fit = _fit([pair], particles)
    with pytest.raises(pc.InputError, match="trained on others than these"):
        pc.diagnose.heterogeneity(fit, _written(n=100, seed=1)[0])
    with pytest.raises(pc.InputError, match="no particle is held out"):
        pc.diagnose.heterogeneity(fit, particles.train)
    with pytest.raises(pc.InputError, match="expected a Fit"):
        pc.diagnose.heterogeneity(pair, particles)


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("Consistent with identified axes: ...", True),
        ("Given, not found: ...", True),
        ("There is one latent, so ...", True),
        ("Not identified: the prior ...", False),
        ("Not identified by this fit: ...", False),
        ("Aligned, but not by the data alone: ...", False),
        ("Undecided: ...", False),
        (None, False),
    ],
)
def test_a_profile_of_an_axis_that_means_nothing_says_so(sentence, named):
    assert (caveat(sentence) == "") == named
    assert caveat(sentence).lower().count("identified") <= 1


def test_the_command(tmp_path, capsys):
    stack, run = tmp_path / "p.star", tmp_path / "run"
    assert main(["simulate", "temperature", str(stack), "--n", "300", "--box", "16"]) == 0
    words = ["--steps", "20", "--draws", "20", "--small"]
    line = ["fit", "models/boltzmann.py", "--data", str(stack), "--out", str(run), *words]
    assert main(line) == 0
    capsys.readouterr()
    assert main(["landscape", str(run), "--no-rival", "--axes"]) == 2
    assert "leave out --no-rival" in capsys.readouterr().err
    for wrong, value, message in (  # before the rival is trained
        ("bins", "5", "bins: expected at least 6, got 5"),
        ("most", "19", "most: expected at least 20, got 19"),
        ("temperature", "-3", "temperature: expected K above 0, got -3.0"),
        ("temperature", "90", "temperature: no particle at 90 K, expected one of"),
    ):
        assert main(["landscape", str(run), f"--{wrong}", value]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert not said.out
    assert main(["landscape", str(run), "--most", "100", "--bins", "8"]) == 0
    told = capsys.readouterr().out
    assert "held-out particles" in told
    assert "z1: " in told
    held = json.loads((run / "landscape.json").read_text())
    assert held["axes"][0]["temperature"] == 300.0
    assert len(held["axes"][0]["population"]) == 8
