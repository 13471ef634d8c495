"""Whether the checks of a posterior see what they should, and nothing else."""

import json
import math
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
from scipy import stats
from toys import written

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.diagnose import (
    coverage,
    importance,
    power_scaled,
    predictive,
    psis,
    residuals,
    uniform,
)
from pyrocryo.diagnose.calibration import calibrated
from pyrocryo.diagnose.joint import Dreamt, angles, dreamt
from pyrocryo.diagnose.sbc import ranked
from pyrocryo.diagnose.tarp import covered, distance
from pyrocryo.rotations import angle_between, random_in_space

NARROW, WIDE = 0.7, 1.4


@pytest.fixture(scope="module")
def particles():
    return planted.particles(200)


def test_a_few_particles_are_of_the_whole_stack(particles):
    """The first ones are those of the first micrographs."""
    found = importance(planted.pair(), particles, draws=25, most=8)
    assert np.bincount(found.particles // 50).min() > 0


# Pareto smoothing


def _arviz_psis(log_weights):
    import arviz as az

    if az.__version__.startswith("0."):
        return az.psislw(log_weights)
    from arviz_stats.base import array_stats

    return array_stats.psislw(-log_weights, axis=-1)  # it takes log ratios of the other sign


def test_khat_is_that_of_arviz(rng):
    import arviz as az

    log_weights = 0.5 * rng.standard_normal((40, 500)) ** 2 * (1 - NARROW**2)
    smooth, k = psis(log_weights)
    expected_smooth, expected = _arviz_psis(log_weights)
    old = az.__version__.startswith("0.")
    np.testing.assert_allclose(k, expected, atol=1e-12 if old else 0.3)
    np.testing.assert_allclose(smooth, expected_smooth, atol=1e-12 if old else 1.0)
    np.testing.assert_allclose(np.exp(smooth).sum(-1), 1.0)


@pytest.mark.parametrize("c", [0.9, 0.7, 0.5])
def test_khat_is_one_less_c_squared_of_a_narrow_gaussian(rng, c):
    z = c * rng.standard_normal((20, 20_000))
    k = psis(0.5 * z**2 * (1 / c**2 - 1))[1]
    assert np.median(k) == pytest.approx(1 - c**2, abs=0.06)


def test_khat_does_not_see_a_wide_gaussian(rng):
    z = WIDE * rng.standard_normal((20, 1000))
    assert (psis(0.5 * z**2 * (1 / WIDE**2 - 1))[1] < 0).all()


def test_weights_that_are_equal_or_tied_or_zero(rng):
    assert psis(np.full((2, 40), -3e4))[1].tolist() == [-np.inf, -np.inf]
    tied = np.round(rng.standard_normal((5, 200)), 1)
    np.testing.assert_allclose(psis(tied)[1], _arviz_psis(tied)[1], atol=0.4)
    few = np.full((1, 100), -np.inf)
    few[0, :3] = [0.0, 1.0, 2.0]
    smooth, k = psis(few)
    assert k[0] == np.inf
    assert np.exp(smooth).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (np.zeros((2, 10)), "25 draws"),
        (np.full((2, 30), np.nan), "NaN"),
        (np.full((2, 30), -np.inf), "positive weight"),
    ],
)
def test_psis_refuses(bad, told):
    with pytest.raises(pc.errors.InputError, match=told):
        psis(bad)


# importance weights


def test_an_exact_guide_has_no_gap_and_the_exact_evidence(particles):
    pair = planted.pair()
    found = importance(pair, particles, draws=50, most=20)
    assert found.passed
    assert abs(found.gap[0]) < 1e-5
    np.testing.assert_allclose(found.ess, 1.0, atol=1e-4)
    batch = particles.batch(found.particles)
    with torch.no_grad():
        base, *ends = (
            pair.seen(z.expand(20, 2), batch).flatten(1).double().numpy()
            for z in torch.cat([torch.zeros(1, 2), torch.eye(2)])
        )
    for i, image in enumerate(batch.images.flatten(1).double().numpy()):
        slopes = np.stack([end[i] - base[i] for end in ends], axis=-1)
        law = stats.multivariate_normal(base[i], np.eye(len(image)) + slopes @ slopes.T)
        assert found.iwae[0, i] == pytest.approx(law.logpdf(image), abs=1e-2)


