import math

import numpy as np
import pytest
from scipy.stats import ortho_group

import pyrocryo as pc
from pyrocryo.metrics import fsc, image_correlation, mcc, r2, resolution, rotation_angle
from pyrocryo.metrics.mcc import whitened

N = 20_000


def _turn(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s], [s, c]])


@pytest.fixture
def factors(rng):
    return rng.standard_normal((N, 2))


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_mcc_is_blind_to_order_sign_and_scale(rng, kind, dim):
    factors = rng.standard_normal((500, dim))
    z = factors[:, rng.permutation(dim)] * rng.choice([-3, 0.1, 7], dim) + 5
    assert mcc(factors, z, kind=kind).value == pytest.approx(1)


@pytest.mark.parametrize("degrees", [0, 10, 22.5, 45, 70])
def test_mcc_after_a_rotation(factors, degrees):
    expected = max(abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees))))
    assert mcc(factors, factors @ _turn(degrees)).value == pytest.approx(expected, abs=0.01)


def test_spearman_of_gaussian_factors_at_45_degrees(factors):
    """(6 / π) asin(½ cos 45°) = .6902."""
    value = mcc(factors, factors @ _turn(45), kind="spearman").value
    assert value == pytest.approx(0.6902, abs=0.015)


def test_monotone_maps_touch_pearson_only(rng):
    factors = rng.uniform(-1, 1, (N, 2))
    assert mcc(factors, factors**3).value == pytest.approx(0.918, abs=0.005)
    assert mcc(factors, factors**3, kind="spearman").value == pytest.approx(1)


@pytest.mark.parametrize(("dim", "expected"), [(2, 2 * math.sqrt(2) / math.pi), (3, 0.829),
                                               (4, 0.774), (5, 0.7295), (10, 0.593)])  # fmt: skip
def test_the_rotation_floor_is_that_of_random_orthogonal_mixing(rng, dim, expected):
    factors = rng.standard_normal((300, dim))
    floor = mcc(factors, factors).rotation_floor
    assert floor == pytest.approx(expected, abs=0.012)


def test_the_rotation_floor_holds_for_actual_rotations(rng):
    factors = rng.standard_normal((2000, 4))
    actual = [
        mcc(factors, whitened(factors) @ q).value
        for q in ortho_group.rvs(4, size=40, random_state=0)
    ]
    assert mcc(factors, factors).rotation_floor == pytest.approx(np.mean(actual), abs=0.03)
    spearman = mcc(factors, factors, kind="spearman").rotation_floor
    assert 0.6 < spearman < mcc(factors, factors).rotation_floor


def test_permuted_columns_score_near_nothing(factors):
    score = mcc(factors, factors)
    assert score.floor < 0.03
    assert r2(factors, factors).floor < 0.01


def test_rectangular_assignment(factors, rng):
    noise = rng.standard_normal((N, 3))
    assert mcc(factors, np.hstack([noise, factors])).value == pytest.approx(1)
    assert mcc(factors, factors[:, :1]).value == pytest.approx(0.5)
    assert mcc(factors, np.zeros((N, 2))).value == 0


@pytest.mark.parametrize("degrees", [0, 5, 30, 44, 60, 90])
def test_angle_folds_to_half_a_quarter_turn(factors, degrees):
    z = factors @ _turn(degrees) * [2, 0.5] if degrees in (0, 90) else factors @ _turn(degrees)
    folded = min(degrees % 90, 90 - degrees % 90)
    assert rotation_angle(factors, z[:, ::-1]).value == pytest.approx(folded, abs=0.7)
    assert rotation_angle(factors, -z).value == pytest.approx(folded, abs=0.7)


def test_mean_angle_of_a_random_rotation(factors):
    assert rotation_angle(factors, factors).floor == pytest.approx(22.5, abs=1.0)


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_r2_is_blind_to_rotations(factors, kind):
    factors = factors[:4000]
    assert r2(factors, factors @ _turn(37), kind=kind).value > 0.98


