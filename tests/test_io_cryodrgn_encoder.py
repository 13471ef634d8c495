"""CryoDRGN's encoder, rebuilt from a run folder that cryoDRGN 4.3.1 left (make_cryodrgn_runs.py)."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
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
    assert len(particles) == (24 if name == "resid" else 48)


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
    assert told["dataset_args"]["norm"] == pytest.approx([0, 21.519], abs=1e-3)
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
