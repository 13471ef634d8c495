"""A run folder opened again gives the fit that was written, or says what differs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.svi import reopen
from pyrocryo.to_arviz import from_netcdf

MODELS = Path(__file__).parents[1] / "models"
SHORT = ("--steps", "4", "--batch-size", "16", "--draws", "3", "--n", "60")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("reopen") / "run"
    options = ["--seeds", "2", "--weight", "2", "--small", *SHORT, "--out", str(out)]
    assert main(["fit", str(MODELS / "slowvae.py"), *options]) == 0
    return out


def test_a_run_folder_gives_its_fit_back(run):
    fit, particles = pc.io.load_fit(run)
    config = json.loads((run / "config.json").read_text())
    assert fit.seeds == (0, 1)
    assert fit.settings.interventions == pc.Interventions(2.0)
    assert fit.seconds == config["seconds"]
    assert len(particles) == 60
    saved = pc.svi.checkpoints.read(run / "checkpoint.pt")["done"]
    for seed, pair in zip(fit.seeds, fit.pairs, strict=True):
        assert not pair.training
        for name, value in pair.state_dict().items():
            torch.testing.assert_close(value, saved[seed]["pair"][name], rtol=0, atol=0)
    # what was scored then is what is scored now
    post = pc.posterior(fit, particles.test, draws=3)
    then = from_netcdf(run / "posterior.nc")
    np.testing.assert_array_equal(post["posterior"]["z"], then["posterior"]["z"])


def test_the_copy_of_the_model_is_what_is_opened(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no models/ here
    fit, _ = pc.io.load_fit(run)
    assert fit.pairs[0].dim == 2


def test_another_model_or_data_is_told(run, pairs_in_time):
    with pytest.raises(pc.InputError, match="made with other data"):
        pc.io.load_fit(run, particles=pairs_in_time)
    with pytest.raises(pc.InputError, match="had an option boundary, which this model has not"):
        pc.io.load_fit(run, model=MODELS / "vae.py")


def test_what_is_no_run_of_fit_is_told(run, tmp_path, trained_vae, pairs_in_time):
    with pytest.raises(pc.InputError, match="is not a finished run folder"):
        pc.io.load_fit(tmp_path)
    (tmp_path / "config.json").write_text('{"seconds": 3}')
    with pytest.raises(pc.InputError, match="not from pyrocryo fit, it has no 'source'"):
        pc.io.load_fit(tmp_path)
    with pytest.raises(pc.InputError, match="there is no checkpoint"):
        reopen(trained_vae, pairs_in_time, tmp_path / "checkpoint.pt")


def test_an_unfinished_run_is_not_opened(slowvae, pairs_in_time, tmp_path):
    path = tmp_path / "c.pt"
    pc.fit(slowvae, pairs_in_time, steps=3, checkpoint=path)
    content = torch.load(path, weights_only=True)
    assert reopen(slowvae, pairs_in_time, path).history["loss"].shape == (1, 3)
    content["done"] = {}
    torch.save(content, path)
    with pytest.raises(pc.InputError, match=r"seeds \[0\] are not trained yet"):
        reopen(slowvae, pairs_in_time, path)
