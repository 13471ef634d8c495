import math

import numpy as np
import pytest
from scipy.stats import ortho_group

import pyrocryo as pc
from pyrocryo.identify import consistency, rotation_gap


@pytest.fixture
def z(rng):
    return rng.standard_normal((600, 4))


def _noisy(rng, z):
    return z + 0.1 * rng.standard_normal(z.shape)


def test_order_and_sign_do_not_matter(rng, z):
    runs = [_noisy(rng, z), -_noisy(rng, z)[:, ::-1], 3 * _noisy(rng, z)[:, [1, 0, 3, 2]]]
    result = consistency(runs)
    assert result.agree
    assert result.permutation > 0.98
    assert result.worst_turn_deg < 6
    assert "every axis" in result.sentence


def test_rotations_are_told(rng, z):
    runs = [_noisy(rng, z @ q) for q in ortho_group.rvs(4, size=3, random_state=1)]
    result = consistency(runs)
    assert not result.agree
    assert result.affine > 0.95 > result.permutation
    assert "rotation" in result.sentence


def test_one_turned_run_among_many_is_enough(rng, z):
    runs = [_noisy(rng, z) for _ in range(5)] + [z @ ortho_group.rvs(4, random_state=3)]
    assert not consistency(runs).agree


def test_one_failed_run_among_good_ones_is_told(rng, z):
    result = consistency([_noisy(rng, z) for _ in range(4)] + [rng.standard_normal(z.shape)])
    assert not result.agree
    assert "some seeds found something else" in result.sentence


def test_a_dead_latent_in_one_run_is_told(rng, z):
    dead = _noisy(rng, z) * [1, 1, 1, 0]
    result = consistency([_noisy(rng, z), _noisy(rng, z), dead])
    assert not result.agree


def test_frames_of_a_molecule_stay_in_one_half(rng, z):
    from pyrocryo.metrics.r2 import halves

    a, b = halves(12, 3, seed=0)
    assert sorted([*a, *b]) == list(range(12))
    assert not set(a // 3) & set(b // 3)
    assert consistency([_noisy(rng, z), _noisy(rng, z)], frames=2).agree


def test_curved_maps_are_told(rng):
    z = rng.standard_normal((2000, 2))
    angle = 0.7 * np.square(z).sum(axis=1)
    c, s = np.cos(angle), np.sin(angle)
    twisted = np.stack([c * z[:, 0] - s * z[:, 1], s * z[:, 0] + c * z[:, 1]], axis=-1)
    result = consistency([z, twisted])
    assert result.nonlinear > 0.6 > result.affine
    assert "curved" in result.sentence


def test_a_warp_along_each_axis_is_no_disagreement(rng):
    z = rng.standard_normal((1500, 2))
    result = consistency([_noisy(rng, z), np.sinh(1.3 * _noisy(rng, z))])
    assert result.nonlinear - result.affine > 0.1
    assert result.agree
    assert result.sentence.endswith("and a warp along it")


def test_unrelated_runs_are_told(rng, z):
    result = consistency([z, rng.standard_normal(z.shape)])
    assert not result.agree
    assert "different things" in result.sentence


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ([np.zeros((9, 2))], "agreement needs at least two runs, got 1"),
        ([np.zeros((9, 2)), np.zeros((9, 3))], r"arrays \(N, K\) of one shape"),
    ],
)
def test_wrong_input_is_named(latents, message):
    with pytest.raises(pc.InputError, match=message):
        consistency(latents)


def test_what_a_turn_costs_under_each_prior(pairs_in_time, at_temperatures):
    def gap(prior, particles):
        pair = pc.Pair(prior, pc.volumes.Grid(), particles.box)
        return rotation_gap(pair, particles.batch(np.arange(100)), draws=40_000)

    table = pc.priors.Boltzmann
    equal = table(table={300: (1, 1), 240: (0.7, 0.7), 180: (0.4, 0.4)})
    unequal = table(table=pc.simulate.default_scales(2))
    assert gap(pc.priors.IsotropicNormal(2), pairs_in_time) == pytest.approx(0, abs=1e-5)
    assert gap(equal, at_temperatures) == pytest.approx(0, abs=1e-5)
    assert gap(unequal, at_temperatures) > 0.05
    wells = gap(pc.priors.Boltzmann(stiffness=(300.0, 1200.0)), at_temperatures)
    assert wells == pytest.approx(0, abs=5e-4)  # rotations of whitened z are free
    laplace = gap(pc.priors.LaplaceTransition(2, 2.0), pairs_in_time)
    assert laplace == pytest.approx(0.1213, abs=0.02)
    one = pc.Pair(pc.priors.IsotropicNormal(1), pc.volumes.Grid(), 32)
    assert rotation_gap(one, pairs_in_time.batch(np.arange(4))) == math.inf


