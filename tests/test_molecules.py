import os
from pathlib import Path

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


# adenylate kinase


@pytest.fixture(scope="module")
def kinase():
    return pc.molecules.AdenylateKinase()


def test_hinges_of_adenylate_kinase(kinase):
    """NMP closes by 45°, LID by 52°, about axes 56° apart; closed, it lies on 1AKE."""
    np.testing.assert_allclose(np.rad2deg(kinase.angle), [44.8, 52.2], atol=0.1)
    between = np.rad2deg(np.arccos(abs(kinase.axis[0] @ kinase.axis[1])))
    assert between == pytest.approx(55.7, abs=0.1)
    open_form, closed = (
        kinase.centres(torch.full((2,), z, dtype=torch.double)).numpy() for z in (-1.8, 3.0)
    )
    np.testing.assert_allclose(open_form, kinase.ca_open, atol=1e-5)
    assert np.sqrt(((closed - kinase.ca_closed) ** 2).sum(-1).mean()) == pytest.approx(
        1.95, abs=0.01
    )
    assert [int((kinase.domain == k).sum()) for k in (0, 1, 2)] == [146, 30, 38]


def test_each_hinge_moves_its_domain_alone(kinase):
    still = kinase.centres(torch.zeros(2).double())
    for k in (0, 1):
        seen = kinase.centres(torch.eye(2).double()[k])
        moved = (seen - still).norm(dim=-1).numpy()
        assert moved[kinase.domain == k + 1].max() > 2
        assert moved[kinase.domain != k + 1].max() < 1e-4
        # a rotation keeps distances within the domain
        member = torch.as_tensor(kinase.domain == k + 1)
        a, b = (torch.pdist(x[member]) for x in (still, seen))
        torch.testing.assert_close(a, b)


def test_domains_never_collide(kinase):
    grid = torch.cartesian_prod(*[torch.linspace(-3, 3, 9)] * 2)
    for centres in kinase.centres(grid).numpy():
        for one, other in ((0, 1), (0, 2), (1, 2)):
            i, j = (np.flatnonzero(kinase.domain == d) for d in (one, other))
            gap = np.linalg.norm(centres[i][:, None] - centres[j], axis=-1)
            far = np.abs(i[:, None] - j) > 2  # neighbours in the chain aside
            assert gap[far].min() > 3.4


def test_adenylate_kinase_turns_in_space(kinase):
    particles = pc.simulate.poses(kinase, n=20, box=40, pixel_size=2.5)
    assert np.abs(particles.rotation[:, 2, 2]).min() < 0.9
    assert particles.truth.shape == (20, 2)
    with pytest.raises(pc.InputError, match="z: expected 2 hinges"):
        kinase.centres(torch.zeros(3))
    with pytest.raises(pc.InputError, match="width: expected a positive length"):
        pc.molecules.AdenylateKinase(width=0)


def test_package_data_is_what_the_script_makes(kinase):
    """Against the same structures prepared by others (kept outside the repository)."""
    folder = os.environ.get("PYROCRYO_TEST_DATA")
    if not folder:
        pytest.skip("PYROCRYO_TEST_DATA names no folder with other people's data")
    with np.load(Path(folder) / "adk_pdb.npz") as theirs:
        np.testing.assert_allclose(kinase.axis, theirs["hinge_axis"], atol=1e-5)
        np.testing.assert_allclose(kinase.angle, theirs["hinge_angle"], atol=1e-5)
        moved = theirs["ca_open"].mean(axis=0)
        np.testing.assert_allclose(kinase.ca_open, theirs["ca_open"] - moved, atol=1e-4)
        np.testing.assert_allclose(kinase.ca_closed, theirs["ca_closed"] - moved, atol=1e-4)
