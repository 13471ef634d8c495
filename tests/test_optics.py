import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.diagnose.worlds import Truth
from pyrocryo.imaging import modulated
from pyrocryo.io import star

CTF = [12_000.0, 11_700.0, 30.0, 300.0, 2.7, 0.1, 0.0]


def _particles(n=600, seed=0, **more):
    more = {"box": 24, "pixel_size": 4.0, "ctf": True} | more
    return pc.simulate.poses(pc.molecules.TwoArms(), n=n, seed=seed, **more)


def _pair(particles, optics=None, **more):
    volume = more.pop("volume", pc.volumes.Grid(hidden=(32, 32)))
    return pc.Pair(pc.priors.IsotropicNormal(2), volume, particles.box, optics=optics, **more)


def test_simulated_images_are_seen_through_their_ctf():
    ctf = np.tile(CTF, (50, 1))
    plain, through = _particles(50, ctf=False, snr=1e6), _particles(50, ctf=ctf, snr=1e6)
    np.testing.assert_array_equal(plain.truth, through.truth)
    np.testing.assert_array_equal(plain.rotation, through.rotation)
    clean = torch.as_tensor(plain.images)
    expected = modulated(clean, torch.as_tensor(ctf), pixel_size=4.0, margin=2).numpy()
    expected *= np.sqrt(1e6 / expected.var(axis=(1, 2)).mean())
    np.testing.assert_allclose(through.images, expected, atol=20)  # of 1000; noise is 1 in each
    drawn = _particles(2000).ctf
    middle = drawn[:, :2].mean(axis=1)
    assert 8_000 <= middle.min() < 9_000 < 24_000 < middle.max() <= 25_000
    assert (drawn[:, 0] >= drawn[:, 1]).all()


def test_existing_simulations_are_what_they_were():
    a, b = _particles(20, ctf=False), _particles(20)
    np.testing.assert_array_equal(a.truth, b.truth)


def test_the_model_sees_through_it_and_the_density_does_not():
    particles = _particles(8)
    pair = _pair(particles, pc.optics.CTF())
    bare = _pair(particles)
    bare.load_state_dict(pair.state_dict())
    batch, z = particles.batch(np.arange(8)), torch.randn(8, 2)
    expected = modulated(bare.seen(z, batch), batch.ctf, pixel_size=batch.pixel_size)
    torch.testing.assert_close(pair.seen(z, batch), expected)
    torch.testing.assert_close(pair.density(z), bare.density(z))
    draws = z.expand(3, 8, 2)
    assert pair.seen(draws, batch).shape == (3, 8, 24, 24)


def test_encoders_see_flipped_images():
    particles = _particles(8)
    batch = particles.batch(np.arange(8))
    flipped = batch._replace(images=modulated(batch.images, batch.ctf, pixel_size=4.0, sign=True))
    torch.manual_seed(0)
    pair = _pair(particles, pc.optics.CTF())
    raw = _pair(particles, pc.optics.CTF(flip=False))
    raw.load_state_dict(pair.state_dict())
    a, b = pair.posterior_of(batch).mean, raw.posterior_of(batch).mean
    torch.testing.assert_close(a, raw.posterior_of(flipped).mean)
    assert (a - b).abs().max() > 1e-3


def test_frames_have_ctfs_of_their_own():
    particles = pc.simulate.time_resolved(
        pc.molecules.TwoArms(), n=40, seed=0, box=16, pixel_size=6.0, ctf=True
    )
    assert particles.ctf.shape == (40, 2, 7)
    fit = pc.fit(_pair(particles, pc.optics.CTF()), particles, steps=4, progress=False)
    post = pc.posterior(fit, particles.test, draws=3)
    assert np.isfinite(post["log_likelihood"]["x"]).all()


def test_traced_as_in_python():
    particles = _particles(80)
    options = {"steps": 6, "batch_size": 16, "seeds": 2, "progress": False}
    pair = _pair(particles, pc.optics.CTF(), pose=pc.poses.InPlane())
    python = pc.fit(pair, particles, capture=False, **options).history["loss"]
    for together in (1, 2):
        fit = pc.fit(pair, particles, capture=True, together=together, **options)
        # stacked, Fourier transforms round otherwise, and Adam makes more of it
        rtol = 1e-6 if together == 1 else 5e-3
        np.testing.assert_allclose(fit.history["loss"], python, rtol=rtol)


def test_modelling_the_ctf_pays():
    """Nats a particle on held-out images, from the same seed."""
    particles = _particles(3000)
    gain, known = [], []
    for optics in (None, pc.optics.CTF()):
        fit = pc.fit(
            _pair(particles, optics), particles, steps=400, batch_size=32, lr=4e-3, progress=False
        )
        post = pc.posterior(fit, particles.test, draws=10)
        table = pc.metrics.report(post)
        gain.append(table["elbo"]["mean"])
        known.append(table["r2_linear"]["mean"])
    assert gain[1] > gain[0] + 10
    assert known[1] > known[0]


