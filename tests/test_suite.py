"""Factors of every kind, and the table of all metrics."""

import math
import time

import numpy as np
import pytest

import pyrocryo as pc
from pyrocryo.metrics import (
    circular_linear,
    dci,
    explicitness,
    irs,
    mcc,
    mig,
    modularity,
    sap,
    suite,
)
from pyrocryo.metrics.factors import binned, pair_up
from pyrocryo.rotations import random_in_space


def _turn(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s], [s, c]])


@pytest.fixture(scope="module")
def uniform():
    return np.random.default_rng(1).uniform(-1, 1, (2000, 2))


# the table


def test_suite_agrees_with_single_metrics(uniform):
    f = uniform[:2000]
    codes = np.stack([f @ _turn(10), f @ _turn(30)])
    table = suite(f, codes, sampler=_uniform, encode=lambda f: np.stack([f, f @ _turn(45)]))
    for n, z in enumerate(codes):
        for name, metric in {"mig": mig, "sap": sap, "irs": irs, "mcc_pearson": mcc,
                             "explicitness": explicitness, "r2_knn": _knn}.items():  # fmt: skip
            assert table[name]["per_seed"][n] == pytest.approx(metric(f, z).value), name
        assert table["dci_completeness"]["per_seed"][n] == dci(f, z).completeness.value
    assert table["mcc_pearson"]["rotation_floor"] == mcc(f, f).rotation_floor
    assert table["dci_completeness"]["estimator"] == dci(f, f).estimator
    assert table["betavae"]["per_seed"][0] == table["factorvae"]["per_seed"][0] == 1
    assert table["betavae"]["per_seed"][1] < 0.6


def _knn(f, z):
    return pc.metrics.r2(f, z, kind="knn")


def _uniform(n, fixed, rng):
    factors = rng.uniform(-1, 1, (n, 2))
    for k, value in fixed.items():
        factors[:, k] = value
    return factors


def test_trouble_is_nan_where_it_is(uniform):
    f = uniform[:1000]
    table = suite(f, np.stack([f, 0 * f, np.where(f > 0.9, np.nan, f)]))
    assert not np.isnan([row["per_seed"][0] for row in table.values()]).any()
    assert np.isnan([row["per_seed"][2] for row in table.values()]).all()
    assert np.isnan(table["modularity"]["per_seed"][1])
    assert table["mcc_pearson"]["per_seed"][1] == 0
    few = suite(f[:60], f[:60])  # too few for 20 bins, enough for a correlation
    assert np.isnan(few["mig"]["mean"])
    assert few["mcc_pearson"]["mean"] == pytest.approx(1)
    single = suite(f[:, :1], f)
    assert np.isnan(single["modularity"]["mean"])
    assert single["mig"]["mean"] > 0.8


def test_nothing_is_silently_wrong_on_continuous_factors(uniform):
    """Unbinned, the originals give about 0 for perfect latents, or stop."""
    table = suite(uniform, uniform)
    for name, row in table.items():
        assert row["mean"] > 0.94, name
    nothing = suite(uniform, np.random.default_rng(5).uniform(-1, 1, (2000, 2)))
    for name, row in nothing.items():
        assert row["mean"] < 0.55, name
        if name != "modularity":  # a ratio of noise
            assert row["mean"] == pytest.approx(row["floor"], abs=0.04), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: suite(f, f[0]), "codes: expected"),
        (lambda f: suite(f, f, sampler=_uniform), "give both or neither"),
        (lambda f: mig(f, f, kinds=["linear", "angle"]), "kinds: expected one of linear"),
        (lambda f: mig([f], f), r"block 0 is linear: expected \(N,\)"),
        (lambda f: mig([f[:, 0], f[:5, 0]], f), "blocks of"),
        (lambda f: mig([f[:, 0] * np.inf], f), "block 0: expected finite"),
        (lambda f: mig([0 * f[:, 0]], f), "factor 0 never varies"),
        (lambda f: mig(f[:50], f[:50]), "at least 100 particles, got 50"),
        (lambda f: mig([0.1 + 0.001 * f[:, 0]], f, kinds=["circular"]), "are one class"),
        (lambda f: modularity(f[:, :1], f), "at least 2 factors, got 1"),
        (lambda f: modularity(f, 0 * f), "z: no latent varies"),
        (lambda f: sap(f, f, kind="forest"), "kind: expected 'r2' or 'svm'"),
        (lambda f: dci(f, f, estimator=_ridge()), "has no feature_importances_"),
    ],
)
def test_wrong_input_is_named(uniform, call, message):
    with pytest.raises(pc.InputError, match=message):
        call(uniform + 0.0)


