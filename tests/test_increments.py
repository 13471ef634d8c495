import json
import math
import re

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyrocryo as pc
from pyrocryo.identify import increments, inferred
from pyrocryo.to_arviz import to_arviz

DRAW = {
    "laplace": lambda rng, size: rng.laplace(size=size),
    "gaussian": lambda rng, size: rng.normal(size=size),
    "student": lambda rng, size: rng.standard_t(10, size=size),
    "jumps": lambda rng, size: rng.normal(size=size) * np.where(rng.random(size) < 0.1, 1, 0.2),
    "flat": lambda rng, size: rng.uniform(-1, 1, size=size),
}


def _walk(rng, kind, n=1500, frames=6, dim=2):
    return DRAW[kind](rng, (n, frames, dim)).cumsum(axis=1)


@pytest.mark.parametrize(
    ("kind", "kurtosis", "shape", "reading"),
    [
        ("laplace", 3.0, 1.0, r"Sparse \(α = (0.9|1.0).*a Laplace transition fits"),
        ("gaussian", 0.0, 2.0, "Gaussian within error .* identify no axes"),
        ("student", 1.0, None, "Sparse .*between Laplace and Gaussian"),
        ("jumps", 12.98, None, "Sparse .*heavier tails than that: a Student-t or jump"),
        ("flat", -1.2, None, "Lighter-tailed than Gaussian"),
    ],
)
def test_known_steps(rng, kind, kurtosis, shape, reading):
    result = increments(_walk(rng, kind))
    assert result.lags == (1, 2, 4)
    assert list(result.count) == [7500, 6000, 3000]
    assert (np.abs(result.kurtosis[0] - kurtosis) < 4 * result.kurtosis_se[0] + 0.02).all()
    if shape is not None:
        assert (np.abs(result.shape[0] - shape) < 4 * result.shape_se[0]).all()
        assert (result.shape_se[0] < 0.08).all()
        # a sum of l independent steps has 1/l of their excess kurtosis
        rest = result.kurtosis[1:] - kurtosis / np.array([[2], [4]])
        assert (np.abs(rest) < 4 * result.kurtosis_se[1:]).all()
    assert re.match(reading, result.sentence)
    assert result.gaussian == (kind == "gaussian")
    assert not result.dependent


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("noise", [0.0, 0.5, 1.5])
def test_the_shape_is_found_through_noise(rng, alpha, noise):
    steps = stats.gennorm.rvs(alpha, size=(3000, 3, 1), random_state=1)
    z = 0.3 * steps.cumsum(axis=1)
    size = 0.3 * stats.gennorm.std(alpha)
    blurred = z + noise * size / math.sqrt(2) * rng.normal(size=z.shape)
    result = increments(blurred, sd=noise * size / math.sqrt(2), lags=(1,))
    assert abs(result.shape[0, 0] - alpha) < 4 * result.shape_se[0, 0] < 2.5
    known = stats.gennorm.stats(alpha, moments="k")
    assert abs(result.kurtosis[0, 0] - known) < 4 * result.kurtosis_se[0, 0]
    assert result.sd[0, 0] == pytest.approx(size, rel=0.1)
    assert result.scale[0, 0] == pytest.approx(0.3, rel=0.25 * (1 + noise))
    if noise:
        assert increments(blurred, lags=(1,)).kurtosis[0, 0] < result.kurtosis[0, 0]


def test_noise_that_differs_from_step_to_step_is_no_kurtosis(rng):
    z = _walk(rng, "gaussian")
    sd = rng.choice([0.2, 2.0], size=z.shape)
    z = z + sd * rng.normal(size=z.shape)
    assert not increments(z, lags=(1,)).kurtosis.min() < 0.3
    result = increments(z, sd=sd, lags=(1,))
    assert (np.abs(result.kurtosis) < 4 * result.kurtosis_se).all()


