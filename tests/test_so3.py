"""Poses in space: refinement around known ones, with shifts, in Pyro, traced, and on disk."""

import json
import logging
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO

import pyrocryo as pc
from pyrocryo import quaternions
from pyrocryo.cli import main
from pyrocryo.io import star
from pyrocryo.rotations import angle_between, matrix_from_quaternion

MODELS = Path(__file__).parents[1] / "models"
SHORT = ("--steps", "4", "--draws", "3", "--batch-size", "16")
MOLECULE = pc.molecules.AdenylateKinase(width=3.0)


def _particles(n=500, frames=None, box=40, pixel_size=2.0, **options):
    if frames:
        made = pc.simulate.time_resolved(
            MOLECULE, n, 0, frames=frames, box=box, pixel_size=pixel_size
        )
    else:
        made = pc.simulate.poses(MOLECULE, n, 0, box=box, pixel_size=pixel_size)
    return pc.simulate.misplaced(made, **({"degrees": 6.5, "angstroms": 1.0} | options))


def _pair(particles, prior=None, iterations=4, **pose):
    return pc.Pair(
        prior or pc.priors.IsotropicNormal(2),
        pc.volumes.Atoms.known(MOLECULE, pixel_size=particles.pixel_size),
        particles.box,
        pose=pc.poses.SO3(**({"around": 6.5, "shift_sd": 1.0} | pose)),
        guide=pc.guides.GaussNewton(2),
        pose_guide=pc.guides.Refine(iterations),
        rotate=False,
    )


@pytest.fixture(scope="module")
def particles():
    return _particles()


@pytest.fixture(scope="module")
def refined(particles):
    return pc.fit(_pair(particles), particles, steps=30, batch_size=24, lr=1e-2, seeds=2)


def test_misplaced_particles(particles):
    off = np.rad2deg(angle_between(particles.true_rotation, particles.rotation))
    assert np.median(off) == pytest.approx(10, abs=1)
    moved = particles.shift - particles.true_shift
    assert moved.std() == pytest.approx(1, abs=0.1)
    with pytest.raises(pc.InputError, match="degrees, angstroms: expected 0 or more"):
        pc.simulate.misplaced(particles, degrees=-1)
    with pytest.raises(pc.InputError, match="rotation: these particles have none to make wrong"):
        pc.simulate.misplaced(particles.without("rotation"), degrees=1)


def test_refinement(refined, particles):
    """Poses off by 10° come within 4, shifts off by 1.2 Å within .7, and z is read well."""
    table = pc.metrics.report(pc.posterior(refined, particles.test, draws=10))
    assert table["pose_error_given_deg"]["mean"] > 8
    assert table["pose_error_given_deg"]["floor"] is None
    assert max(table["pose_error_deg"]["per_seed"]) < 4
    assert table["pose_error_deg"]["floor"] == pytest.approx(132.35)
    assert max(table["shift_error_angstroms"]["per_seed"]) < 0.7
    assert min(table["mcc_spearman"]["per_seed"]) > 0.85


def test_the_posterior_is_as_wide_as_its_errors(refined, particles):
    """White errors of pose and shift, under the guide, have a variance of about 1."""
    pair, batch = refined.pairs[0], particles.batch(np.arange(240))
    with torch.no_grad():
        law = pair.pose_of(batch)
        true = quaternions.from_matrix(batch.true_rotation)
        omega = 2 * law.tangent(true)
        white = torch.linalg.solve_triangular(law.scale_tril, omega.unsqueeze(-1), upper=False)
        assert 0.6 < float(white.square().median() / 0.455) < 1.6
        there = law.shift(true)
        off = (batch.true_shift - there.mean).unsqueeze(-1)
        white = torch.linalg.solve_triangular(there.scale_tril, off, upper=False)
        assert 0.6 < float(white.square().median() / 0.455) < 1.6


def test_draws_of_a_particle_lie_in_one_hemisphere(refined, particles):
    post = pc.posterior(refined, particles.take(np.arange(8)), draws=20)["posterior"]
    pose = np.asarray(post["pose"])
    assert pose.shape == (2, 20, 8, 4)
    assert post["pose"].dims[-1] == "direction"
    assert np.asarray(post["shift"]).shape == (2, 20, 8, 2)
    assert ((pose * pose[:, :1]).sum(-1) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(pose, axis=-1), 1, atol=1e-5)


@pytest.mark.usefixtures("brisk")
def test_refined_poses_on_disk(refined, particles, tmp_path):
    few = particles.take(np.arange(40))
    better = pc.posed(refined, few)
    before, after = (
        np.median(np.rad2deg(angle_between(few.true_rotation, p.rotation))) for p in (few, better)
    )
    assert after < 0.5 * before
    pc.io.save(better.without("true_rotation", "true_shift"), tmp_path / "better.star")
    read = pc.io.load(tmp_path / "better.star")
    np.testing.assert_allclose(read.rotation, better.rotation, atol=1e-4)
    np.testing.assert_allclose(read.shift, better.shift, atol=1e-3)
    pc.io.export(refined, pc.posterior(refined, few, draws=2), tmp_path / "run", particles=few)
    for seed in (0, 1):
        table = star.read(tmp_path / "run" / f"poses_seed{seed}.star")["particles"]
        assert len(table["rlnAnglePsi"]) == 40
    angles = np.array([table[f"rlnAngle{a}"] for a in ("Rot", "Tilt", "Psi")], float).T
    again = pc.posed(refined, few, chain=1)
    np.testing.assert_allclose(pc.rotations.matrix_from_euler(angles), again.rotation, atol=1e-4)


