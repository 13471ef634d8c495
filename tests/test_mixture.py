"""Gaussians instead of a structure: what a map is made of, and motions hung on it."""

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.imaging import splat_map


def _map(centres, width, weight, side=20, voxel_size=3.0):
    told = {"side": side, "voxel_size": voxel_size}
    return splat_map(*(torch.as_tensor(a).float() for a in (centres, width, weight)), **told)


def test_few_gaussians_are_found_as_they_are(rng):
    centres = np.array([[-15.0, 0, 6], [9, 12, 0], [0, -18, -12], [15, -6, 3]])
    width, weight = np.array([5.0, 4.0, 6.0, 4.5]), np.array([1.0, 2.0, 1.5, 1.2])
    found = pc.molecules.mixture(0.3 + _map(centres, width, weight), 3.0, count=4, steps=400)
    order = np.linalg.norm(found.positions[None] - centres[:, None], axis=-1).argmin(1)
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_allclose(found.positions[order], centres, atol=0.2)
    np.testing.assert_allclose(found.width[order], width, rtol=0.05)
    np.testing.assert_allclose(found.weight[order], weight, rtol=0.1)
    assert found.correlation > 0.999


@pytest.mark.parametrize("side", [32, 33])
def test_a_protein_in_noise(side, rng):
    molecule = pc.molecules.AdenylateKinase()
    clean = _map(molecule.ca_open, molecule.width, molecule.weight, side)
    noisy = clean + 0.3 * clean.std() * torch.randn(clean.shape)
    found = pc.molecules.mixture(noisy, 3.0, count=80)
    shown = _map(found.positions, found.width, found.weight, side)
    assert np.corrcoef(shown.ravel(), clean.ravel())[0, 1] > 0.99
    assert found.correlation == pytest.approx(
        np.corrcoef(shown.ravel(), noisy.ravel())[0, 1], abs=1e-4
    )
    # none sits in the noise
    apart = np.linalg.norm(found.positions[:, None] - molecule.ca_open, axis=-1).min(1)
    assert apart.max() < 9
    again = pc.molecules.mixture(noisy, 3.0, count=80)
    np.testing.assert_array_equal(again.positions, found.positions)
    begun = pc.molecules.mixture(noisy, 3.0, count=80, steps=0)
    assert begun.correlation < found.correlation


def test_wrong_input_is_named():
    good = _map(np.eye(3) * 9, np.full(3, 4.0), np.ones(3), side=12)
    for values, options, message in (
        (good[0], {}, r"map: expected a cube .* got shape \(12, 12\)"),
        (good * np.nan, {}, "map: expected a cube of finite"),
        (0 * good, {}, "map: all voxels are alike"),
        (good, {"count": 0}, "count, steps: expected"),
        (good, {"count": 1000}, "threshold: .* too few for 1000"),
        (good, {"threshold": 99.0}, "threshold: 0 voxels are above 99"),
    ):
        with pytest.raises(pc.InputError, match=message):
            pc.molecules.mixture(values, 3.0, **options)
    with pytest.raises(pc.InputError, match="voxel_size: expected a positive"):
        pc.molecules.mixture(good, 0.0)


def test_atoms_start_from_widths_and_heights_and_may_move():
    centres = torch.tensor([[9.0, 0, 0], [0, 12, 0], [0, 0, -9]])
    width, weight = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([1.0, 3.0, 0.5])
    made = {"pixel_size": 3.0, "width": width, "weight": weight, "hidden": ()}
    volume = pc.volumes.Atoms(centres, free=True, **made).build(2, 16)
    expected = _map(centres, width, weight, side=16)
    with torch.no_grad():
        shown = volume.density(torch.zeros(2))
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.99999
    assert volume.offset.requires_grad
    still = pc.volumes.Atoms(centres, **made).build(2, 16)
    assert not still.offset.requires_grad
    assert repr(volume) != repr(still)
    one = pc.volumes.Atoms(centres, pixel_size=3.0, width=4.0).build(2, 16)
    each = pc.volumes.Atoms(centres, pixel_size=3.0, width=[4.0] * 3, weight=1.0).build(2, 16)
    for name in ("first_width", "first_height", "start"):
        assert torch.equal(getattr(one, name), getattr(each, name))
    for options, message in (
        ({"width": [1.0, 2.0]}, "width: expected a positive number, or one for each of 3"),
        ({"weight": [1.0, -2.0, 1.0]}, "weight: expected a number from 0 on"),
    ):
        with pytest.raises(pc.InputError, match=message):
            pc.volumes.Atoms(centres, pixel_size=3.0, **options)


def test_motions_without_a_structure():
    """From particles to a consensus map, Gaussians, and the hinges that move them."""
    molecule = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(molecule, n=2000, snr=4.0)
    consensus = pc.imaging.backproject(particles.train).map
    m = pc.molecules.mixture(consensus, 3.0, count=100)
    assert m.correlation > 0.99
    volume = pc.volumes.Atoms(
        m.positions, pixel_size=3.0, width=m.width, weight=m.weight, free=True
    )
    prior = pc.priors.IsotropicNormal(2)
    pair = pc.Pair(prior, volume, 32, guide=pc.guides.GaussNewton())
    pair = pc.fit(pair, particles, steps=250, batch_size=32, lr=4e-3).pairs[0]
    test = particles.test
    true = pc.volumes.Atoms.known(molecule, pixel_size=3.0).build(2, 32)
    curves = {"fitted": [], "consensus": []}
    with torch.no_grad():
        z = pair.posterior_of(test.batch(np.arange(len(test)))).mean
        maps = pair.density(z[:20]), true.density(test.batch(np.arange(20)).truth)
        for shown, expected in zip(*maps, strict=True):
            curves["fitted"].append(pc.metrics.fsc(shown.numpy(), expected.numpy()))
            curves["consensus"].append(pc.metrics.fsc(consensus, expected.numpy()))
    assert pc.metrics.r2(test.truth, z.numpy()).value > 0.8
    found, before = (
        np.median([pc.metrics.resolution(c, 3.0) for c in curves[name]])
        for name in ("fitted", "consensus")
    )
    assert found <= 9.0
    assert found < before