@pytest.mark.parametrize(
    ("fault", "nats", "median"),
    [
        ({"wide": 0.9}, 0.0104, 0.22),
        ({"wide": NARROW}, 0.1017, 0.5),
        ({"wide": 0.5}, 0.318, 0.72),
        ({"wide": WIDE}, 0.1435, -0.8),
        ({"off": 0.5}, 0.125, 0.2),
    ],
)
def test_the_gap_is_the_divergence_of_the_guide(particles, fault, nats, median):
    found = importance(planted.pair(**fault), particles, draws=500)
    short = 0.12 if fault.get("wide") == 0.5 else 0.03  # 500 draws are short of it
    assert found.gap[0] / found.latents == pytest.approx(nats, rel=short, abs=4 * found.gap_se[0])
    assert np.median(found.khat) == pytest.approx(median, abs=0.1)
    assert found.gap_passed == (nats < 0.05)
    assert found.khat_passed == (median < 0.4 or fault == {"wide": NARROW})
    assert "IWAE" in found.sentence


@pytest.mark.parametrize(
    ("fault", "off", "ratio", "doubt"),
    [
        ({}, 0.0, 1.0, 0.0),
        ({"wide": 0.9}, 0.0, 0.9, 0.0),
        ({"wide": NARROW}, 0.0, NARROW, 0.8),
        ({"wide": 1.15}, 0.0, 1.15, 0.0),
        ({"wide": WIDE}, 0.0, WIDE, 1.0),
        ({"off": 0.1}, 0.1, 1.0, 0.0),
        ({"off": 0.5}, 0.5, 1.0, 1.0),
    ],
)
def test_weights_say_by_how_much_a_guide_is_off_and_of_whom(particles, fault, off, ratio, doubt):
    """Whitened by the posterior's Cholesky factor: the first number is off by a share of sd."""
    found = importance(planted.pair(**fault), particles, draws=600, most=20)
    assert found.names == ("z1", "z2")
    assert found.off.shape == found.ratio.shape == (1, 20, 2)
    assert found.off[..., 0].mean() == pytest.approx(off, abs=0.03)
    assert found.ratio.mean() == pytest.approx(ratio, abs=0.03)
    if doubt in (0.0, 1.0):
        assert found.doubtful.mean() == doubt
    else:  # tails that are missing cannot be weighed in: now and then .7 seems .8
        assert found.doubtful.mean() > doubt


def test_the_worst_particles_keep_their_khat_on_file(particles):
    images = 1e4 * particles.batch(np.arange(200)).images.numpy()  # of no model
    found = importance(planted.pair(), _with(particles, images), draws=50, most=20)
    assert np.isinf(found.khat).any()
    assert np.isfinite(found.as_dict()["khat"]).all()
    assert found.as_dict()["khat"].max() == 9


def test_weights_go_to_arviz(particles):
    found = importance(planted.pair(), particles, draws=30, most=10)
    tree = found.arviz()
    assert tree["posterior"]["z"].dims == ("chain", "draw", "particle", "latent")
    weights = np.exp(np.asarray(tree["sample_stats"]["log_weight"]))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)


# ranks, balls and credible sets


@pytest.mark.parametrize("c", [1.0, NARROW, WIDE])
@pytest.mark.parametrize("off", [0.0, 0.4])
def test_ranks_follow_theory(particles, c, off):
    if c != 1 and off:
        return
    dreams = dreamt(planted.pair(wide=c, off=off), particles, n=2000, draws=99, seed=1)
    found = ranked(dreams)
    right = c == 1 and not off
    assert found.passed == right
    np.testing.assert_allclose(found.mean_rank, stats.norm.cdf(-off / math.sqrt(2)), atol=0.025)
    if not off:
        expected = 6 / math.pi * math.asin(1 / (1 + c**2))
        np.testing.assert_allclose(found.variance_ratio, expected, atol=0.05)
    if not right:
        assert found.p.max() < 1e-6
    assert covered(dreams).passed == right
    sets = calibrated(dreams)
    assert sets.passed == right
    if not off:  # |e| < q of a truth e with sd 1, for quantiles q of N(0, c²)
        expected = [2 * stats.norm.cdf(c * stats.norm.ppf(0.5 + a / 2)) - 1 for a in (0.5, 0.9)]
        np.testing.assert_allclose(sets.coverage[0], np.tile(expected, (2, 1)), atol=0.035)
    told = {1.0: "calibrated", NARROW: "too narrow", WIDE: "too wide"}
    assert ("too high" if off else told[c]) in found.sentence


