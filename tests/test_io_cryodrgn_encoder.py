"""CryoDRGN's encoder, rebuilt from run folders of cryoDRGN 4.3.1 (make_cryodrgn_runs.py)."""

import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.diagnose import reencoded
from pyrocryo.errors import InputError
from pyrocryo.io.cryodrgn import read_pickles, read_poses
from pyrocryo.io.cryodrgn_encoder import read_encoder, read_particles
from pyrocryo.io.cryodrgn_settings import read_settings
from pyrocryo.io.others import read_latents
from pyrocryo.io.to_cryodrgn import write_cryodrgn

RUNS = Path(__file__).parent / "data" / "cryodrgn_runs"


@pytest.fixture
def run(tmp_path):
    """A copy of the run with CTFs and indices."""
    return shutil.copytree(RUNS / "resid", tmp_path / "resid")


@pytest.mark.parametrize("name", ["resid", "mlp"])
def test_encoder_gives_the_z_that_cryodrgn_wrote(name):
    """With windows, shifts, phases and indices, and with none of them."""
    encode, particles = read_encoder(RUNS / name), read_particles(RUNS / name)
    mean, sd = encode(particles.batch(np.arange(len(particles))))
    expected = read_latents(RUNS / name)
    np.testing.assert_allclose(mean, expected.z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sd, expected.sd, rtol=1e-4)
    assert encode.dim == expected.z.shape[1]
    assert len(particles) == (57 if name == "resid" else 64)


def test_what_is_turned_changes_what_is_read():
    """Shift and CTF are looked at: leaving either as it was gives another z."""
    encode, particles = read_encoder(RUNS / "resid"), read_particles(RUNS / "resid")
    batch = particles.batch(np.arange(8))
    z, _ = encode(batch)
    for name in ("shift", "ctf"):
        other, _ = encode(batch._replace(**{name: getattr(batch, name).flip(0)}))
        assert (other - z).abs().max() > 1e-3


def test_particles_written_for_cryodrgn_are_read_back(tmp_path):
    made = pc.simulate.poses(pc.molecules.Arms3D(2), 6, snr=1.0, box=16, pixel_size=8.0, ctf=True)
    files = write_cryodrgn(made, tmp_path / "new")
    assert [file.name for file in files] == ["particles.mrcs", "poses.pkl", "ctf.pkl"]
    again = pc.io.load(files[0], poses=files[1])
    np.testing.assert_allclose(again.rotation, made.rotation, atol=1e-6)
    np.testing.assert_allclose(again.shift, made.shift, atol=1e-5)
    assert torch.equal(again.batch([0, 5]).images, made.batch([0, 5]).images)
    np.testing.assert_allclose(read_pickles(files[2])[0][:, 2:], made.ctf, rtol=1e-6)
    assert read_poses(files[1])[1].dtype == np.float64
    with pytest.raises(InputError, match="is there already"):
        write_cryodrgn(made, tmp_path / "new")
    with pytest.raises(InputError, match="has one|have one"):
        write_cryodrgn(made.having(ctf=np.hstack([made.ctf, np.ones((6, 1))])), tmp_path / "b")


def test_settings_are_read_as_data(run):
    told = read_settings(run)
    assert told["dataset_args"]["norm"] == pytest.approx([0, 22.179], abs=1e-3)
    assert told["dataset_args"]["invert_data"] is True
    assert told["dataset_args"]["datadir"] is None
    assert told["model_args"]["zdim"] == 2
    assert told["model_args"]["activation"] == "relu"


def damaged_weights(folder):
    (folder / "weights.1.pkl").write_bytes(b"PK\x03\x04 not much")


def hostile_weights(folder):
    class Call:
        def __reduce__(self):
            return (pytest.fail, ("it was run",))

    with open(folder / "weights.1.pkl", "wb") as file:
        pickle.dump({"model_state_dict": Call()}, file)


def narrow_weights(folder):
    state = torch.load(folder / "weights.1.pkl", weights_only=True)
    first = state["model_state_dict"]
    first["encoder.main.0.weight"] = first["encoder.main.0.weight"][:, :-1]
    torch.save(state, folder / "weights.1.pkl")


def settings(old, new):
    def change(folder):
        text = (folder / "config.yaml").read_text()
        assert old in text
        (folder / "config.yaml").write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (damaged_weights, "cannot be read as weights"),
        (hostile_weights, "cannot be read as weights"),
        (narrow_weights, "layer 0 takes"),
        (lambda folder: (folder / "weights.1.pkl").unlink(), "no weights"),
        (lambda folder: (folder / "config.yaml").unlink(), "no config.yaml"),
        (settings("encode_mode: resid", "encode_mode: conv"), "resid or mlp"),
        (settings("zdim: 2", "zdim: many"), "what an encoder needs"),
        (settings("D: 17", "D: 16"), "settings of no images"),
    ],
)
def test_what_is_no_encoder_is_refused(run, change, match):
    change(run)
    with pytest.raises(InputError, match=match):
        read_encoder(run)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda folder: (folder / "particles.mrcs").unlink(), "which is not there"),
        (settings("  poses: poses.pkl", "  poses: null"), "name no poses"),
    ],
)
def test_particles_that_are_not_there_are_told(run, change, match):
    change(run)
    with pytest.raises(InputError, match=match):
        read_particles(run)


