"""Means and widths of two sets of draws, number by number."""

import numpy as np
import pytest

from pyrocryo.agreement import apart, columns, differ


def test_numbers_have_names_frame_after_frame(rng):
    z, pose = rng.standard_normal((7, 5, 3, 2)), rng.standard_normal((7, 5, 3, 1))
    names, numbers = columns({"z": z, "pose": pose}, frames=True)
    assert names[:3] == ["z1 of frame 1", "z2 of frame 1", "z1 of frame 2"]
    assert names[6:] == [f"pose of frame {t}" for t in (1, 2, 3)]
    np.testing.assert_array_equal(numbers[..., 3], z[:, :, 1, 1])
    np.testing.assert_array_equal(numbers[..., 7], pose[:, :, 1, 0])
    names, _ = columns(
        {"pose": z[:, :, :, :1].repeat(3, -1)[:, :, 0], "shift": z[:, :, 0]}, frames=False
    )
    assert names == ["pose_x", "pose_y", "pose_z", "shift_x", "shift_y"]


def test_weighted_draws_stand_for_their_law(rng):
    """Draws of N(0, 1), weighed, are those of N(1, .5²): off by -2 of its sd, twice as wide."""
    draws = rng.standard_normal((200_000, 2, 1))
    log_weight = 0.5 * draws**2 - 0.5 * ((draws - 1) / 0.5) ** 2
    weight = np.exp(log_weight[..., 0])
    off, ratio = apart(draws, draws, weight / weight.sum(0))
    np.testing.assert_allclose(off, -2.0, atol=0.03)
    np.testing.assert_allclose(ratio, 2.0, atol=0.03)
    assert differ(off, ratio).all()


def test_where_one_draw_has_all_the_weight_nothing_agrees(rng):
    draws, weight = rng.standard_normal((10, 1, 1)), np.zeros((10, 1))
    weight[3] = 1.0
    assert differ(*apart(draws, draws, weight)).all()


@pytest.mark.parametrize(
    ("off", "ratio", "bad"),
    [
        (0.19, 1.0, False),
        (-0.21, 1.0, True),
        (0.0, 0.79, True),
        (0.0, 1.26, True),
        (np.nan, 1.0, True),
    ],
)
def test_what_passes_for_the_same(off, ratio, bad):
    assert differ(np.array([[0.0, off]]), np.array([[1.0, ratio]])).tolist() == [bad]
