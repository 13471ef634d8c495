r"""Rotations of the plane and of space.

Convention, everywhere in pyrocryo: a rotation `A` takes the molecule's frame to the image's frame:
a point `p` is seen at `A p`, and the beam runs along the third axis of the image frame. This is
RELION's (passive) matrix :math:`A = R_z(\psi) R_y(\theta) R_z(\phi)` with
(φ, θ, ψ) = (rlnAngleRot, rlnAngleTilt, rlnAnglePsi).

Quaternions are unit vectors `(w, x, y, z)`, the scalar first, and active: the turn by θ about the
unit axis `n`, counter-clockwise to who looks against `n`, is
:math:`(\cos\theta/2, n \sin\theta/2)`, and `q` and `-q` are one rotation.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

__all__ = [
    "angle_between",
    "euler_from_matrix",
    "in_plane",
    "matrix_from_euler",
    "matrix_from_quaternion",
    "matrix_from_vector",
    "quaternion_from_matrix",
    "random_in_plane",
    "random_in_space",
    "vector_from_matrix",
]


def in_plane(angle: np.ndarray) -> np.ndarray:
    """Rotations `(..., 3, 3)` about the beam, counter-clockwise by ``angle`` (rad) `(...,)`."""
    angle = np.asarray(angle, dtype=np.float64)
    matrix = np.zeros((*angle.shape, 3, 3))
    c, s = np.cos(angle), np.sin(angle)
    matrix[..., 0, 0], matrix[..., 0, 1] = c, -s
    matrix[..., 1, 0], matrix[..., 1, 1] = s, c
    matrix[..., 2, 2] = 1.0
    return matrix


def random_in_plane(
    shape: tuple[int, ...], rng: np.random.Generator, max_angle: float = 180.0
) -> np.ndarray:
    """Rotations about the beam, `(*shape, 3, 3)`, uniform within ± ``max_angle`` (degrees).

    ``rng`` draws them.
    """
    most = np.deg2rad(max_angle)
    return in_plane(rng.uniform(-most, most, size=shape))


def random_in_space(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Uniform rotations, `(*shape, 3, 3)`: a uniform direction of view, then a uniform turn."""
    rot, psi = rng.uniform(-180, 180, size=(2, *shape))
    tilt = np.rad2deg(np.arccos(rng.uniform(-1, 1, size=shape)))
    return matrix_from_euler(np.stack([rot, tilt, psi], axis=-1))


def matrix_from_euler(degrees: np.ndarray) -> np.ndarray:
    r"""RELION's matrix `A` from Euler angles.

    Each factor is passive (it turns the axes, not the point):
    :math:`R_z(a) = ((\cos a, \sin a, 0), (-\sin a, \cos a, 0), (0, 0, 1))` and
    :math:`R_y(b) = ((\cos b, 0, -\sin b), (0, 1, 0), (\sin b, 0, \cos b))`.

    Args:
        degrees: `(..., 3)`: rot, tilt, psi.

    Returns:
        `(..., 3, 3)`.
    """
    rot, tilt, psi = np.moveaxis(np.deg2rad(np.asarray(degrees, dtype=np.float64)), -1, 0)
    about_y = np.zeros((*tilt.shape, 3, 3))
    about_y[..., 0, 0] = about_y[..., 2, 2] = np.cos(tilt)
    about_y[..., 0, 2], about_y[..., 2, 0] = -np.sin(tilt), np.sin(tilt)
    about_y[..., 1, 1] = 1.0
    return in_plane(-psi) @ about_y @ in_plane(-rot)


def euler_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Euler angles (rot, tilt, psi) in degrees, `(..., 3)`, of RELION matrices `(..., 3, 3)`.

    Tilt lies in [0, 180]; where it is 0 or 180 only psi ± rot is defined, and rot is set to 0.
    """
    m = np.asarray(matrix, dtype=np.float64)
    sine = np.hypot(m[..., 2, 0], m[..., 2, 1])
    tilt = np.arctan2(sine, m[..., 2, 2])
    flat = sine < 1e-9
    rot = np.where(flat, 0.0, np.arctan2(m[..., 2, 1], m[..., 2, 0]))
    # psi from what is left of A once rot is undone: right at the poles too, where the third column
    # holds nothing but rounding
    c, s = np.cos(rot), np.sin(rot)
    psi = np.arctan2(m[..., 0, 1] * c - m[..., 0, 0] * s, m[..., 1, 1] * c - m[..., 1, 0] * s)
    return np.rad2deg(np.stack([rot, tilt, psi], axis=-1))


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotations `(..., 3, 3)` of quaternions `(..., 4)`, the scalar first, of any length."""
    q = np.asarray(quaternion, dtype=np.float64)
    found = Rotation.from_quat(np.roll(q, -1, axis=-1).reshape(-1, 4))  # it has the scalar last
    return found.as_matrix().reshape(*q.shape[:-1], 3, 3)


def quaternion_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Unit quaternions `(..., 4)` of rotations `(..., 3, 3)`, with a scalar part of 0 or more."""
    m = np.asarray(matrix, dtype=np.float64)
    q = Rotation.from_matrix(m.reshape(-1, 3, 3)).as_quat(canonical=True)
    return np.roll(q, 1, axis=-1).reshape(*m.shape[:-2], 4)


def matrix_from_vector(vector: np.ndarray) -> np.ndarray:
    """Rotations `(..., 3, 3)` by |v| (rad) about `v`, of rotation vectors `v` `(..., 3)`."""
    v = np.asarray(vector, dtype=np.float64)
    return Rotation.from_rotvec(v.reshape(-1, 3)).as_matrix().reshape(*v.shape[:-1], 3, 3)


def vector_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Rotation vectors `(..., 3)` (rad, at most π long) of rotations `(..., 3, 3)`."""
    m = np.asarray(matrix, dtype=np.float64)
    return Rotation.from_matrix(m.reshape(-1, 3, 3)).as_rotvec().reshape(*m.shape[:-2], 3)


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles (rad) `(...,)` of the turns that take rotations `a` `(..., 3, 3)` to `b`.

    Through quaternions and an arc tangent: exact to rounding at 0 and at π, where the arc cosine
    of the trace is good to 1e-8 only.
    """
    turn = np.asarray(b) @ np.swapaxes(np.asarray(a), -1, -2)
    return Rotation.from_matrix(turn.reshape(-1, 3, 3)).magnitude().reshape(turn.shape[:-2])
