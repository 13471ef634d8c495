"""Poses as unit vectors, against scipy's rotations."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pyrocryo.unit_vectors import angles, between, mean, one_side


def _plane(angle):
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _scipy(q):
    return Rotation.from_quat(np.roll(q.numpy(), -1, axis=-1))  # it has the scalar last


def _space(n, rng, spread=None):
    if spread is None:
        turns = Rotation.random(n, rng=rng)
    else:
        turns = Rotation.from_rotvec(spread * rng.standard_normal((n, 3)))
    return torch.as_tensor(np.roll(turns.as_quat(), 1, axis=-1))


def test_turns_in_the_plane(rng):
    a, b = torch.as_tensor(rng.uniform(-3, 3, (2, 50)))
    gap = torch.remainder(b - a + torch.pi, 2 * torch.pi) - torch.pi
    torch.testing.assert_close(angles(_plane(a), _plane(b)).squeeze(-1), gap)
    torch.testing.assert_close(between(_plane(a), _plane(b)), _plane(b - a))


def test_turns_in_space_are_scipys(rng):
    p, q = _space(50, rng), _space(50, rng)
    expected = (_scipy(q) * _scipy(p).inv()).as_rotvec()
    np.testing.assert_allclose(angles(p, q), expected, atol=1e-9)
    np.testing.assert_allclose(angles(p, -q), expected, atol=1e-9)


def test_mean_rotations_are_scipys_whatever_their_signs(rng):
    q = _space(40, rng, spread=0.4)
    sign = torch.as_tensor(rng.choice([-1.0, 1.0], (40, 1)))
    expected = _scipy(q).mean().as_matrix()
    np.testing.assert_allclose(_scipy(mean(q)).as_matrix(), expected, atol=1e-9)
    np.testing.assert_allclose(_scipy(mean(sign * q)).as_matrix(), expected, atol=1e-9)


def test_mean_angles_go_round():
    near = torch.tensor([3.0, -3.0]).double()
    torch.testing.assert_close(mean(_plane(near)), _plane(torch.tensor(torch.pi).double()))
    opposite = _plane(torch.tensor([0.5, 0.5 + torch.pi]).double())
    assert mean(opposite).norm().item() == pytest.approx(1)


def test_quaternions_have_another_side_and_angles_have_none(rng):
    q = _space(30, rng)
    near = one_side(q, q[:1])
    assert ((near * q[0]).sum(-1) >= 0).all()
    np.testing.assert_allclose(_scipy(near).as_matrix(), _scipy(q).as_matrix(), atol=1e-12)
    around = _plane(torch.linspace(0, 6, 7).double())
    assert one_side(around, around[:1]) is around