@pytest.mark.parametrize(("kind", "shape"), [("gaussian", 2.0), ("laplace", 1.0)])
def test_molecules_seen_unequally_well(rng, kind, shape):
    z, noise = _walk(rng, kind, n=3000, frames=3), rng.choice([0.5, 1.0], size=(3000, 1, 1))
    result = increments(z + noise * rng.normal(size=z.shape), sd=noise, lags=(1,))
    assert (np.abs(result.shape[0] - shape) < 4 * result.shape_se[0]).all()
    assert (result.shape_se[0] < 0.3).all()
    assert result.gaussian == (kind == "gaussian")
    # posterior means are drawn to the prior's unequally, too
    result = inferred(_post(rng, z, noise), lags=(1,))
    assert (np.abs(result.shape[0] - shape) < 4 * result.shape_se[0]).all()
    assert result.gaussian == (kind == "gaussian")


def test_sizes_are_not_judged_through_uneven_noise(rng):
    z, noise = _walk(rng, "gaussian"), rng.choice([0.2, 2.0], size=(1500, 1, 1))
    result = increments(z + noise * rng.normal(size=z.shape), sd=noise, lags=(1,))
    assert result.magnitude[0, 0, 1] > 0.15
    assert not result.dependent
    assert "too uneven to tell if sizes of steps are dependent" in result.sentence


@pytest.mark.parametrize("n", [60, 100])
def test_few_laplace_steps_through_noise_are_not_gaussian(rng, n):
    for _ in range(10):
        z = _walk(rng, "laplace", n=n, frames=2)
        result = increments(z + rng.normal(size=z.shape), sd=1.0, lags=(1,))
        assert not result.gaussian
        assert "Gaussian within" not in result.sentence


def _wells(rng, n, dim=2):
    """Independent draws from two wells, 2 apart, one of them rare."""
    size = (n, 2, dim)
    return np.where(rng.random(size) < 0.19, 1.0, -1.0) + 0.2 * rng.normal(size=size)


def test_steps_of_several_peaks_are_not_sparse(rng):
    result = increments(_wells(rng, 3000))
    assert (result.shape[0] + 3 * result.shape_se[0] < 1.75).all()
    assert (np.abs(result.kurtosis[0]) < 0.5).all()
    assert "disagree): no sparse transition fits" in result.sentence
    assert "a Laplace" not in result.sentence
    assert not result.gaussian


def test_errors_of_a_shape_that_does_not_fit(rng):
    found = []
    for _ in range(80):
        result = increments(_wells(rng, 400, dim=1))
        found.append((result.shape[0, 0], result.shape_se[0, 0]))
    shape, error = np.array(found).T
    assert np.median(error) == pytest.approx(shape.std(), rel=0.25)
    flat = increments(_walk(rng, "flat"), lags=(1,))
    assert (flat.shape[0] > 7.5).all()
    assert np.isnan(flat.shape_se).all()


def test_standard_errors_are_honest(rng):
    found = []
    for _ in range(60):
        result = increments(_walk(rng, "laplace", n=300, frames=5, dim=1), lags=(2,))
        found.append((result.shape[0, 0], result.shape_se[0, 0]))
    shape, error = np.array(found).T
    # steps at lag 2 overlap: taken as independent their errors would be too small
    assert error.mean() == pytest.approx(shape.std(), rel=0.3)


def test_components_that_jump_together_are_told(rng):
    size = np.sqrt(rng.gamma(1.0, size=(1500, 6, 1)))
    z = (size * rng.normal(size=(1500, 6, 3)) * [1, 1, 0]).cumsum(axis=1)
    z[..., 2] = rng.laplace(size=(1500, 6)).cumsum(axis=1)
    result = increments(z)
    assert result.dependent
    assert abs(result.correlation[0, 0, 1]) < 4 * result.correlation_se[0, 0, 1]
    # of |a| sqrt(g), |b| sqrt(g), g exponential: (1 - pi / 4) (2 / pi) / (1 - 1 / 2)
    assert result.magnitude[0, 0, 1] == pytest.approx((1 - math.pi / 4) * 4 / math.pi, abs=0.04)
    assert "(1 and 2 correlate by" in result.sentence
    linear = _walk(rng, "laplace")
    linear[..., 1] += 0.5 * linear[..., 0]
    assert increments(linear).dependent