def test_uniform_ranks_pass_and_skewed_ones_do_not(rng):
    ranks = rng.integers(0, 100, (2000, 3))
    p, mean, ratio = uniform(ranks, 99)
    assert p.min() > 0.01
    np.testing.assert_allclose(mean, 0.5, atol=0.03)
    np.testing.assert_allclose(ratio, 1.0, atol=0.06)
    lumpy = rng.choice([12, 37, 62, 87], (2000, 1))  # right mean, right variance
    p, _, ratio = uniform(lumpy, 99)
    assert p[0] < 1e-6
    assert ratio[0] == pytest.approx(0.94, abs=0.05)
    with pytest.raises(pc.errors.InputError, match="ranks"):
        uniform(ranks, 50)


def _posed(size=10.0, off=0.0):
    """z and an angle read with noise .1: posteriors N(x / 1.01, .1² / 1.01) and 1 / 10 rad."""
    pair, particles = written(known=False, share=1 / 1.01, off=off)
    with torch.no_grad():
        pair.encoder.spread.fill_(-0.5 * math.log(101.0))
        pair.pose_encoder.size.fill_(size)
    return pair.eval(), particles


def test_angles_in_the_plane_are_ranked():
    dreams = dreamt(_posed()[0], _posed()[1], n=1000, draws=99, seed=0)
    found = ranked(dreams)
    assert found.names == ("z1", "z2", "pose")
    assert found.passed
    assert covered(dreams).passed
    sets = calibrated(dreams)
    assert sets.passed
    assert sets.coverage[0, 2, 1] == pytest.approx(0.9, abs=0.03)
    for kind, told in (({"size": 15.0}, "too narrow"), ({"off": 0.05}, "too high")):
        pair, particles = _posed(**kind)
        dreams = dreamt(pair, particles, n=1000, draws=99, seed=0)
        found = ranked(dreams)
        assert told in found.sentence
        assert "pose" in found.sentence
        assert found.p[0, :2].min() > 0.01  # the conformations are as they were
        if "size" in kind:
            assert not covered(dreams).passed
            assert not calibrated(dreams).passed


def _rotated(rng, wide, n=1500, draws=99):
    """Poses about random ones, and a guide that scatters `wide` times as much."""
    from pyrocryo import quaternions as q

    def scattered(shape, scale):
        turn = torch.as_tensor(scale * rng.standard_normal((*shape, 3)))
        sign = torch.as_tensor(rng.choice([-1.0, 1.0], (*shape, 1)))
        return (sign * q.product(q.exponential(turn), middle)).numpy()

    middle = q.from_matrix(torch.as_tensor(random_in_space((n,), rng)))
    other = q.from_matrix(torch.as_tensor(random_in_space((n,), rng))).numpy()
    truth, drawn = scattered((n,), 0.2), scattered((draws, n), 0.2 * wide)
    z = rng.standard_normal((draws + 2, n, 1))
    dream = Dreamt(
        {"z": z[0], "pose": truth},
        {"z": z[1], "pose": other},
        {"z": z[2:], "pose": drawn},
        -scattered((1, n), 0.2)[0],
        None,
    )
    return {0: dream}


def test_rotations_are_ranked_whatever_their_signs(rng):
    dreams = _rotated(rng, 1.0)
    assert ranked(dreams).names == ("z1", "pose_x", "pose_y", "pose_z")
    assert ranked(dreams).passed
    assert covered(dreams).passed
    assert calibrated(dreams).passed
    dreams = _rotated(rng, NARROW)
    assert (ranked(dreams).p[0, 1:] < 1e-6).all()
    assert covered(dreams).p[0, 1] < 1e-6
    assert covered(dreams).p[0, 0] > 0.01
    assert not calibrated(dreams).passed


def test_distances_are_angles(rng):
    from pyrocryo import quaternions as q

    a, b = (torch.as_tensor(random_in_space((50,), rng)) for _ in range(2))
    x, y = q.from_matrix(a), q.from_matrix(b)
    expected = angle_between(a.numpy(), b.numpy())
    np.testing.assert_allclose(distance(x.numpy(), -y.numpy()), expected, atol=1e-6)
    along = angles(x.numpy(), -y.numpy())
    np.testing.assert_allclose(np.linalg.norm(along, axis=-1), expected, atol=1e-6)
    phi = rng.uniform(-3, 3, (50, 2))
    u, v = (np.stack([np.cos(p), np.sin(p)], axis=-1) for p in phi.T)
    gap = np.abs((phi[:, 0] - phi[:, 1] + np.pi) % (2 * np.pi) - np.pi)
    np.testing.assert_allclose(distance(u, v), gap, atol=1e-9)
    np.testing.assert_allclose(np.abs(angles(u, v)[:, 0]), gap, atol=1e-9)