def test_r2_sees_warps_as_it_should(rng):
    """Linear R² of exp(2 f) is corr(f, exp(2 f))² = 4 / (e⁴ - 1) for a normal f; kNN reads it."""
    factors = rng.standard_normal((N, 1))
    assert r2(factors, np.exp(2 * factors)).value < 0.3
    assert r2(factors, np.exp(2 * factors), kind="knn").value > 0.98


def test_r2_is_held_out(rng):
    """Noise in as many columns as half the particles explains nothing on the other half."""
    assert r2(rng.standard_normal((100, 2)), rng.standard_normal((100, 40))).value < 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: mcc(f, f[:5]), "factors and z: expected"),
        (lambda f: mcc(f, f, kind="kendall"), "kind: expected 'pearson'"),
        (lambda f: r2(f, f, kind="quartic"), "kind: expected 'linear'"),
        (lambda f: mcc(0 * f, f), "factor 0 never varies"),
        (lambda f: mcc(f, f * np.nan), "z: expected finite"),
        (lambda f: rotation_angle(f, f[:, :1]), "as many latents as factors"),
        (lambda f: rotation_angle(f, f * [1, 0]), "a latent never varies"),
        (lambda f: fsc(f, f), "fsc: expected two maps"),
    ],
)
def test_wrong_input_is_named(factors, call, message):
    with pytest.raises(pc.InputError, match=message):
        call(factors)


def test_fsc_of_known_maps(rng):
    a, b = rng.standard_normal((2, 24, 24, 24))
    np.testing.assert_allclose(fsc(a, a), 1)
    np.testing.assert_allclose(fsc(a, -2 * a), -1)
    assert np.abs(fsc(a, b)[6:]).max() < 0.15
    half = fsc(a, a + b)[6:]  # signal and noise of the same power: 1 / sqrt(2)
    assert half.mean() == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_resolution_is_where_the_curve_falls():
    curve = np.array([1, 1, 0.9, 0.7, 0.4, 0.1, 0.0])
    assert resolution(curve, voxel_size=2.0) == pytest.approx(12 * 2.0 / 4)
    assert resolution(np.ones(7), voxel_size=2.0) == pytest.approx(4.0)


def test_image_correlation(rng):
    a, b = rng.standard_normal((2, 50, 16, 16))
    assert image_correlation(a, 3 * a + 2) == pytest.approx(1)
    assert image_correlation(a, a + b) == pytest.approx(math.sqrt(0.5), abs=0.02)


def _posterior(truth, z, **constant):
    from pyrocryo.to_arviz import to_arviz

    z = np.asarray(z)
    groups = {
        "posterior": {"z": z},
        "log_likelihood": {"x": np.full(z.shape[:3], -5.0)},
        "sample_stats": {"log_prior": np.full(z.shape[:3], -2.0), "log_q": np.ones(z.shape[:3])},
        "constant_data": {"truth": truth, **constant} if truth is not None else {},
    }
    dims = {name: ["particle"] for name in ("x", "log_prior", "log_q", "temperature")}
    return to_arviz(groups, dims=dims | {"z": ["particle", "l"], "truth": ["particle", "f"]})


def test_report_over_seeds(rng):
    truth = rng.standard_normal((400, 2))
    noise = 0.01 * rng.standard_normal((2, 30, 400, 2))
    post = _posterior(truth, np.stack([truth, truth @ _turn(45)])[:, None] + noise)
    table = pc.metrics.report(post)
    assert table["elbo"]["per_seed"] == [-8.0, -8.0]
    assert table["elbo"]["floor"] is None
    assert table["mcc_pearson"]["per_seed"] == pytest.approx([1, 0.707], abs=0.05)
    assert table["mcc_pearson"]["mean"] == pytest.approx(0.85, abs=0.03)
    assert table["mcc_pearson"]["rotation_floor"] == pytest.approx(0.9, abs=0.02)
    assert table["angle_deg"]["per_seed"] == pytest.approx([0, 45], abs=3)
    assert min(table["r2_linear"]["per_seed"]) > 0.99
    suite = pc.metrics.suite(truth, np.asarray(post["posterior"]["z"]).mean(axis=1))
    assert suite == {name: table[name] for name in suite}
    assert set(table) == {"elbo", "r2_cubic", "angle_deg"} | set(suite)
    assert table["mig"]["per_seed"][1] < 0.1 < table["mig"]["per_seed"][0]