def test_the_step_is_traced_and_seeds_train_at_once(particles, caplog):
    caplog.set_level(logging.INFO, "pyrocryo")
    pair = _pair(particles, iterations=2)
    kept = pc.fit(pair, particles, steps=3, batch_size=8, seeds=2, capture=True, together=2)
    assert "2 seeds at once" in caplog.text
    assert "not traced" not in caplog.text
    plain = pc.fit(pair, particles, steps=3, batch_size=8, seeds=1, capture=False)
    np.testing.assert_allclose(kept.history["loss"][0], plain.history["loss"][0], rtol=1e-4)


@pytest.mark.parametrize("pose", [{}, {"shift_sd": None}])
def test_frames_in_time(pose):
    moving = _particles(30, frames=2)
    pair = _pair(moving, pc.priors.LaplaceTransition(2, 2.0), **pose)
    fit = pc.fit(pair, moving, steps=2, batch_size=6)
    post = pc.posterior(fit, moving.take(np.arange(20)), draws=3)
    assert np.asarray(post["posterior"]["pose"]).shape == (1, 3, 20, 2, 4)
    assert ("shift" in post["posterior"]) == (pose == {})
    assert pc.metrics.report(post)["pose_error_deg"]["mean"] < 10


def test_plain_pyro(particles):
    pair = _pair(particles).eval()
    batch = particles.batch(np.arange(4))
    trace = poutine.trace(pair.model).get_trace(batch)
    assert [n for n in trace.nodes if n in ("pose", "shift", "z", "x")] == [
        "pose", "shift", "z", "x"
    ]  # fmt: skip
    loss = Trace_ELBO()(pair.model, pair.guide)(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad.abs().max() > 0 for p in pair.pose_encoder.parameters())
    drawn = Predictive(poutine.uncondition(pair.model), num_samples=300)(batch)
    turned = matrix_from_quaternion(drawn["pose"].numpy())
    off = angle_between(batch.rotation.numpy().astype(float), turned)
    assert np.median(np.rad2deg(off)) == pytest.approx(10, abs=0.7)
    moved = drawn["shift"] - batch.shift
    assert float(moved.std()) == pytest.approx(1, abs=0.05)
    source = pyro.render_model(pair.model, model_args=(batch,)).source
    assert "shift -> x" in source


def test_uniform_prior_of_the_model(particles):
    pose = pc.poses.SO3()
    batch = particles.batch(np.arange(5))
    law = pose.prior(batch)
    assert law.batch_shape == (5,)
    assert float(law.log_prob(law.sample())[0].exp()) == pytest.approx(1 / (2 * np.pi**2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"around": 0.0}, r"around: expected degrees in \(0, 90\]"),
        ({"shift_sd": -1.0}, "shift_sd: expected a positive length in Å"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(pc.InputError, match=message):
        pc.poses.SO3(**options)


def test_what_does_not_go_together(particles):
    with pytest.raises(pc.InputError, match="rotations in space need a volume of dim=3"):
        pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(), 16, pose=pc.poses.SO3(around=5))
    with pytest.raises(pc.InputError, match="within 6.5° of known ones need those"):
        _pair(particles).check(particles.without("rotation"))
    with pytest.raises(pc.InputError, match="iterations: expected at least 1"):
        pc.guides.Refine(0)
    known = pc.Pair(
        pc.priors.IsotropicNormal(2),
        pc.volumes.Atoms.known(MOLECULE, pixel_size=2.0),
        40,
        guide=pc.guides.GaussNewton(1),
    )
    fit = pc.fit(known, particles, steps=1)
    with pytest.raises(pc.InputError, match="nothing to report"):
        pc.posed(fit, particles)


def test_arms_in_space():
    molecule = pc.molecules.Arms3D(3)
    z = torch.zeros(2, 3)
    z[1, 1] = 1.0
    still, moved = molecule.centres(z)
    gone = (still - moved).norm(dim=-1) > 1e-6
    assert gone.nonzero().ravel().tolist() == [7, 8, 9]  # one arm of three Gaussians
    mirrored = still * torch.tensor([1.0, 1.0, -1.0])
    turn, move = pc.molecules.domains.superposition(mirrored.numpy(), still.numpy())
    fitted = mirrored.numpy() @ turn.T + move
    assert np.sqrt(((fitted - still.numpy()) ** 2).sum(-1).mean()) > 5  # Å: it has a hand
    with pytest.raises(pc.InputError, match="k: expected at least one arm"):
        pc.molecules.Arms3D(0)


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("molecule", ["kinase", "arms"])
def test_the_model_file_in_short_form(molecule, tmp_path):
    out = tmp_path / "run"
    options = ["--n", "60", "--molecule", molecule, "--held-out", "50", "--out", str(out)]
    assert main(["fit", str(MODELS / "refine.py"), *options, *SHORT, "--iterations", "2"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert "pose_error_given_deg" not in metrics  # too few held out to score
    assert (out / "poses_seed0.star").exists()
