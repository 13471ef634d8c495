"""The bridge to ArviZ, in 0.23 and 1.x; runs where neither torch nor pyro is installed."""

import subprocess
import sys

import numpy as np
import pytest

from pyrocryo.to_arviz import from_netcdf, to_arviz, to_netcdf


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


def test_neither_torch_nor_pyro_is_imported():
    heavy = ("torch", "pyro", "arviz", "matplotlib", "sklearn")
    code = (
        "import sys, pyrocryo, pyrocryo.to_arviz;"
        f"sys.exit(any(name in sys.modules for name in {heavy}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