def test_figure_of_all_metrics(rng):
    truth = rng.standard_normal((400, 2))
    table = pc.metrics.suite(truth, np.stack([truth, truth @ _turn(45)]))
    dead = pc.metrics.suite(truth, np.stack([truth, 0 * truth]))
    axes = pc.plots.metrics({"one": table, "other": dead}).axes[0]
    assert len(axes.get_xticks()) == len(table)
    dots = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "."]
    assert len(dots) == 2 * len(table)
    assert pc.plots.metrics(table).axes[0].get_ylabel() == "score"


def test_report_scores_the_warmest_particles(rng):
    truth = rng.standard_normal((400, 2))
    kelvin = np.where(np.arange(400) < 200, 300.0, 100.0)
    z = np.where(kelvin[:, None] > 200, truth, rng.standard_normal((400, 2)))
    table = pc.metrics.report(_posterior(truth, z[None, None], temperature=kelvin))
    assert table["mcc_pearson"]["mean"] == pytest.approx(1)


def test_report_without_truth_and_with_a_dead_latent(rng):
    truth = rng.standard_normal((100, 2))
    dead = np.stack([truth[:, 0], np.zeros(100)], axis=-1)[None, None]
    assert set(pc.metrics.report(_posterior(None, dead))) == {"elbo"}
    table = pc.metrics.report(_posterior(truth, dead))
    assert np.isnan(table["angle_deg"]["mean"])
    assert table["mcc_pearson"]["mean"] == pytest.approx(0.5)


@pytest.mark.parametrize("broken", ["constant", "nan", "few"])
def test_report_goes_on_with_a_truth_that_nothing_can_be_scored_against(rng, broken):
    truth = rng.standard_normal((3 if broken == "few" else 100, 2))
    if broken != "few":
        truth[:, 1] = 1.0 if broken == "constant" else np.nan
    z = rng.standard_normal((2, 3, len(truth), 2))
    table = pc.metrics.report(_posterior(truth, z))
    assert table["elbo"]["mean"] == -8.0
    for name in ("mcc_pearson", "dci_completeness", "irs", "r2_cubic", "angle_deg"):
        assert np.isnan(table[name]["per_seed"]).all()
        assert len(table[name]["per_seed"]) == 2


def test_figure_draws_no_mean_without_all_seeds_and_marks_what_is_below():
    rows = {"mig": {"per_seed": [0.5, np.nan], "floor": None}}
    rows["r2_linear"] = {"per_seed": [0.9, -3.0], "floor": None}
    axes = pc.plots.metrics(rows).axes[0]
    assert len(axes.collections) == 1  # the mean of R²
    (mark,) = [line for line in axes.lines if line.get_marker() == "v"]
    assert -0.15 < mark.get_ydata()[0] < -0.1
    with pytest.raises(pc.InputError, match="got none"):
        pc.plots.metrics({})


# poses


@pytest.fixture
def poses(rng):
    """True angles, true conformations, and what a model gives: its own frame, turned with z."""
    n = 2000
    true, z = rng.uniform(-np.pi, np.pi, n), rng.standard_normal((n, 2))
    alpha = 0.2 * z[:, 0] + 0.1 * z[:, 1] ** 2
    return true, z, true + 1.3 + alpha + 0.01 * rng.standard_normal(n)


def test_pose_errors_up_to_gauge_and_frame(poses):
    true, z, inferred = poses
    globally = np.median(pc.metrics.pose_errors(true, inferred))
    framed = np.median(pc.metrics.pose_errors(true, inferred, z))
    assert 5 < globally < 15
    assert framed == pytest.approx(np.rad2deg(0.01 * 0.6745), rel=0.1)
    mirrored = pc.metrics.pose_errors(true, -inferred, z)
    assert np.median(mirrored) == pytest.approx(framed, rel=1e-6)
    assert len(mirrored) == 1000


