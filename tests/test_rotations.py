import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import pyrocryo as pc
from pyrocryo.rotations import euler_from_matrix, in_plane, matrix_from_euler


def test_euler_angles_are_relions_passive_zyz(rng):
    degrees = np.stack(
        [rng.uniform(-180, 180, 50), rng.uniform(0, 180, 50), rng.uniform(-180, 180, 50)], axis=-1
    )
    active = Rotation.from_euler("ZYZ", degrees, degrees=True).as_matrix()
    np.testing.assert_allclose(matrix_from_euler(degrees), np.swapaxes(active, -1, -2), atol=1e-12)


@pytest.mark.parametrize("tilt", [None, 0.0, 180.0])
def test_euler_angles_return(rng, tilt):
    degrees = rng.uniform(-180, 180, (40, 3))
    degrees[:, 1] = np.abs(degrees[:, 1]) if tilt is None else tilt
    matrix = matrix_from_euler(degrees)
    back = euler_from_matrix(matrix)
    np.testing.assert_allclose(matrix_from_euler(back), matrix, atol=1e-10)
    if tilt is None:
        np.testing.assert_allclose(back, degrees, atol=1e-8)


def test_in_plane_turns_counter_clockwise():
    np.testing.assert_allclose(in_plane(np.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    assert in_plane(np.zeros((4, 2))).shape == (4, 2, 3, 3)


def test_rounding_at_the_pole_does_no_harm(rng):
    """Tilts of 1e-7 in float32, whose third column is rounding."""
    b = matrix_from_euler(rng.uniform(-180, 180, (60, 3))).astype(np.float32)
    matrix = b @ (np.swapaxes(b, -1, -2) @ in_plane(rng.uniform(-3, 3, 60)).astype(np.float32))
    np.testing.assert_allclose(matrix_from_euler(euler_from_matrix(matrix)), matrix, atol=1e-6)


def test_random_rotations_are_uniform(rng):
    """The mean angle between two of them is π/2 + 2/π rad (126.48°), and so is their median's."""
    a, b = (pc.rotations.random_in_space((20_000,), rng) for _ in range(2))
    trace = np.einsum("nij,nij->n", a, b)
    angle = np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    assert angle.mean() == pytest.approx(126.48, abs=1)
    assert np.median(angle) == pytest.approx(132.35, abs=1)
    np.testing.assert_allclose(np.linalg.det(a), 1, atol=1e-9)
    assert np.abs(a.mean(axis=0)).max() < 0.02
