r"""Rotations of the plane and of space.

Convention, everywhere in pyrocryo: a rotation `A` takes the molecule's frame to the image's frame:
a point `p` is seen at `A p`, and the beam runs along the third axis of the image frame. This is
RELION's (passive) matrix :math:`A = R_z(\psi) R_y(\theta) R_z(\phi)` with
(φ, θ, ψ) = (rlnAngleRot, rlnAngleTilt, rlnAnglePsi).
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "euler_from_matrix",
    "in_plane",
    "matrix_from_euler",
    "random_in_plane",
    "random_in_space",
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
    """Rotations about the beam, `(*shape, 3, 3)`, uniform within ± ``max_angle`` (degrees)."""
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
