"""The bridge to ArviZ, in 0.23 and 1.x; runs where neither torch nor pyro is installed."""

import subprocess
import sys

import numpy as np
import pytest

from pyrocryo.to_arviz import from_netcdf, to_arviz, to_elpd, to_netcdf


@pytest.fixture
def groups(rng):
    return {
        "posterior": {"z": rng.standard_normal((2, 20, 6, 3)).astype(np.float32)},
        "posterior_predictive": {"x": rng.standard_normal((2, 1, 6, 4, 4))},
        "log_likelihood": {"x": rng.standard_normal((2, 20, 6))},
        "sample_stats": {"log_q": rng.standard_normal((2, 20, 6))},
        "observed_data": {"x": rng.standard_normal((6, 4, 4))},
        "constant_data": {"temperature": np.full(6, 300.0)},
    }


@pytest.fixture
def tree(groups):
    dims = {
        "z": ["particle", "latent"],
        "x": ["particle", "row", "column"],
        "log_q": ["particle"],
        "temperature": ["particle"],
    }
    coords = {"particle": [3, 5, 7, 11, 13, 17], "chain": [0, 4]}
    return to_arviz(groups, dims=dims, coords=coords, attrs={"seeds": [0, 4]})


def _check(tree, groups):
    for group, variables in groups.items():
        for name, value in variables.items():
            np.testing.assert_array_equal(tree[group][name].values, value)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "particle", "latent")
    assert tree["posterior"]["z"].dtype == np.float32
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "particle")
    assert tree["observed_data"]["x"].dims == ("particle", "row", "column")
    assert tree["posterior"]["particle"].values.tolist() == [3, 5, 7, 11, 13, 17]
    assert tree["posterior"]["chain"].values.tolist() == [0, 4]


def test_groups_dims_and_values(tree, groups):
    _check(tree, groups)


def test_netcdf_returns_the_same(tree, groups, tmp_path):
    path = tmp_path / "posterior.nc"
    to_netcdf(tree, path)
    _check(from_netcdf(path), groups)
    path.unlink()  # closed again, also where open files cannot be removed


def test_arviz_works_on_it(tree):
    import arviz as az

    summary = az.summary(tree, var_names=["z"])
    assert len(summary) == 18


def test_empty_groups_are_left_out(groups):
    groups["constant_data"] = {}
    tree = to_arviz(groups, dims={"z": ["particle", "latent"], "x": ["particle"]})
    assert "constant_data" not in str(list(getattr(tree, "children", tree)))


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ 0.23 on pandas 3.1
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # and matplotlib
def test_held_out_likelihoods_are_compared(rng, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import arviz as az

    same = rng.normal(-90, 3, 120)  # of the particle, whatever the model
    made = {
        name: to_elpd(
            same - below + rng.normal(0, 0.5, 120), rng.uniform(0, 0.9, 120), np.arange(3, 123),
            draws=200, sentence=f"rotations of {name} are left",
        )
        for name, below in (("a", 0.0), ("b", 2.0), ("c", 4.0))
    }  # fmt: skip
    table = az.compare(made)
    assert list(table.index) == ["a", "b", "c"]
    difference = np.abs(table["elpd_diff"].to_numpy(dtype=float))
    np.testing.assert_allclose(difference, [0, 240, 480], atol=20)
    error = table["dse"].to_numpy(dtype=float)[1:]  # of pairs: se of each is 33
    np.testing.assert_allclose(error, 0.5 * np.sqrt(2 * 120), rtol=0.3)
    az.plot_khat(made["a"])
    az.plot_compare(table)
    one = made["b"]
    assert one.identifiability == "rotations of b are left"
    assert one.warning
    points = one.elpd_i if hasattr(one, "elpd_i") else one.loo_i
    assert points.sum() == pytest.approx(-120 * 92, abs=120)
    np.testing.assert_array_equal(points["particle"], np.arange(3, 123))
    assert "200 posterior samples and 120 observations" in str(one)


def test_chains_agree_number_by_number(rng):
    """As NUTS is judged: of each variable, of each particle."""
    import arviz as az

    z, turn = (rng.standard_normal((4, 100, 3, k)) for k in (2, 3))
    turn[1, :, 2, 0] += 2.0  # one chain of one particle is elsewhere
    dims = {"z": ["particle", "latent"], "turn": ["particle", "turn_axis"]}
    tree = to_arviz({"posterior": {"z": z, "turn": turn}}, dims=dims)
    names = ["z", "turn"]
    r_hat, ess = az.rhat(tree, var_names=names), az.ess(tree, var_names=names)
    apart = np.asarray(r_hat["turn"])
    assert apart.shape == (3, 3)
    assert apart[2, 0] > 1.3
    apart[2, 0] = 1
    assert apart.max() < 1.05
    assert np.asarray(r_hat["z"]).shape == (3, 2)
    assert np.asarray(ess["z"]).min() > 250
    assert np.asarray(ess["turn"])[2, 0] < 50


def test_neither_torch_nor_pyro_is_imported():
    heavy = ("torch", "pyro", "arviz", "matplotlib", "sklearn")
    code = (
        "import sys, pyrocryo, pyrocryo.to_arviz;"
        f"sys.exit(any(name in sys.modules for name in {heavy}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
