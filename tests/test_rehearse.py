"""A learned model as the truth of others, and verdicts over several runs, from the shell."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.io.model_file import KEPT
from pyrocryo.to_arviz import from_netcdf

MODELS = Path(__file__).parents[1] / "models"
VAE = str(MODELS / "vae.py")
MODEL = """
from dataclasses import dataclass
import pyrocryo as pc

@dataclass
class Config:
    '''Options.'''
    latents: int = 2
    '''Size of z.'''

def training(config):
    return {"steps": 700, "batch_size": 32}

def particles(config):
    return pc.simulate.poses(pc.molecules.TwoArms(), 1500, 0, snr=2.5, box=20, pixel_size=4.8)

def pair(config, particles):
    return pc.Pair(
        pc.priors.IsotropicNormal(config.latents), pc.volumes.Grid(), particles.box,
        guide=pc.guides.Amortised((64, 32)),
    )
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    (folder / "small.py").write_text(MODEL)
    out = folder / "truth"
    line = ["fit", str(folder / "small.py"), "--out", str(out), "--draws", "4"]
    assert main(line) == 0
    return out


@pytest.fixture(scope="module")
def rehearsal(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("rehearsed") / "all"
    short = "--draws 4 --batch-size 16"
    line = [
        "rehearse",
        str(run),
        "--models",
        f"{VAE} {short}",
        f"{VAE} --volume atoms --steps 9 {short}",
    ]
    line += ["--n", "160", "--steps", "30", "--seeds", "2", "--snr", "2", "--out", str(out)]
    assert main(line) == 0
    return out


def test_candidates_are_fitted_on_what_the_learned_model_shows(run, rehearsal):
    told = json.loads((rehearsal / "rehearsal.json").read_text())
    assert told["invertibility"]["passed"]
    assert told["imaging"] == {"snr": 2.0, "box": 20, "pixel_size": 4.8}
    fit, particles = pc.io.load_fit(run)
    learned = pc.diagnose.Generator(fit, particles.train)
    np.testing.assert_allclose(told["z_sd"], learned.sd, rtol=1e-5)
    expected = pc.simulate.time_resolved(learned, 160, 0, **told["imaging"])
    loaded = pc.io.load(rehearsal / "particles.star")
    np.testing.assert_allclose(loaded.truth, expected.truth, atol=1e-5)
    np.testing.assert_array_equal(loaded.raw(np.arange(160)), expected.images)
    assert list(told["candidates"]) == ["vae", "vae-2"]
    for name in told["candidates"]:
        metrics = json.loads((rehearsal / name / "metrics.json").read_text())
        assert len(metrics["mcc_pearson"]["per_seed"]) == 2
        assert len(metrics["betavae"]["per_seed"]) == 2  # interventions in the learned molecule
        config = json.loads((rehearsal / name / "config.json").read_text())
        assert config["source"] == str(rehearsal / "particles.star")
        assert config["settings"]["steps"] == (9 if name == "vae-2" else 30)  # its own word counts
        assert (rehearsal / name / "report.html").exists()
    config = json.loads((rehearsal / "vae-2" / "config.json").read_text())
    assert config["options"]["volume"] == "atoms"
    assert json.loads((rehearsal / "compare.json").read_text())["seeds"] == [0, 1]


def test_a_run_on_files_can_be_opened_too(rehearsal):
    fit, particles = pc.io.load_fit(rehearsal / "vae-2")
    assert fit.seeds == (0, 1)
    assert type(fit.pairs[0].volume) is pc.volumes.Atoms
    assert particles.frames == 2


def test_a_model_that_is_not_invertible_is_told(run, tmp_path, capsys):
    dead = shutil.copytree(run, tmp_path / "dead")
    content = torch.load(dead / "checkpoint.pt", weights_only=True)
    weights = content["done"][0]["pair"]
    name = next(n for n in weights if n.startswith("volume.network") and n.endswith("weight"))
    weights[name][:, 0] = 0
    torch.save(content, dead / "checkpoint.pt")
    out = tmp_path / "out"
    line = ["rehearse", str(dead), "--models", f"{VAE} --draws 3", "--n", "40", "--steps", "3"]
    line += ["--kind", "poses", "--out", str(out)]
    assert main(line) == 2
    said = capsys.readouterr()
    assert "Not invertible: " in said.out
    assert "go on with --anyway" in said.err
    assert not out.exists()
    assert main([*line, "--anyway"]) == 0
    assert (out / "vae" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "models: name at least one"),
        (("--models", "nothing.py"), "there is no file nothing.py"),
        (("--models", f"{VAE} --sedes 3"), "--sedes"),
        (("--models", VAE, "--learned-seed", "7"), "the fit has seeds 0, not 7"),
        (("--models", VAE, "--kind", "dance"), "dance"),
    ],
)
def test_bad_input_gets_one_line_and_no_folder(options, message, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["rehearse", str(run), "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert not out.exists()


def test_a_folder_in_use_is_left_alone(run, rehearsal, capsys):
    before = sorted(path.name for path in rehearsal.iterdir())
    assert main(["rehearse", str(run), "--models", VAE, "--out", str(rehearsal)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert sorted(path.name for path in rehearsal.iterdir()) == before


def test_the_copy_of_the_model_file_is_kept(run):
    assert (run / KEPT).read_text() == MODEL


def test_identify_says_what_the_run_says(run, capsys):
    assert main(["identify", str(run)]) == 0
    said = capsys.readouterr().out
    verdict = json.loads((run / "identify.json").read_text())
    assert verdict["sentence"] in said
    assert "Turning two axes by 45° costs at least" in said
    assert "linear in z" in said
    assert str(run / "identify.json") in said
    for key in ("prior.check", "rank_j", "rotation_gap_nats"):  # names are for programs
        assert key not in said


def test_identify_compares_runs_and_arrays(rehearsal, tmp_path, capsys):
    vae, other = rehearsal / "vae", rehearsal / "vae-2"
    z = np.asarray(from_netcdf(vae / "posterior.nc")["posterior"]["z"]).mean(axis=1)
    rows = np.asarray(from_netcdf(vae / "posterior.nc")["posterior"]["z"]["particle"])
    every = np.random.default_rng(0).normal(size=(160, 2, 2)).astype(np.float32)
    every[rows] = -z[0][..., ::-1]
    np.save(tmp_path / "z.npy", every.reshape(-1, 2))
    (tmp_path / "z.1.pkl").write_bytes(pickle.dumps(every.reshape(-1, 2)))
    out = tmp_path / "agree.json"
    arrays = [str(tmp_path / "z.npy"), str(tmp_path / "z.1.pkl")]
    assert main(["identify", str(vae), str(other), *arrays, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    flat = [*z.reshape(2, -1, 2)]
    others = np.asarray(from_netcdf(other / "posterior.nc")["posterior"]["z"]).mean(axis=1)
    flat += [*others.reshape(2, -1, 2)]
    flat += [every[rows].reshape(-1, 2)] * 2
    expected = pc.identify.consistency(flat, frames=2)
    assert len(found["latents"]) == 6
    assert found["permutation"] == pytest.approx(expected.permutation, abs=1e-6)
    assert expected.sentence[1:] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: np.save(p / "a.npy", np.zeros((7, 2))), "expected 320 rows, one an image"),
        (lambda p: np.save(p / "a.npy", np.zeros(7)), "expected latents (N, K), got (7,)"),
        (lambda p: (p / "a.npy").write_text("no"), "cannot be read as an array"),
        (lambda p: None, "a.npy"),
    ],
)
def test_arrays_that_do_not_fit(make, message, rehearsal, tmp_path, capsys):
    make(tmp_path)
    assert main(["identify", str(rehearsal / "vae"), str(tmp_path / "a.npy")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_runs_of_other_particles_are_not_compared(run, rehearsal, capsys):
    assert main(["identify", str(rehearsal / "vae"), str(run)]) == 2
    assert "of other particles than" in capsys.readouterr().err
    assert main(["identify"]) == 2
    assert "name at least one run folder" in capsys.readouterr().err