def test_coverage_of_a_known_truth(rng):
    truth, draws = rng.standard_normal((4000, 2)), rng.standard_normal((99, 4000, 2))
    found = coverage(truth, draws * [1.0, 0.5])
    np.testing.assert_allclose(found[0], [0.5, 0.9], atol=0.02)
    assert (found[1] < [0.35, 0.65]).all()
    with pytest.raises(pc.errors.InputError, match="draws"):
        coverage(truth, draws[0])


@pytest.mark.parametrize("draws", [20, 50])
def test_exact_posteriors_cover_what_they_say_whatever_the_number_of_draws(rng, draws):
    truth, drawn = rng.standard_normal((20_000, 1)), rng.standard_normal((draws, 20_000, 1))
    np.testing.assert_allclose(coverage(truth, drawn)[0], [0.5, 0.9], atol=0.012)
    turn = [np.stack([np.cos(0.1 * a), np.sin(0.1 * a)], axis=-1) for a in (truth, drawn)]
    np.testing.assert_allclose(coverage(*turn)[0], [0.5, 0.9], atol=0.012)


def test_frames_have_ranks_of_their_own(slowvae, pairs_in_time):
    dreams = dreamt(slowvae.eval(), pairs_in_time, n=40, draws=19, seed=0)
    found = ranked(dreams)
    assert found.names[:3] == ("z1 of frame 1", "z2 of frame 1", "z1 of frame 2")
    assert found.ranks.shape == (1, 40, 4)
    assert covered(dreams).names == ("z",)


# posterior predictive checks


def test_images_of_the_model_look_like_it(particles):
    for fault in ({}, {"wide": NARROW}, {"off": 0.5}):  # what is wrong with a guide is not seen
        found = predictive(planted.pair(**fault), particles)
        assert found.passed
        assert found.level[0] == pytest.approx(1.0, abs=0.02)
        assert "look like" in found.sentence


@pytest.mark.parametrize(
    ("fault", "test", "told"),
    [
        ("noise 10 % too low", "level", "variance is 1.2"),
        ("defocus 1500 Å off", "gain", "optics"),
        ("third arm missing", "component", "motion that the model lacks"),
    ],
)
def test_what_is_wrong_with_a_model_is_told(fault, test, told):
    particles, pair = planted.planted(fault, seed=3)
    found = predictive(pair, particles)
    p = dict(zip(found.names, found.p[0], strict=True))
    assert p[test] < 1e-6
    assert told in found.sentence
    if test == "component":  # and shown
        arm = planted.Linear(3).build(3, planted.BOX).slopes[2].numpy()
        overlap = (found.component_map[0] * arm).sum() / np.linalg.norm(arm)
        assert abs(overlap) > 0.9
    if test == "level":
        assert found.level[0] == pytest.approx(1.21, abs=0.02)
        np.testing.assert_allclose(found.spectrum[0, 2:], 1.21, atol=0.08)


def test_maps_in_space_stay_in_the_frame_of_the_image(rng):
    images = rng.standard_normal((60, 8, 8)).astype(np.float32)
    particles = pc.Particles(images, rotation=random_in_space((60,), rng))
    pair = pc.Pair(pc.priors.IsotropicNormal(1), pc.volumes.Grid(dim=3, hidden=(4,)), 8)
    found = predictive(pair, particles)
    assert not found.body
    assert found.variance_map.shape == (1, 8, 8)


def test_large_images_make_small_maps(rng):
    images = rng.standard_normal((40, 80, 80)).astype(np.float32)
    particles = pc.Particles(images, rotation=pc.rotations.random_in_plane((40,), rng))
    pair = pc.Pair(pc.priors.IsotropicNormal(1), pc.volumes.Grid(hidden=(4,)), 80)
    found = predictive(pair, particles)
    assert found.mean_map.shape == found.variance_map.shape == (1, 64, 64)
    assert found.component_map.shape == (1, 24, 24)
    assert found.spectrum.shape == (1, 41)


def _with(particles, images):
    return pc.Particles(images, pixel_size=planted.PIXEL, rotation=particles.fields["rotation"])


