"""Errors of poses in space: what a gauge may take out, and what it may not."""

import numpy as np
import pytest

import pyrocryo as pc
from pyrocryo.metrics.pose3d import mean_rotation, rotation_errors, shift_errors
from pyrocryo.rotations import matrix_from_vector, quaternion_from_matrix, random_in_space

RNG = np.random.default_rng(0)
TRUE = random_in_space((4000,), RNG)
GAUGE = matrix_from_vector(np.array([0.5, -2.0, 1.0]))
MIRROR = np.diag([1.0, 1.0, -1.0])
NOISE = matrix_from_vector(np.deg2rad(5) * RNG.normal(size=(4000, 3)))
TYPICAL = 5 * 1.538  # median length of three normals


def test_random_poses():
    errors = rotation_errors(TRUE, random_in_space((4000,), RNG))
    assert errors.mean() == pytest.approx(126.48, abs=2.5)
    assert np.median(errors) == pytest.approx(132.35, abs=2.5)


@pytest.mark.parametrize("mirror", [False, True])
def test_gauge_and_hand_are_taken_out(mirror):
    seen = MIRROR @ TRUE @ MIRROR if mirror else TRUE
    errors = rotation_errors(TRUE, NOISE @ seen @ GAUGE)
    assert np.median(errors) == pytest.approx(TYPICAL, rel=0.05)


def test_lost_particles_do_not_draw_the_gauge():
    inferred = NOISE @ TRUE @ GAUGE
    upside_down = matrix_from_vector(np.array([np.pi, 0, 0]))
    inferred[::3] = inferred[::3] @ upside_down
    errors = rotation_errors(TRUE, inferred)
    assert np.median(errors[errors < 90]) == pytest.approx(TYPICAL, rel=0.06)
    assert (errors > 90).mean() == pytest.approx(1 / 3, abs=0.03)


def test_a_frame_that_turns_with_the_conformation():
    z = RNG.normal(size=(4000, 2))
    turn = np.stack([0.2 * z[:, 0], 0.1 * z[:, 1] ** 2, 0.1 * z[:, 0] * z[:, 1]], axis=-1)
    inferred = NOISE @ TRUE @ GAUGE @ matrix_from_vector(turn)
    assert np.median(rotation_errors(TRUE, inferred)) > 1.5 * TYPICAL
    framed = rotation_errors(TRUE, inferred, z)
    assert np.median(framed) == pytest.approx(TYPICAL, rel=0.06)
    # random poses stay random: the frame is scored on particles it was not fitted on
    lost = rotation_errors(TRUE, random_in_space((4000,), RNG), z)
    assert np.median(lost) == pytest.approx(132.35, abs=3)


def test_shifts_up_to_an_origin():
    true = RNG.normal(size=(4000, 2))
    noise = 0.3 * RNG.normal(size=(4000, 2))
    moved = true + noise + TRUE[:, :2] @ np.array([1.0, -2.0, 3.0])
    errors = shift_errors(true, moved, TRUE)
    assert np.median(errors) == pytest.approx(0.3 * 1.177, rel=0.05)


def test_the_mean_of_draws_of_either_sign():
    q = quaternion_from_matrix(TRUE[:5])
    draws = np.stack([quaternion_from_matrix(NOISE[n] @ TRUE[:5]) for n in range(600)])
    draws *= RNG.choice([-1, 1], size=(600, 5, 1))
    assert (np.abs((mean_rotation(draws) * q).sum(-1)) > np.cos(np.deg2rad(0.6))).all()


def test_bad_input():
    with pytest.raises(pc.InputError, match=r"expected two arrays \(N, 3, 3\)"):
        rotation_errors(TRUE, TRUE[:3])
    with pytest.raises(pc.InputError, match=r"shifts: expected \(N, 2\)"):
        shift_errors(np.zeros((5, 2)), np.zeros((5, 2)), TRUE[:4])