def _ridge():
    from sklearn.linear_model import Ridge

    return Ridge()


def test_frames_stay_together(uniform):
    """Ten frames a molecule with latents that name the molecule: no information beyond it."""
    rng = np.random.default_rng(8)
    names = np.repeat(rng.standard_normal((200, 2)), 10, axis=0)
    factors = np.repeat(rng.standard_normal((200, 2)), 10, axis=0)
    apart, together = (dci(factors, names, frames=n).informativeness.value for n in (1, 10))
    assert apart > 0.5
    assert together < 0.1


# angles and rotations


def test_association_is_the_circular_linear_r(rng):
    angle, z = rng.uniform(-np.pi, np.pi, 2000), rng.standard_normal((2000, 3))
    z[:, 0] += np.cos(angle - 0.7)
    z[:, 2] = 0
    factors, z = pair_up([angle], z, ["circular"])
    np.testing.assert_allclose(factors.association(z)[0], circular_linear(angle, z), atol=1e-9)
    offset, _ = pair_up([angle + 2.5], z, ["circular"])
    np.testing.assert_allclose(offset.association(z), factors.association(z), atol=1e-9)


def test_association_with_a_rotation_knows_no_frame(rng):
    poses = random_in_space((4000,), rng)
    z = np.stack([poses[:, 0, 1] + poses[:, 2, 2], rng.standard_normal(4000)], axis=1)
    factors, z = pair_up([poses], z)
    assert factors.kinds == ("so3",)
    size = factors.association(z)[0]
    assert size[0] == pytest.approx(1)
    assert size[1] < 0.1
    turn = random_in_space((2,), rng)
    other, _ = pair_up([turn[0] @ poses @ turn[1]], z)
    np.testing.assert_allclose(other.association(z)[0], size, atol=1e-9)


@pytest.fixture(scope="module")
def blocks():
    rng = np.random.default_rng(6)
    angle, value = rng.uniform(-np.pi, np.pi, 2000), rng.standard_normal(2000)
    return [value, angle, random_in_space((2000,), rng)], ["linear", "circular", "so3"]


def test_suite_of_blocks(blocks):
    (value, angle, poses), kinds = blocks
    rng = np.random.default_rng(7)
    good = np.stack([value, np.cos(angle + 1), poses[:, 2, 2]], axis=1)
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    mixed = (good / good.std(axis=0)) @ axes
    noise = rng.standard_normal((2000, 3))
    table = suite([value, angle, poses], np.stack([good, mixed, noise]), kinds=kinds)
    assert table["mcc_pearson"]["per_seed"][0] == pytest.approx(1)
    assert "rotation_floor" not in table["mcc_pearson"]
    assert table["dci_disentanglement"]["per_seed"][0] > 0.8
    assert table["modularity"]["per_seed"][0] > 0.97
    for name in ("mcc_pearson", "mcc_spearman", "mig", "modularity", "sap", "dci_completeness"):
        first, second, third = table[name]["per_seed"]
        assert first > second, name
        assert third < 0.5, name
    for name in ("r2_linear", "r2_knn", "dci_informativeness"):
        first, second, third = table[name]["per_seed"]
        assert first == pytest.approx(second, abs=0.05), name
        assert third < 0.02, name
    # a third of R² each: all of the number, half of the angle (its cosine), a ninth of the pose
    assert table["r2_linear"]["per_seed"][0] == pytest.approx((1 + 1 / 2 + 1 / 9) / 3, abs=0.02)


def test_classes_of_angles_and_rotations(blocks):
    factors, _ = pair_up(blocks[0], np.zeros((2000, 1)), blocks[1])
    for classes, count in zip(factors.classes.T, (20, 20, 24), strict=True):
        share = np.bincount(classes, minlength=count) / 2000
        assert len(share) == count
        np.testing.assert_allclose(share, 1 / count, atol=0.02)
    quarter = np.pi / 2 * np.random.default_rng(0).integers(0, 4, 500)
    assert set(pair_up([quarter], np.zeros((500, 1)), ["circular"])[0].classes[:, 0]) == {
        0,
        1,
        2,
        3,
    }