@pytest.mark.parametrize("stray", [1, 6])
def test_a_few_images_that_are_no_particles_are_told(particles, stray):
    images = particles.batch(np.arange(200)).images.numpy().copy()
    images[100 : 100 + stray] *= 30
    found = predictive(planted.pair(), _with(particles, images))
    p = dict(zip(found.names, found.p[0], strict=True))
    assert p["outlier"] < 1e-6
    assert found.outliers[0] == stray
    assert 100 <= found.worst[0, -1] < 100 + stray
    assert "may be no particles" in found.sentence


def test_stray_images_do_not_hide_what_is_wrong_with_all():
    particles = planted.particles(256, 3, sd=1.1)
    images = particles.batch(np.arange(256)).images.numpy().copy()
    images[:3] *= 30
    found = predictive(planted.pair(), _with(particles, images))
    assert dict(zip(found.names, found.p[0], strict=True))["level"] < 1e-6


def test_images_may_be_of_any_scale(particles):
    small = 1e-7

    class Small(planted.Linear):
        def density(self, z):
            return small * super().density(z)

    images = small * particles.batch(np.arange(200)).images.numpy()
    levels = []
    for wrong in (1.0, 0.8):
        guide = planted.Guide(small)
        prior = pc.priors.IsotropicNormal(2)
        pair = pc.Pair(prior, Small(), 16, guide=guide, noise=wrong * small, rotate=False)
        levels.append(predictive(pair, _with(particles, images)).passed)
    assert levels == [True, False]


@pytest.mark.parametrize("likelihood", [{"spectrum": np.linspace(2, 0.5, 9)}, {"contrast": 0.2}])
def test_noise_of_any_kind_is_checked(particles, likelihood):
    pair = planted.pair()
    noise = pc.noise.Gaussian(**likelihood)
    pair.likelihood = noise.build(planted.BOX)
    found = importance(pair, particles, draws=30, most=20)
    assert np.isfinite(found.khat).any()
    assert np.isfinite(found.iwae).all()


def test_numbers_are_refused_before_anything_is_computed(particles, monkeypatch):
    check = pc.diagnose.check
    monkeypatch.setattr(sys.modules[check.__module__], "importance", pytest.fail)
    for name, value in (("draws", 25), ("n", 5), ("images", 10), ("most", 1)):
        with pytest.raises(pc.errors.InputError, match=f"^{name}: expected at least"):
            check(planted.pair(), particles, **{name: value})


def test_too_few_particles_are_refused(particles):
    with pytest.raises(pc.errors.InputError, match="at least 40"):
        predictive(planted.pair(), particles.take(np.arange(10)))


@pytest.mark.parametrize("flat", [True, False])
def test_more_images_than_memory_holds_are_refused_at_once(flat, monkeypatch):
    if flat:
        some, pair = planted.particles(60), planted.pair()
    else:
        kinase = pc.molecules.AdenylateKinase()
        some = pc.simulate.poses(kinase, n=60, seed=0, box=16, pixel_size=6.0)
        volume = pc.volumes.Atoms.known(kinase, pixel_size=6.0)
        prior = pc.priors.IsotropicNormal(2)
        pair = pc.Pair(prior, volume, 16, guide=pc.guides.GaussNewton(1), rotate=False)
    found = residuals.features(pair, some.batch(np.arange(5)))
    each = sum(values.shape[1] for values in found.values())
    assert residuals.numbers(pair) == each
    held = sys.modules["pyrocryo.diagnose.predictive"]
    monkeypatch.setattr(held, "HELD", 8.0 * each * 50 + 1)
    monkeypatch.setattr(held, "AT_ONCE", 7)  # columns, in parts
    assert predictive(pair, some, most=50).n == 50
    with pytest.raises(pc.InputError, match="most: residuals of 51 images .* at most 50 images"):
        predictive(pair, some, most=51)


# sensitivity


def _conjugate(rng, precision=1.0, x=1.5, draws=4000):
    sd = 1 / math.sqrt(1 + precision)
    z = precision * x * sd**2 + sd * rng.standard_normal(draws)
    return z, -0.5 * z**2, -0.5 * precision * (z - x) ** 2


