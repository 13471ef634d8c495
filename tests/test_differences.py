"""`pyrocryo compare` on made-up runs whose differences are known."""

import dataclasses
import json

import numpy as np
import pytest

import pyrocryo as pc
from pyrocryo.report.differences import differences, told


def _run(seeds, data="a", **metrics):
    rows = {
        name: {"mean": float(np.mean(v)), "sd": 0.0, "per_seed": list(v), "floor": 0.0}
        for name, v in metrics.items()
    }
    config = {"seeds": list(seeds), "settings": {}, "prior": "p", "volume": "v", "latents": 2}
    config |= {"seconds": 1.0, "data": {"sha256": data}}
    identify = {"prior": {}, "seeds": None, "sentence": "-"}
    return {"config": config, "metrics": rows, "identify": identify}


@pytest.fixture
def two(rng):
    base = rng.uniform(0.4, 0.6, 12)
    a = _run(range(12), elbo=base, mcc_pearson=base, sap=base, irs=base, angle_deg=30 * base)
    better = base + 0.3 + 0.01 * rng.standard_normal(12)
    same = base + 0.01 * np.array([1, -1] * 6)
    b = _run(
        range(12), elbo=base + 1, mcc_pearson=better, sap=same, irs=base - 0.2, angle_deg=base
    )
    return {"vae": a, "slow": b}


def test_seeds_are_paired_and_wins_counted(two):
    found = differences(two)
    row = found["against"]["slow"]["mcc_pearson"]
    assert row["mean"] == pytest.approx(0.3, abs=0.01)
    assert (row["wins_a"], row["wins_b"], row["seeds"]) == (12, 0, 12)
    assert row["interval"][0] < row["mean"] < row["interval"][1]
    favour = found["favour"]["slow"]
    assert favour["metrics"] == 3
    assert (favour["significantly_more"], favour["significantly_less"]) == (1, 1)
    assert found["against"]["slow"]["elbo"]["mean"] == pytest.approx(1)
    ranks = found["mean_rank"]
    assert ranks["vae"] == ranks["slow"] == pytest.approx(1.5)  # one better, one worse, one even


def test_it_reads_well(two):
    text = "\n".join(told(differences(two), "vae"))
    assert "slow - vae, seed by seed (12 seeds)" in text
    assert "of 3 metrics of disentanglement favour slow (1 at p < 0.05)" in text
    better = next(line for line in text.splitlines() if "angle left" in line)
    assert better.endswith("better")  # fewer degrees are better
    assert next(line for line in text.splitlines() if " IRS" in line).endswith("worse")


def test_only_shared_seeds_count_and_only_the_same_data_compare_elbos(two):
    two["slow"]["config"]["seeds"] = list(range(4, 16))
    two["slow"]["config"]["data"]["sha256"] = "b"
    found = differences(two)
    assert found["seeds"] == list(range(4, 12))
    a = np.array(two["vae"]["metrics"]["sap"]["per_seed"])[4:]
    b = np.array(two["slow"]["metrics"]["sap"]["per_seed"])[:8]
    assert found["against"]["slow"]["sap"]["mean"] == pytest.approx((b - a).mean())
    assert "elbo" not in found["against"]["slow"]
    assert "different particles" in told(found, "vae")[-1]


def test_a_seed_without_a_value_is_left_out(two):
    two["slow"]["metrics"]["sap"]["per_seed"][3] = None  # as JSON has NaN
    assert differences(two)["against"]["slow"]["sap"]["seeds"] == 11


def test_too_few_shared_seeds(two):
    two["slow"]["config"]["seeds"] = list(range(11, 23))
    assert told(differences(two), "vae") == [
        "no differences: the runs share 1 seeds, and pairs need two"
    ]


def test_few_seeds_are_told_and_not_ranked(two):
    for run in two.values():
        run["config"]["seeds"] = run["config"]["seeds"][:4]
        for row in run["metrics"].values():
            row["per_seed"] = row["per_seed"][:4]
    found = differences(two)
    assert "mean_rank" not in found
    assert "(4 seeds; too few for p < .05)" in told(found, "vae")[0]


def test_a_run_without_truth_leaves_the_table_to_the_others(two):
    two["yours"] = _run(range(12), elbo=np.arange(12.0))
    found = differences(two)
    assert "mean_rank" not in found
    assert found["favour"]["slow"]["metrics"] == 3
    assert found["favour"]["yours"]["metrics"] == 0


def test_data_without_a_hash_are_not_the_same(two):
    for run in two.values():
        del run["config"]["data"]
    assert not differences(two)["same_data"]


def test_folders_are_compared_and_written(two, tmp_path):
    for name, run in two.items():
        (tmp_path / name).mkdir()
        for part, content in run.items():
            (tmp_path / name / f"{part}.json").write_text(json.dumps(content))
    folders = [tmp_path / "vae", tmp_path / "slow"]
    text = pc.report.compare(folders, out=tmp_path / "c.json")
    assert "slow - vae, seed by seed" in text
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["favour"]["slow"]["metrics"] == 3
    assert "seed by seed" not in pc.report.compare(folders[:1])
    with pytest.raises(pc.InputError, match="names one of them twice"):
        pc.report.compare([folders[0], tmp_path / "slow" / ".." / "vae"])
    with pytest.raises(pc.InputError, match="at least one"):
        pc.report.compare([])


def test_no_turn_is_told_of_seeds_that_found_different_things(rng):
    from pyrocryo.report.compare import _agreement
    from pyrocryo.report.verdicts import agreement

    for latents, shown in (
        ([rng.standard_normal((400, 2)) for _ in range(2)], False),
        ([z := rng.standard_normal((400, 2)), z @ np.array([[0.8, 0.6], [-0.6, 0.8]])], True),
    ):
        seeds = dataclasses.asdict(pc.identify.consistency(latents))
        assert ("turned" in agreement(seeds)) == ("turned" in _agreement(seeds)) == shown
