import numpy as np
import pytest
import torch

import pyrocryo as pc


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_each_latent_moves_its_own_arm_only(k):
    molecule = pc.molecules.Arms(k)
    start = molecule.centres(torch.zeros(k))
    assert start.shape == (3 + 3 * k, 3)
    for arm in range(k):
        z = torch.zeros(k)
        z[arm] = 1.0
        moved = (molecule.centres(z) - start).norm(dim=-1) > 1e-4
        assert moved.nonzero().flatten().tolist() == [3 + 3 * arm + blob for blob in range(3)]


def test_arms_turn_about_their_hinges_by_the_swing():
    molecule = pc.molecules.TwoArms()
    tip = [molecule.centres(torch.tensor([z, 0.0]))[5, :2] for z in (0.0, 1.0)]
    hinge = molecule.radius * molecule._hinge[0]
    a, b = (t - hinge for t in tip)
    angle = torch.atan2(a[0] * b[1] - a[1] * b[0], a @ b)
    assert float(angle) == pytest.approx(0.35, abs=1e-5)
    assert float(a.norm()) == pytest.approx(float(b.norm()), rel=1e-5)


def test_no_pose_looks_like_another_conformation():
    """The body has no symmetry: turning or mirroring the molecule changes its image."""
    molecule = pc.molecules.TwoArms()
    z, still = torch.zeros(1, 2), torch.zeros(1, 2)
    angles = np.deg2rad([0, 90, 180, 270])
    images = [
        molecule.render(
            z, torch.as_tensor(pc.rotations.in_plane([a])).float(), still, box=33, pixel_size=3.0
        )[0]
        for a in angles
    ]
    for other in (*images[1:], images[0].flip(0), images[0].flip(1)):
        correlation = np.corrcoef(images[0].flatten(), other.flatten())[0, 1]
        assert correlation < 0.9


def test_the_molecule_fits_its_box():
    molecule = pc.molecules.Arms(4)
    z = torch.randn(200, 4).clamp(-3, 3)
    assert float(molecule.centres(z).abs().max()) < molecule.radius


def test_wrong_input_is_named():
    with pytest.raises(pc.InputError, match="k: expected at least one arm, got 0"):
        pc.molecules.Arms(0)
    with pytest.raises(pc.InputError, match="z: expected 3 angles"):
        pc.molecules.Arms(3).centres(torch.zeros(2))
