"""Poses that nobody knows: all orientations searched on the current volume."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

import pyrocryo as pc
from pyrocryo import quaternions
from pyrocryo.cli import main
from pyrocryo.guides.search import MixtureAndShift, _grid
from pyrocryo.metrics.pose3d import rotation_errors
from pyrocryo.rotation_laws import RotationNormal
from pyrocryo.rotations import angle_between

MODELS = Path(__file__).parents[1] / "models"
SHORT = ("--steps", "4", "--draws", "3", "--batch-size", "16")
MOLECULE = pc.molecules.Arms3D(2, radius=36.0)
SMALL = {"views": 96, "angles": 32, "heads": 2, "iterations": 2}


def _particles(n=240, **imaging):
    made = pc.simulate.poses(MOLECULE, n, 0, box=24, pixel_size=4.0, max_shift=1.0, **imaging)
    bare = made.without("rotation")
    return bare.having(true_rotation=made.rotation, shift=0 * made.shift, true_shift=made.shift)


def _pair(particles, volume=None, guide=None, **pose):
    return pc.Pair(
        pc.priors.IsotropicNormal(2),
        volume or pc.volumes.Atoms.known(MOLECULE, pixel_size=particles.pixel_size),
        particles.box,
        pose=pc.poses.SO3(**pose),
        guide=pc.guides.GaussNewton(2),
        pose_guide=guide or pc.guides.Search(**SMALL),
        rotate=False,
    )


@pytest.fixture(scope="module")
def particles():
    return _particles()


def test_the_grid_is_even():
    """No rotation is far from it, and views see every side."""
    view, turn = _grid(192, 24)
    grid = quaternions.product(turn, view.unsqueeze(1)).reshape(-1, 4)
    anywhere = torch.nn.functional.normalize(torch.randn(500, 4), dim=-1)
    far = 2 * torch.acos((anywhere @ grid.T).abs().amax(-1).clamp_max(1)).rad2deg()
    assert far.max() < 16
    turned = quaternions.matrix(grid).double().numpy()
    assert np.abs(turned.mean(0)).max() < 0.01


def test_poses_out_of_nothing_on_a_known_molecule(particles):
    pair = _pair(particles, shift_sd=1.0).eval()
    rotation, shift, rest = [], [], particles.batch(np.arange(len(particles)))
    with torch.no_grad():
        law = pair.pose_of(rest)
        rotation = quaternions.matrix(law.mean).double().numpy()
        shift = law.shift(law.mean).mean.numpy()
    errors = np.rad2deg(angle_between(particles.true_rotation, rotation))
    assert np.median(errors) < 8
    assert (errors < 20).mean() > 0.8
    off = np.linalg.norm(shift - particles.true_shift, axis=-1)
    assert np.median(off) < 0.7 * np.median(np.linalg.norm(particles.true_shift, axis=-1))


def test_traced_and_alone_or_in_company(particles, caplog):
    few = pc.guides.Search(48, angles=16, heads=2, iterations=1)
    pair = _pair(particles, guide=few, shift_sd=1.0)
    fit = pc.fit(pair, particles, steps=3, batch_size=6, seeds=2, capture=True, together=2)
    assert "not traced" not in caplog.text
    assert "one after another" not in caplog.text
    alone = pc.fit(pair, particles, steps=3, batch_size=6, capture=False)
    np.testing.assert_allclose(fit.history["loss"][0], alone.history["loss"][0], rtol=2e-3)
    post = pc.posterior(fit, particles.take(np.arange(9)), draws=4)["posterior"]
    assert np.asarray(post["pose"]).shape == (2, 4, 9, 4)
    assert np.asarray(post["shift"]).shape == (2, 4, 9, 2)


def test_frames(particles):
    moving = pc.simulate.time_resolved(MOLECULE, 12, 0, box=24, pixel_size=4.0)
    prior = pc.priors.LaplaceTransition(2, 2.0)
    for pose in (pc.poses.SO3(), pc.poses.SO3(shift_sd=2.0)):
        pair = pc.Pair(
            prior, pc.volumes.Atoms(pixel_size=4.0, dim=3, count=20), 24, pose=pose,
            guide=pc.guides.GaussNewton(1), pose_guide=pc.guides.Search(**SMALL),
        )  # fmt: skip
        fit = pc.fit(pair, moving, steps=2, batch_size=4)
        assert np.isfinite(fit.history["loss"]).all()
        post = pc.posterior(fit, moving, draws=2)
        assert np.asarray(post["posterior"]["pose"]).shape == (1, 2, 12, 2, 4)


def test_shifts_of_a_mixture_belong_to_the_component():
    centre = torch.nn.functional.normalize(torch.randn(5, 3, 4), dim=-1)
    component = RotationNormal(centre, 0.01 * torch.eye(3))
    moved = torch.arange(15.0).reshape(5, 3, 1).expand(5, 3, 2)
    law = MixtureAndShift(
        torch.zeros(5, 3), component, moved, torch.zeros(5, 3, 2, 3),
        0.1 * torch.eye(2).expand(5, 3, 2, 2),
    )  # fmt: skip
    for k in range(3):
        torch.testing.assert_close(law.shift(-centre[:, k]).mean, moved[:, k])
    drawn = law.rsample((7,))
    assert law.shift(drawn).rsample().shape == (7, 5, 2)
    with pytest.raises(NotImplementedError):
        kl_divergence(law, law)


def test_from_scratch(particles):
    """A blob, and images of nobody knows which side: the molecule's pose comes out."""
    many = _particles(500, snr=2.0)
    volume = pc.volumes.Atoms(pixel_size=4.0, dim=3, count=30, width=6.0)
    found = []
    fit = pc.fit(_pair(many, volume), many, steps=150, rigid_steps=140, batch_size=24, lr=6e-3,
                 seeds=2)  # fmt: skip
    for pair in fit.pairs:
        with torch.no_grad():
            pose = pair.pose_of(many.batch(np.arange(len(many)))).mean
        rotation = quaternions.matrix(pose).double().numpy()
        found.append(np.median(rotation_errors(many.true_rotation, rotation)))
    assert min(found) < 25, found  # degrees; random ones are 132 off


@pytest.mark.parametrize("name", ["views", "angles", "heads", "iterations", "side"])
def test_bad_input(name):
    with pytest.raises(pc.InputError, match=f"{name}: expected at least 1, got 0"):
        pc.guides.Search(**{name: 0})


def test_each_guide_has_its_poses(particles):
    with pytest.raises(pc.InputError, match="Search looks everywhere"):
        _pair(particles, around=5.0)
    with pytest.raises(pc.InputError, match="Refine starts from known rotations"):
        _pair(particles, guide=pc.guides.Refine())


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("molecule", ["kinase", "arms"])
def test_the_model_file_in_short_form(molecule, tmp_path):
    out = tmp_path / "run"
    options = ["--n", "60", "--molecule", molecule, "--count", "20", "--out", str(out)]
    options += ["--rigid-steps", "2", "--held-out", "20", *SHORT]
    assert main(["fit", str(MODELS / "ab_initio.py"), *options]) == 0
    assert (out / "poses_seed0.star").exists()
