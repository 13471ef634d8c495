import math

import numpy as np
import pytest

import pyrocryo as pc
from pyrocryo.metrics import paired_differences, rank_groups


def test_paired_differences_of_known_numbers():
    a, b = np.array([0.9, 0.8, 0.7, 0.95, 0.6]), np.array([0.8, 0.8, 0.75, 0.7, 0.5])
    found = paired_differences(a, b)
    difference = a - b
    assert found.mean == pytest.approx(difference.mean())
    half = 2.776445 * difference.std(ddof=1) / math.sqrt(5)  # t(.975, 4)
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), abs=1e-6)
    assert (found.wins_a, found.wins_b, found.seeds) == (3, 1, 5)
    assert found.bootstrap[0] < found.mean < found.bootstrap[1]
    assert paired_differences(b, a).mean == -found.mean


def test_intervals_cover_as_often_as_they_say(rng):
    draws = [paired_differences(*rng.normal([[0.3], [0]], 1, (2, 30))) for _ in range(200)]
    for name in ("interval", "bootstrap"):
        low, high = np.array([getattr(d, name) for d in draws]).T
        assert 0.89 < ((low < 0.3) & (high > 0.3)).mean() < 0.99


def test_pairs_with_nan_are_left_out_and_equal_models_do_not_differ():
    found = paired_differences([1, 2, np.nan, 4], [0, 1, 2, np.nan])
    assert (found.seeds, found.mean, found.sd) == (2, 1, 0)
    assert paired_differences([1, 2, 3], [1, 2, 3]).p == 1
    with pytest.raises(pc.InputError, match="expected the same seeds"):
        paired_differences([1, 2], [1, 2, 3])
    with pytest.raises(pc.InputError, match="at least 2 seeds with finite values, got 1"):
        paired_differences([1, 2], [1, np.nan])


@pytest.fixture
def models(rng):
    """Two models that do not differ, one that is worse; the angle is better when small."""
    seeds = 20
    base = rng.normal(0, 0.05, seeds)
    up = {n: 0.9 + base + rng.normal(0, 0.02, seeds) for n in ("slow", "fast")}
    return {
        "plain": {"mcc": 0.6 + base, "angle_deg": 30 + 10 * base, "mig": np.full(seeds, np.nan)},
        "slow": {"mcc": up["slow"], "angle_deg": 2 + 10 * base, "mig": base},
        "fast": {"mcc": up["fast"], "angle_deg": 5 + 10 * base, "mig": base},
    }


@pytest.mark.parametrize("paired", [True, False])
def test_groups(models, paired):
    found = rank_groups(models, paired=paired)
    assert [sorted(group) for group in found.groups["mcc"]] == [["fast", "slow"], ["plain"]]
    assert found.ranks["mcc"] == {"slow": 1.5, "fast": 1.5, "plain": 3}
    assert found.ranks["angle_deg"] == {"slow": 1, "fast": 2, "plain": 3}
    assert found.mean_rank == {"plain": 3, "slow": 1.25, "fast": 1.75}
    assert "mig" not in found.ranks  # NaN for one of them
    assert found.p["mcc"]["plain", "slow"] < 0.001


def test_holm(models):
    """Three pairs: the smallest p is tripled, the next doubled."""
    from scipy.stats import wilcoxon

    found = rank_groups(models).p["mcc"]
    plain = {
        pair: wilcoxon(models[pair[0]]["mcc"] - models[pair[1]]["mcc"]).pvalue for pair in found
    }
    order = sorted(plain, key=plain.get)
    raised = [plain[pair] * n for pair, n in zip(order, (3, 2, 1), strict=True)]
    expected = np.minimum(np.maximum.accumulate(raised), 1)
    assert [found[pair] for pair in order] == pytest.approx(expected)


def test_errors_are_better_when_small(models):
    leak = {name: {"pose_leak": of["angle_deg"]} for name, of in models.items()}
    assert rank_groups(leak).mean_rank == {"slow": 1, "fast": 2, "plain": 3}
    assert rank_groups(leak, lower=()).mean_rank == {"slow": 3, "fast": 2, "plain": 1}


def test_four_seeds_cannot_tell_models_apart():
    found = rank_groups({"a": {"mcc": [1.0, 0.9, 0.95, 0.97]}, "b": {"mcc": [0.1, 0.2, 0.3, 0.4]}})
    assert found.ranks["mcc"] == {"a": 1.5, "b": 1.5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_groups({"a": {"mcc": [1, 2]}}), "models: expected at least 2, got 1"),
        (
            lambda: rank_groups({"a": {"mcc": [1, 2]}, "b": {"mcc": [1, 2, 3]}}),
            "mcc: expected the same seeds",
        ),
        (lambda: rank_groups({"a": {"mcc": [1, 2]}, "b": {"mig": [1, 2]}}), "no metric has two"),
        (lambda: rank_groups({"a": {}, "b": {}}, alpha=2), "alpha: expected"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(pc.InputError, match=message):
        call()