def test_the_true_world_has_the_ctf_too():
    """What is left of images that the true molecule explains is their noise, of variance 1."""
    particles, molecule = _particles(200, snr=20.0), pc.molecules.TwoArms()
    batch, left = particles.batch(np.arange(200)), []
    for known in (particles, particles.without("ctf")):
        seen = known.batch(np.arange(200))
        world = Truth(_pair(known), molecule, known)
        clean = world.render(seen.truth, seen.rotation, seen)
        left.append((batch.images - clean).var().item())
    assert left[0] == pytest.approx(1, abs=0.02)
    assert left[1] > 3


@pytest.mark.parametrize("frames", [None, 2])
def test_the_information_limit_knows_the_ctf(frames):
    more = {"box": 20, "pixel_size": 4.0, "ctf": True, "snr": 0.1}
    molecule = pc.molecules.Arms(1)
    if frames:
        particles = pc.simulate.time_resolved(molecule, 60, **more)
        prior = pc.priors.LaplaceTransition(1, 0.5)
    else:
        particles = pc.simulate.poses(molecule, 100, **more)
        prior = pc.priors.IsotropicNormal(1)
    error = [
        np.square(pc.simulate.information_limit(molecule, p, prior) - particles.truth).mean()
        for p in (particles, particles.without("ctf"))
    ]
    assert error[0] < 0.7 * error[1]


def test_autocast_leaves_the_ctf_alone():
    particles = _particles(4)
    batch = particles.batch(np.arange(4))
    optics = pc.optics.CTF()
    expected = optics(batch.images, batch), optics.corrected(batch).images
    with torch.autocast("cpu", torch.bfloat16):
        found = optics(batch.images, batch), optics.corrected(batch).images
        low = optics(batch.images.bfloat16(), batch)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert low.dtype == torch.float32


def test_the_command_line_simulates_ctfs(tmp_path):
    path = tmp_path / "p.star"
    assert main(["simulate", "poses", str(path), "--n", "6", "--seed", "3", "--ctf"]) == 0
    expected = pc.simulate.poses(pc.molecules.Arms(2), 6, 3, ctf=True)
    found = pc.io.load(path)
    np.testing.assert_allclose(found.ctf, expected.ctf, rtol=1e-5)
    np.testing.assert_allclose(found.batch(np.arange(6)).images, expected.images, atol=1e-4)


@pytest.mark.parametrize(("ctf", "modelled"), [(None, True), (True, True), (False, False)])
def test_the_model_file_models_the_ctf_of_the_particles(ctf, modelled):
    path = Path(__file__).parents[1] / "models" / "particles.py"
    spec = importlib.util.spec_from_file_location("particles_model", path)
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    config = model.Config(ctf=ctf, dimensions=2)
    particles = _particles(20)
    assert (model.pair(config, particles).optics is not None) == modelled
    if ctf is None:
        assert model.pair(config, particles.without("ctf")).optics is None


def test_what_is_not_modelled_is_said(tmp_path, caplog):
    path = tmp_path / "p.star"
    pc.io.save(_particles(6), path)
    pc.io.load(path)
    assert not caplog.records
    blocks = star.read(path)
    blocks["optics"] |= {"rlnBeamTiltX": ["0.5"], "rlnBeamTiltY": ["0"]}
    star.write(path, blocks)
    pc.io.load(path)
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == [
        "rlnBeamTiltX other than 0 is not modelled, and it is 0.5 in 6 rows"
    ]


def test_a_star_file_keeps_the_ctf(tmp_path):
    for columns in (7, 8):
        ctf = np.hstack([_particles(6).ctf, np.full((6, 1), 40.0)])[:, :columns]
        path = tmp_path / f"{columns}.star"
        pc.io.save(_particles(6, ctf=ctf), path)
        np.testing.assert_allclose(pc.io.load(path).ctf, ctf, rtol=1e-5)


def test_bad_optics_are_refused():
    particles = _particles(30)
    with pytest.raises(pc.InputError, match="ctf: these particles have no CTF"):
        pc.fit(_pair(particles, pc.optics.CTF()), particles.without("ctf"), steps=2)
    with pytest.raises(pc.InputError, match="256 of 576 pixels a step"):
        _pair(particles, pc.optics.CTF(), volume=pc.volumes.Implicit())
    with pytest.raises(pc.InputError, match="margin: expected at least 1, got 0"):
        pc.optics.CTF(margin=0)
    images, ctf = np.zeros((4, 8, 8)), np.tile(CTF, (4, 1))
    for column, value, said in (
        (3, 0.0, "ctf: particle 2 has a voltage of 0 kV"),
        (5, 1.5, "ctf: particle 2 has an amplitude contrast of 1.5"),
    ):
        wrong = ctf.copy()
        wrong[2, column] = value
        with pytest.raises(pc.InputError, match=said):
            pc.Particles(images, ctf=wrong)
    with pytest.raises(pc.InputError, match=r"ctf: expected shape \(4, 7\) or \(4, 8\)"):
        pc.Particles(images, ctf=ctf[:, :5])
    with pytest.raises(pc.InputError, match=r"ctf: expected shape \(30, 7\)"):
        _particles(30, ctf=ctf)