def test_levels_are_taken_as_they_are(rng):
    few = rng.integers(0, 3, 1000) * 0.1
    assert len(np.unique(binned(few))) == 3
    assert len(np.unique(binned(few * (1 + 1e-13 * rng.standard_normal(1000))))) == 3
    assert np.bincount(binned(rng.standard_normal(1000))).tolist() == [50] * 20
    assert binned(np.ones(10)).tolist() == [0] * 10


@pytest.mark.benchmark
@pytest.mark.parametrize("count", [2, 5])
def test_seconds_for_ten_thousand_by_ten(rng, count):
    f = rng.uniform(-1, 1, (10_000, count))
    z = np.hstack(
        [f @ np.linalg.qr(rng.standard_normal((count, count)))[0], rng.standard_normal(f.shape)]
    )[:, :10]
    z = np.hstack([z, rng.standard_normal((10_000, 10 - z.shape[1]))])
    start = time.perf_counter()
    suite(f, z)
    print(f"\n10 000 x 10 latents, {count} factors: {time.perf_counter() - start:.1f} s")


def test_a_latent_that_never_varies_but_for_rounding_is_none(rng):
    factors = rng.uniform(size=(400, 2))
    z = np.full((400, 2), 0.1)
    table = pc.metrics.suite(factors, z)
    for name in ("irs", "modularity", "mig", "sap"):
        value = table[name]["mean"]
        assert np.isnan(value) or value == 0


@pytest.mark.parametrize("frames", [0, 400])
def test_halves_need_two_molecules(rng, frames):
    factors = rng.uniform(size=(400, 2))
    with pytest.raises(pc.InputError, match="two or more molecules"):
        pc.metrics.suite(factors, factors, frames=frames)


def test_no_latents_are_refused(rng):
    with pytest.raises(pc.InputError, match="expected"):
        pc.metrics.mig(rng.uniform(size=(400, 2)), np.empty((400, 0)))


def test_a_tensor_is_an_array(rng):
    torch = pytest.importorskip("torch")
    factors = rng.uniform(size=(400, 2))
    assert pc.metrics.mcc(torch.as_tensor(factors), factors).value == pytest.approx(1)


def test_classes_of_rotations_and_angles_need_enough_particles(rng):
    from scipy.spatial.transform import Rotation

    rotations = Rotation.random(60, random_state=0).as_matrix()
    z = rng.standard_normal((60, 2))
    with pytest.raises(pc.InputError, match="24 bins need at least 120"):
        _ = pair_up([rotations], z)[0].classes
    with pytest.raises(pc.InputError, match="20 bins need at least 100"):
        _ = pair_up([rng.uniform(size=60)], z, ["circular"])[0].classes


def test_a_seed_that_diverges_late_has_no_factorvae(rng):
    drawn = []

    def encode(factors):
        drawn.append(factors)
        z = np.stack([factors, factors])
        if len(drawn) > 3:
            z[1, 0] = np.nan
        return z

    def sampler(n, fixed, rng):
        z = rng.standard_normal((n, 2))
        for k, values in fixed.items():
            z[:, k] = values
        return z

    good, bad = pc.metrics.factorvae(sampler, encode, points=(100, 100), pool=20)
    assert good.value == pytest.approx(1)
    assert np.isnan(bad.value)


def test_models_are_ordered_over_the_seeds_that_all_have(rng):
    base = rng.uniform(0.5, 0.6, 12)
    worse = base - 0.05
    worse[base < np.median(base)] = np.nan  # it lost the hard seeds
    ranks = pc.metrics.rank_groups({"better": {"sap": base}, "worse": {"sap": worse}})
    assert ranks.groups["sap"][0][0] == "better"


def test_what_is_not_defined_is_told_once_and_the_floor_is_of_a_seed_that_lives(rng, caplog):
    factors = rng.uniform(size=(400, 2))
    table = suite(factors, np.stack([np.zeros((400, 2)), np.zeros((400, 2)), factors]))
    assert table["irs"]["per_seed"][2] > 0.9
    assert np.isfinite(table["irs"]["floor"])
    assert caplog.text.count("irs is not defined everywhere: z: no latent varies") == 1


def test_too_few_particles_for_classes_leave_the_other_metrics(rng, caplog):
    factors = rng.uniform(size=(60, 2))
    table = suite(factors, factors)
    assert table["mcc_pearson"]["mean"] == pytest.approx(1)
    assert np.isnan(table["mig"]["mean"])
    assert "mig is not defined everywhere: factors and z: 20 bins need" in caplog.text