def test_audit_turns_the_images_of_a_run(run, tmp_path, capsys):
    """On its page too; where images are gone the rest is still told."""
    out = tmp_path / "out"
    main(["audit", str(run), "--rotate", "--permutations", "99", "--out", str(out)])
    told = capsys.readouterr().out
    assert "turned: " in told
    assert "rotation of images" not in told
    turned = json.loads((out / "audit.json").read_text())["runs"][0]["turned"]
    assert turned["particles"] == 57
    assert 0 < turned["nrms"] < 3
    assert "Does z stay when images are turned?" in (out / "audit.html").read_text()
    (run / "particles.mrcs").unlink()
    main(["audit", str(run), "--rotate", "--permutations", "99"])
    assert "particles.mrcs (particles), which is not there" in capsys.readouterr().out
    main(["audit", str(run), "--rotate", "--images", str(RUNS / "resid" / "particles.mrcs"),
          "--permutations", "99"])  # fmt: skip
    assert "turned: " in capsys.readouterr().out


def test_audit_does_not_turn_images_that_are_others(run, capsys):
    """The encoder has to give what the run wrote down."""
    other = pc.simulate.poses(pc.molecules.Arms3D(2), 64, seed=2, box=16, pixel_size=8.0)
    (run / "particles.mrcs").unlink()
    shutil.move(write_cryodrgn(other, run / "more")[0], run / "particles.mrcs")
    main(["audit", str(run), "--rotate", "--permutations", "99"])
    told = capsys.readouterr().out
    assert "another z than the run wrote down" in told
    assert "turned: " not in told


def radial(batch):
    """Invariant: moments about the middle."""
    box = batch.images.shape[-1]
    r = torch.arange(box) - box // 2
    square = (r[:, None] ** 2 + r**2) / box**2
    inside = batch.images * (square < 0.2)
    return torch.stack([(inside * square**n).sum((-1, -2)) for n in (0, 1)], dim=-1)


def sideways(batch):
    """Reads how the molecule lies: moments along x."""
    box = batch.images.shape[-1]
    x = (torch.arange(box) - box // 2) / box
    return torch.stack([(batch.images * x**n).sum((-1, -2)) for n in (1, 2)], dim=-1)


def speckled(batch):
    """Reads noise: a few pixels far from the molecule."""
    return batch.images[..., 1:3, 1]


@pytest.mark.parametrize(
    ("read", "verdict"),
    [(radial, "invariant"), (sideways, "reads the pose"), (speckled, "by heart")],
)
def test_turned_images_tell_what_an_encoder_reads(read, verdict):
    particles = pc.simulate.poses(pc.molecules.Arms3D(2), 600, snr=2.0, box=16, pixel_size=8.0)
    found = reencoded(
        lambda b: (read(b), torch.ones(len(b.images), 2)), particles, permutations=99
    )
    assert found.verdict == verdict
    assert (found.systematic > 0.05) == (verdict == "reads the pose")
    assert (found.kept > 0.5) == (verdict == "invariant")
    assert found.nrms == pytest.approx(
        {"invariant": 0, "by heart": 1}.get(verdict, found.nrms), abs=0.1
    )


def test_poses_that_follow_the_conformation_are_not_laid_at_the_encoder_s_door():
    """z depends on the pose as molecules do; the encoder, which knows the truth, does not."""
    particles = pc.simulate.poses(pc.molecules.Arms3D(2), 600, snr=2.0, box=16, pixel_size=8.0)
    follows = particles.having(truth=particles.rotation[:, 2, :2] + 0.3 * particles.truth)
    found = reencoded(lambda b: (b.truth, torch.ones_like(b.truth)), follows, permutations=99)
    assert found.verdict == "invariant"
    assert pc.diagnose.leak(follows.truth, follows.rotation, permutations=99).verdict == "depends"
    with pytest.raises(InputError, match="expected 50 or more"):
        reencoded(lambda b: (b.truth, b.truth), follows.take(np.arange(20)))


def test_cryodrgn_analyses_our_z(tmp_path):
    """Its own program on its own run folder, whose z is replaced by ours."""
    program = os.environ.get("PYROCRYO_TEST_CRYODRGN") or shutil.which("cryodrgn")
    if program is None:
        pytest.skip("no cryodrgn, nor PYROCRYO_TEST_CRYODRGN: pip install cryodrgn==4.3.1")
    run = shutil.copytree(RUNS / "mlp", tmp_path / "run")
    z = np.random.default_rng(0).standard_normal((64, 3))
    z[:, 0] *= 5
    pc.io.write_cryodrgn_latents(run / "z.1.pkl", z, np.full((64, 3), 0.2))
    told = ["analyze", str(run), "1", "--ksample", "4", "--pc", "1", "--n-per-pc", "3"]
    subprocess.run([program, *told, "--skip-umap"], check=True, env=_plain(), timeout=600)
    made = run / "analyze.1"
    for name in ("z_pca.png", "kmeans4/vol_001.mrc", "pc1/vol_003.mrc"):
        assert (made / name).stat().st_size > 0
    centres = np.loadtxt(made / "kmeans4" / "centers.txt")
    nearest = np.abs(centres[:, None] - z.astype(np.float32)).max(-1).min(1)
    assert nearest.max() < 1e-6


def _plain():
    """An environment where another Python finds its own packages."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