def test_sensitivity_is_that_of_arviz(rng):
    import arviz as az

    if not hasattr(az, "psens"):
        pytest.skip("ArviZ 1.x has it elsewhere")
    import xarray as xr

    z, prior, likelihood = _conjugate(rng)
    data = az.from_dict(posterior={"z": z[None]}, log_likelihood={"x": likelihood[None]})
    data.add_groups(log_prior=xr.Dataset({"z": (("chain", "draw"), prior[None])}))
    for name, part in (("prior", prior), ("likelihood", likelihood)):
        expected = float(az.psens(data, component=name)["z"])
        found = power_scaled(z[:, None, None], part[:, None])
        assert found[0, 0] == pytest.approx(expected, rel=1e-6)
        assert found[0, 0] > 0.05


@pytest.mark.parametrize(("sd", "told"), [(1.0, "hardly matters"), (40.0, "say little")])
def test_a_noisy_image_leaves_the_prior(sd, told):
    found = pc.diagnose.sensitivity(planted.pair(sd), planted.particles(60, sd=sd))
    assert told in found.sentence
    assert (found.share_prior > 0.9).all() == (sd == 40.0)


# together


@pytest.mark.parametrize("fault", [f for f in planted.FAULTS if "SNR" not in f])
def test_planted_faults_are_caught_and_nothing_else(fault):
    gone_off = set(planted.alarms(fault, seed=5))
    of_guide, of_model = {"gap", "sbc"}, {"predictive"}
    if fault.startswith("none"):
        assert not gone_off
    elif fault.startswith("guide"):
        assert of_guide <= gone_off
        assert not of_model & gone_off
    else:
        assert gone_off == of_model


@pytest.mark.benchmark
def test_rates():
    for fault in planted.FAULTS:
        any_of_them = planted.rates(fault, 10, first=100)[-1]
        assert any_of_them <= 0.1 if fault.startswith("none") else any_of_them >= 0.95


@pytest.fixture(scope="module")
def small(pairs_in_time):
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume=pc.volumes.Grid(hidden=(8,)), box=32)
    some = pairs_in_time.take(np.arange(60))
    fit = pc.fit(pair, some, steps=3, seeds=2)
    return fit, some, pc.diagnose.check(fit, some, n=64, most=40, draws=50)


@pytest.fixture
def _ready(monkeypatch, small):
    fit, some, checked = small
    monkeypatch.setattr("pyrocryo.io.load_fit", lambda folder: (fit, some), raising=False)
    monkeypatch.setattr("pyrocryo.diagnose.check", lambda *data, **numbers: checked)


def test_no_run_is_no_run(tmp_path, capsys):
    assert main(["diagnose", str(tmp_path / "none")]) == 2
    (tmp_path / "file").touch()
    out = ["--out", str(tmp_path / "file")]
    assert main(["diagnose", str(tmp_path / "none"), *out]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err


@pytest.mark.usefixtures("_ready")
def test_a_run_is_diagnosed(tmp_path, small, capsys):
    assert main(["diagnose", str(tmp_path), "--n", "64", "--most", "40", "--draws", "50"]) == 0
    assert "not the model's posterior" in capsys.readouterr().out
    told = json.loads((tmp_path / "diagnose.json").read_text())
    assert not told["passed"]
    assert "sbc" in told["alarms"]
    assert told["sentence"].startswith("The guide is not")
    assert told["seeds"] == [0, 1]
    assert told["particles"] == small[1].spread(40).index.tolist()
    assert np.shape(told["importance"]["khat"]) == (2, 40)
    assert np.shape(told["sbc"]["ranks"]) == (2, 64, 4)
    assert np.shape(told["sensitivity"]["prior"]) == (2, 40, 4)
    assert np.shape(told["predictive"]["variance_map"]) == (2, 32, 32)
    assert len(told["dimensions"]) == 2
    for name in ("khat", "ranks", "coverage", "residuals", "spectrum"):
        written_there = (tmp_path / "figures" / f"diagnose_{name}.png").read_bytes()
        assert written_there[:4] == b"\x89PNG"


@pytest.mark.usefixtures("_ready")
def test_the_page_runs(tmp_path, monkeypatch, small, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "calibrate_and_trust.md").read_text()
    lines = [
        shlex.split(line, comments=True)
        for block in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
        for line in block.splitlines()
    ]
    assert [words[:2] for words in lines] == [["pyrocryo", "diagnose"]]
    assert main(lines[0][1:]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    capsys.readouterr()
    exec(compile(code, "page", "exec"), {"pc": pc, "fit": small[0], "particles": small[1]})
    assert capsys.readouterr().out.startswith("The guide is not")