def test_random_poses_are_ninety_degrees_off(rng):
    a, b = rng.uniform(-np.pi, np.pi, (2, 20_000))
    errors = pc.metrics.pose_errors(a, b, rng.standard_normal((20_000, 2)))
    assert np.median(errors) == pytest.approx(90, abs=3)
    assert (errors > 90).mean() == pytest.approx(0.5, abs=0.03)


def test_pose_leak(poses, rng):
    true, z, _ = poses
    assert pc.metrics.pose_leak(true, z).value < 0.01
    leaky = z + np.stack([np.cos(2 * true), np.zeros_like(true)], axis=1) * np.sqrt(2)
    assert pc.metrics.pose_leak(true, leaky).value == pytest.approx(0.25, abs=0.03)
    assert pc.metrics.pose_leak(true, leaky).floor < 0.01
    with pytest.raises(pc.InputError, match="no latent varies"):
        pc.metrics.pose_leak(true, 0 * z)
    with pytest.raises(pc.InputError, match=r"angles: expected two arrays \(N,\)"):
        pc.metrics.pose_errors(true, true[:5])


def test_angles_of_rotations_about_the_beam(rng):
    angle = rng.uniform(-np.pi, np.pi, 7)
    np.testing.assert_allclose(pc.metrics.in_plane_angle(pc.rotations.in_plane(angle)), angle)
    assert pc.metrics.in_plane_angle(pc.rotations.random_in_space((7,), rng)) is None


def test_a_warp_is_cubic_but_not_linear(rng):
    factors = rng.standard_normal((2000, 2))
    z = np.sinh(1.2 * factors)
    assert r2(factors, z).value < 0.85
    assert r2(z**0 + np.sinh(factors), factors, kind="cubic").value > 0.97


def test_pose_correlation_knows_neither_offset_nor_sign(rng):
    angle = rng.uniform(-np.pi, np.pi, 4000)
    for other in (angle + 1.2, 0.4 - angle):
        assert pc.metrics.pose_correlation(angle, other) == pytest.approx(1)
    assert pc.metrics.pose_correlation(angle, rng.permutation(angle)) < 0.05
    within = np.deg2rad(60) * rng.uniform(-1, 1, (2, 20000))
    expected = (np.sin(np.pi / 3) / (np.pi / 3)) ** 2
    assert pc.metrics.pose_correlation(*within) == pytest.approx(expected, abs=0.01)


def test_circular_linear_is_the_r_of_the_regression(rng):
    angle = rng.uniform(-np.pi, np.pi, 2000)
    noise = rng.standard_normal(2000)
    z = np.stack([np.cos(angle - 0.7), np.sin(angle) + noise, noise, np.zeros(2000)], axis=1)
    waves = np.stack([np.ones(2000), np.cos(angle), np.sin(angle)], axis=1)
    left = z - waves @ np.linalg.lstsq(waves, z, rcond=None)[0]
    expected = np.sqrt(1 - left[:, :3].var(axis=0) / z[:, :3].var(axis=0))
    found = pc.metrics.circular_linear(angle, z)
    np.testing.assert_allclose(found[:3], expected, atol=1e-6)
    assert found[3] == 0


def test_mcc_with_the_pose_among_the_factors(rng):
    angle, factors = rng.uniform(-np.pi, np.pi, 4000), rng.standard_normal((4000, 2))
    best = pc.metrics.mcc_with_pose(angle, angle + 1, factors, factors[:, ::-1])
    assert best.value == pytest.approx(1)
    assert best.floor < 0.1
    half = np.sqrt(0.5) * np.array([[1, 1], [1, -1]])
    turned = pc.metrics.mcc_with_pose(angle, angle, factors, factors @ half)
    assert turned.value == pytest.approx((1 + 2 * np.sqrt(0.5)) / 3, abs=0.02)
    # a latent that is the pose counts as it, where the pose latent is one of the factors
    swapped = pc.metrics.mcc_with_pose(
        angle,
        2 * np.arctan(factors[:, 0]),
        factors,
        np.stack([np.cos(angle), factors[:, 1]], axis=1),
    )
    assert swapped.value > 0.8
