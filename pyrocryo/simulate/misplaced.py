"""Particles whose poses are known roughly only, as after a first refinement."""

from __future__ import annotations

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.particles import Particles
from pyrocryo.rotations import matrix_from_vector

__all__ = ["misplaced"]


def misplaced(
    particles: Particles, *, degrees: float, angstroms: float = 0.0, seed: int = 0
) -> Particles:
    r"""The same particles with wrong poses, and the true ones kept to score against.

    .. math:: A = e^{[\omega]_\times} A^*, \quad \omega \sim N(0, s^2 I), \quad
              t = t^* + N(0, \sigma^2 I)

    The angle of a turn is 1.54 `s` typically (its median), so that 6.5° about each axis make poses
    that are off by 10°.

    Args:
        particles: With ``rotation``, and ``shift`` if shifts are to be wrong.
        degrees: `s`, about each axis.
        angstroms: σ, along each axis.
        seed: Seed of everything drawn.

    Returns:
        Particles with ``true_rotation`` (and ``true_shift``) beside ``rotation`` and ``shift``.
    """
    if not degrees >= 0 or not angstroms >= 0:
        raise InputError(
            f"degrees, angstroms: expected 0 or more, got {degrees:g} and {angstroms:g}"
        )
    for name in ("rotation", *(["shift"] if angstroms else [])):
        if name not in particles.fields:
            raise InputError(f"{name}: these particles have none to make wrong")
    rng = np.random.default_rng(seed)
    true = particles.rotation
    omega = np.deg2rad(degrees) * rng.standard_normal((*true.shape[:-2], 3))
    fields = {"rotation": matrix_from_vector(omega) @ true, "true_rotation": true}
    if "shift" in particles.fields:
        off = angstroms * rng.standard_normal(particles.shift.shape)
        fields |= {"shift": particles.shift + off, "true_shift": particles.shift}
    return particles.having(**fields)