def test_some_components_may_be_gaussian(rng):
    sparse, plain = _walk(rng, "laplace", dim=1), _walk(rng, "gaussian", dim=2)
    result = increments(np.concatenate([sparse, plain], axis=-1))
    assert not result.gaussian
    assert "Sparse in 1 of 3" in result.sentence
    assert "turned among themselves at no cost" in result.sentence


def test_a_component_that_stands_still(rng):
    z = _walk(rng, "laplace")
    z[..., 1] = 0.1 * rng.normal(size=z.shape[:2])
    result = increments(z, sd=(0.0, 0.1))
    assert np.isnan(result.kurtosis[0, 1]) or result.sd[0, 1] < 0.03
    z[..., 1] = 0
    result = increments(z)
    assert np.isnan(result.shape[0, 1])
    assert "component 2 does not move beyond its noise" in result.sentence
    result = increments(0 * z)
    assert result.sentence == "Nothing moves beyond its noise."
    assert not result.gaussian


def test_diffusion_is_sparse_only_at_the_lag_of_its_hops():
    """Overdamped Langevin in a double well: no short step tells an axis."""
    rng = np.random.default_rng(1)
    z, kept, dt = rng.choice([-1.0, 1.0], size=(600, 2)), [], 0.005
    for n in range(2400):  # 8 (z^2 - 1)^2 / 4 kT, so wells 2 kT deep
        z = z - 8 * z * (z**2 - 1) * dt + math.sqrt(2 * dt) * rng.normal(size=z.shape)
        if n >= 800 and n % 4 == 3:
            kept.append(z)
    result = increments(np.stack(kept, axis=1), lags=(1, 25, 200))
    assert result.gaussian
    assert "these increments alone identify no axes" in result.sentence
    assert "sparser at a lag of 25" in result.sentence
    assert result.kurtosis[1].min() > 1 > 0.3 > result.kurtosis[2].max()


def test_one_long_trajectory_is_enough(rng):
    result = increments(_walk(rng, "laplace", n=1, frames=8000))
    assert (np.abs(result.shape[0] - 1) < 4 * result.shape_se[0]).all()


def test_too_few_steps_to_tell(rng):
    assert "Too few steps" in increments(_walk(rng, "gaussian", n=60, frames=2)).sentence


def test_unequal_intervals(rng):
    time = rng.choice([1.0, 3.0], size=(1500, 8), p=[0.8, 0.2]).cumsum(axis=1)
    wait = np.diff(time, axis=1, prepend=time[:, :1] - 1)
    z = (np.sqrt(wait)[..., None] * rng.normal(size=(1500, 8, 2))).cumsum(axis=1)
    assert not increments(z, lags=(1,)).gaussian  # a mixture of short and long steps
    result = increments(z, lags=(1, 3), time=time)
    assert result.gaussian
    assert result.sd**2 == pytest.approx(np.array([[1, 1], [3, 3]]), rel=0.1)
    assert result.count[0] == (np.diff(time, axis=1) == 1).sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.zeros((9, 2))}, r"z: expected trajectories \(N, T, K\).* got shape \(9, 2\)"),
        ({"z": np.zeros((9, 1, 2))}, r"T >= 2"),
        ({"z": np.full((9, 9, 2), np.nan)}, "z: expected finite numbers"),
        ({"z": np.zeros((9, 3, 2))}, "z: fewer than 50 steps"),
        ({"lags": (0,)}, "lags: expected positive"),
        ({"lags": (1.7,)}, r"lags: expected positive whole numbers of frames, got \(1.7,\)"),
        ({"lags": (99,)}, "z: fewer than 50 steps at lags"),
        ({"sd": (1, 2, 3)}, r"sd: expected a number, \(2,\)"),
        ({"sd": -1}, "sd: expected standard deviations"),
        ({"time": np.zeros(4)}, r"time: expected shape \(100, 3\), got \(4,\)"),
        ({"time": np.zeros(3)}, "time: expected times that grow"),
    ],
)
def test_wrong_input_is_named(rng, change, message):
    with pytest.raises(pc.InputError, match=message):
        increments(**({"z": rng.normal(size=(100, 3, 2))} | change))


