"""A structure in a map: put back where it was, told from its mirror image, and bent into place."""

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.imaging import splat_map
from pyrocryo.molecules import dock
from pyrocryo.molecules.adenylate_kinase import superposition
from pyrocryo.rotations import random_in_space


def _map(positions, rng, snr=1.0, side=32, voxel_size=3.0, width=4.0, weight=None):
    count = len(positions)
    weight = torch.ones(count) if weight is None else torch.as_tensor(weight).float()
    clean = splat_map(
        torch.as_tensor(positions).float(), torch.full((count,), width), weight,
        side=side, voxel_size=voxel_size,
    ).numpy()  # fmt: skip
    return clean + rng.standard_normal(clean.shape) * clean.std() / np.sqrt(snr)


def _moved(positions, rng):
    turn, move = random_in_space((1,), rng)[0], rng.uniform(-6, 6, 3)
    return turn, (positions - positions.mean(0)) @ turn.T + move


def _rmsd(a, b):
    return np.sqrt(np.square(a - b).sum(axis=1).mean())


def _degrees(a, b):
    return np.degrees(np.arccos(np.clip((np.trace(a @ b.T) - 1) / 2, -1, 1)))


@pytest.mark.parametrize("seed", range(5))
def test_a_protein_is_put_back(seed):
    rng = np.random.default_rng(seed)
    molecule = pc.molecules.AdenylateKinase()
    turn, true = _moved(molecule.ca_open, rng)
    side = (32, 33)[seed % 2]
    start = molecule.ca_open + rng.uniform(-30, 30, 3)
    found = dock(start, _map(true, rng, side=side), 3.0)
    assert _rmsd(found.positions, true) < 0.5
    assert _degrees(found.rotation, turn) < 1.0
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    np.testing.assert_allclose(
        start @ found.rotation.T + found.translation, found.positions, atol=1e-4
    )
    assert found.correlation > found.mirror + 0.05
    assert found.correlation > found.runner_up + 0.05
    assert found.rigid == found.correlation
    assert found.amplitudes is None


def test_the_other_hand_and_symmetry_show(rng):
    molecule = pc.molecules.AdenylateKinase()
    _, true = _moved(molecule.ca_open, rng)
    mirrored = dock(true * [1, 1, -1], _map(true, rng), 3.0)
    assert mirrored.mirror > mirrored.correlation + 0.05
    corners = 20.0 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    tetrahedron = dock(corners, _map(corners, rng, snr=100.0, side=20, width=5.0), 3.0, width=5.0)
    assert tetrahedron.runner_up > tetrahedron.correlation - 0.01
    assert tetrahedron.mirror > tetrahedron.correlation - 0.01


def test_modes_bend_it_into_another_conformation():
    """Rigid, it stays 4.6 Å away, the best that can be; ten modes take most of that."""
    rng = np.random.default_rng(0)
    molecule = pc.molecules.AdenylateKinase()
    closed = molecule.centres(torch.tensor([1.5, 1.5])).double().numpy()
    _, true = _moved(closed, rng)
    modes = pc.molecules.normal_modes(molecule.ca_open, 10)
    found = dock(molecule.ca_open, _map(true, rng), 3.0, modes=modes, amplitude=3.0)
    turn, move = superposition(molecule.ca_open, true)
    assert _rmsd(molecule.ca_open @ turn.T + move, true) > 4.0
    assert _rmsd(found.positions, true) < 2.0
    assert found.correlation > found.rigid + 0.03
    bent = molecule.ca_open + np.tensordot(found.amplitudes, modes.vectors, axes=1)
    np.testing.assert_allclose(
        bent @ found.rotation.T + found.translation, found.positions, atol=1e-3
    )
    # stiff springs hold it: the restraint is in units that mean something
    stiff = pc.molecules.normal_modes(molecule.ca_open, 10, spring=1e5)
    held = dock(molecule.ca_open, _map(true, rng), 3.0, modes=stiff)
    assert np.abs(held.amplitudes).max() < 0.2 * np.abs(found.amplitudes).max()


def test_wrong_input_is_named(rng):
    molecule = pc.molecules.AdenylateKinase()
    positions = molecule.ca_open
    good = _map(positions, rng, side=16, voxel_size=6.0)
    modes = pc.molecules.normal_modes(positions, 3)
    for given, options, message in (
        (positions[:, :2], {}, r"positions: expected finite numbers .* got shape \(214, 2\)"),
        (9 * positions, {}, "positions: atoms .* from their middle, a box of 96 Å"),
        (positions, {"width": [1.0, 2.0]}, "width: expected a positive number"),
        (positions + 1, {"modes": modes}, "modes: expected those of these positions"),
        (positions, {"modes": modes, "amplitude": 0}, "amplitude: expected a positive"),
    ):
        with pytest.raises(pc.InputError, match=message):
            dock(given, good, 6.0, **options)
    with pytest.raises(pc.InputError, match="map: expected a cube"):
        dock(positions, good[0], 6.0)