def test_too_few_particles_to_tell(pairs_in_time):
    pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), pairs_in_time.box)
    fit = pc.fit(pair, pairs_in_time, steps=2, seeds=2)
    post = pc.posterior(fit, pairs_in_time.test.take([0, 1]), draws=4)
    verdict = pc.identify.report(fit, post)
    assert verdict["seeds"] is None
    assert "so few particles" in verdict["sentence"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_report_says_what_the_numbers_say(pairs_in_time, seeds):
    for prior, start in (
        (pc.priors.IsotropicNormal(2), "Not identified: the prior IsotropicNormal cannot see rot"),
        (pc.priors.LaplaceTransition(2, 2.0), "Undecided" if seeds == 1 else "Not identified by"),
    ):
        pair = pc.Pair(prior, pc.volumes.Grid(), pairs_in_time.box)
        fit = pc.fit(pair, pairs_in_time, steps=10, seeds=seeds)
        post = pc.posterior(fit, pairs_in_time.test, draws=4)
        verdict = pc.identify.report(fit, post)
        assert verdict["sentence"].startswith(start)
        assert (verdict["seeds"] is None) == (seeds == 1)
        assert verdict["prior"]["name"] == type(prior).__name__
        assert verdict["prior"]["sees_rotations"] == ("Laplace" in type(prior).__name__)


def _wells(learned=False):
    energy = pc.priors.LearnedEnergy if learned else lambda: pc.priors.DoubleWell(2.0)
    return pc.priors.Boltzmann(energies=(energy(), pc.priors.Harmonic(1.0)), reference=300.0)


@pytest.mark.parametrize(
    ("prior", "aligned", "said", "helps"),
    [
        (_wells(), True, "Aligned, but not by the data alone", "A second knob that tilts"),
        (_wells(), False, "Not identified by this fit", "A second knob that tilts"),
        (pc.priors.Boltzmann(table=pc.simulate.default_scales(2)), True, "Consistent with", None),
        (pc.priors.Boltzmann(table=pc.simulate.default_scales(2)), False, "Not identified", None),
        (pc.priors.IsotropicNormal(2), True, "Not identified: the prior", "A condition (temp"),
    ],
    ids=["wells", "wells scattered", "table", "table scattered", "isotropic"],
)
def test_the_sentence_joins_prior_and_seeds(at_temperatures, rng, prior, aligned, said, helps):
    pair = pc.Pair(prior, pc.volumes.Grid(), at_temperatures.box)
    fit = pc.fit(pair, at_temperatures, steps=2, batch_size=8, seeds=3)
    z = rng.standard_normal((600, 2))
    turns = [np.eye(2)] * 3 if aligned else ortho_group.rvs(2, size=3, random_state=1)
    seen = np.stack([_noisy(rng, z @ q) for q in turns])[:, None]
    verdict = pc.identify.report(fit, {"posterior": {"z": seen}}, at_temperatures)
    assert verdict["sentence"].startswith(said)
    assert verdict["prior"]["check"]["conditions"] == (
        1 if isinstance(prior, pc.priors.IsotropicNormal) else 3
    )
    assert ("What would help" in verdict["sentence"]) == bool(helps)
    if helps:
        assert f"help: {helps[0].lower()}{helps[1:]}" in verdict["sentence"]
    assert len(verdict["decoder"]["sentences"]) == 3
    assert verdict["frame"] is None  # poses were known
    told = verdict["prior"]["profiles"]
    assert (told is None) == isinstance(prior, pc.priors.IsotropicNormal)
    if prior.__class__ is pc.priors.Boltzmann and prior.energies is not None:
        assert told[0][0].endswith("barrier 2.00 k_B T (600 K)")
    assert (verdict["seeds"]["rhat"] is None) == (seen.shape[1] < 10)


@pytest.mark.parametrize("rotate", [False, True])
def test_axes_that_the_decoder_gives_are_said_to_be_given(rotate):
    molecule = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(molecule, n=40, box=16, pixel_size=6.0)
    volume = pc.volumes.Atoms.known(molecule, pixel_size=6.0)
    prior = pc.priors.IsotropicNormal(2)
    pair = pc.Pair(prior, volume, 16, guide=pc.guides.GaussNewton(1), rotate=rotate)
    fit = pc.fit(pair, particles, steps=2, batch_size=8)
    told = pc.identify.report(fit, pc.posterior(fit, particles.test, draws=2))["sentence"]
    assert told.startswith("Not identified" if rotate else "Given, not found: in this decoder")