def _post(rng, z, noise=0.4, chains=2):
    """Posterior of z seen through noise, under a normal prior as wide as z."""
    share = z.var() / (z.var() + noise**2)
    draws = []
    for _ in range(chains):
        mean = share * (z + noise * rng.normal(size=z.shape))
        draws.append(mean + np.sqrt(share) * noise * rng.normal(size=(30, *z.shape)))
    dims = {"z": ["particle", "frame", "latent"]}
    return to_arviz({"posterior": {"z": np.stack(draws)}}, dims=dims)


def test_steps_of_posterior_means(rng):
    z = 0.4 * _walk(rng, "laplace", n=3000, frames=2)
    post = _post(rng, z)
    result, raw = inferred(post), inferred(post, noisy=False)
    assert result.lags == (1,)
    assert (np.abs(result.shape[0] - 1) < 4 * result.shape_se[0]).all()
    assert (raw.shape[0] > result.shape[0] + 0.2).all()
    assert (np.abs(result.kurtosis - 3) < 4 * result.kurtosis_se).all()
    flat = to_arviz({"posterior": {"z": np.zeros((1, 3, 9, 2))}}, dims={"z": ["particle", "k"]})
    with pytest.raises(pc.InputError, match="no frames, so nothing moves"):
        inferred(flat)


def test_report_objects_to_a_prior_that_the_steps_contradict(rng, pairs_in_time):
    pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), pairs_in_time.box)
    fit = pc.fit(pair, pairs_in_time, steps=2, seeds=2)
    half = stats.gennorm.rvs(1.5, size=(2000, 2, 2), random_state=0).cumsum(axis=1)
    verdict = pc.identify.report(fit, _post(rng, half))
    assert verdict["increments"]["less_sparse"]
    assert not verdict["increments"]["contradicts_prior"]
    assert re.search(r"less sparse than Lap.*α = 1\.\d+ against (0\.9|1\.0)", verdict["sentence"])
    for kind, contradicts in (("gaussian", True), ("laplace", False)):
        post = _post(rng, 0.4 * _walk(rng, kind, n=2000, frames=2), noise=0.2)
        verdict = pc.identify.report(fit, post)
        moves = verdict["increments"]
        assert moves["contradicts_prior"] == moves["less_sparse"] == contradicts
        assert ("not sparse as Laplace" in verdict["sentence"]) == contradicts
        assert moves["prior_shape"] == pytest.approx([1, 1], abs=0.15)
        assert np.shape(moves["kurtosis"]) == np.shape(moves["shape_se"]) == (2, 2)
        assert len(moves["sentences"]) == 2
        json.dumps(verdict, allow_nan=False)
    still = pc.identify.report(fit, _post(rng, np.zeros((100, 2, 2))))["increments"]
    assert "Nothing moves" in still["sentences"][0]
    assert not still["contradicts_prior"] | still["less_sparse"]
    few = pc.posterior(fit, pairs_in_time.test.take([0, 1]), draws=4)
    assert pc.identify.report(fit, few)["increments"] is None


def test_histogram_of_steps(rng):
    figure = pc.plots.increments(rng.laplace(size=(500, 3)), "steps")
    assert len(figure.axes) == 3
    assert pc.plots.increments(np.zeros((50, 1)), "none").axes


def test_report_draws_the_prior_at_the_times_it_asks_for(rng, pairs_in_time):
    def drifting(time):
        return dist.Laplace(0.0, time[..., None] + torch.ones(2)).to_event(2)

    pair = pc.Pair(drifting, pc.volumes.Grid(), pairs_in_time.box, dim=2)
    fit = pc.fit(pair, pairs_in_time, steps=2)
    moves = pc.identify.report(fit, _post(rng, _walk(rng, "laplace", frames=2)))["increments"]
    # a step of scales 1 and 2: variances 2 and 8, fourth cumulants 12 and 192
    assert moves["prior_kurtosis"] == pytest.approx([204 / 100] * 2, abs=0.6)
    assert not moves["less_sparse"]
