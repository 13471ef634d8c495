"""Anybody's encoder, given each image once more, turned by 90°."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.diagnose.dependence import Dependence
from pyrocryo.diagnose.invariance import FEWEST, INVARIANT, LEAKING, moved
from pyrocryo.diagnose.leak import FEWEST as FEWEST_POSES
from pyrocryo.diagnose.leak import PoseLeak, leak
from pyrocryo.diagnose.turning import turned_batch
from pyrocryo.errors import InputError
from pyrocryo.particles import Particles

__all__ = ["Reencoded", "reencoded"]

MATTERS = 0.05  # of the variance of z, that the pose moves it by systematically


@dataclass(frozen=True)
class Reencoded:
    r"""How `z` moves when images are turned by 90°, with shift and CTF, and encoded again.

    Attributes:
        particles: How many were turned.
        nrms: rms :math:`|z - z'|` over the rms distance of two random particles.
        r2: Share of the variance of `z'` that `z` is right about.
        in_sd: Quantiles 50, 90 and 99 % of :math:`|z - z'|` in units of the posterior standard
            deviation, rms over latents.
        by_pose: What the pose explains of :math:`z' - z`.
        systematic: That, as a share of the variance of `z`: of a `z` that is a conformation plus
            a function of the pose it is the mean square of the change of that function.
        verdict: 'invariant' (nrms below .1), 'reads the pose' (``systematic`` of .05 or more,
            beyond chance), 'noisy' (nrms above .2, but hardly by the pose), or 'moves a little'.
        reading: In words.
    """

    particles: int
    nrms: float
    r2: float
    in_sd: tuple[float, float, float]
    by_pose: PoseLeak | None
    systematic: float
    verdict: str
    reading: str


def reencoded(
    encode: Callable[[Any], tuple[Tensor, Tensor]],
    particles: Particles,
    *,
    permutations: int = 499,
    seed: int = 0,
) -> Reencoded:
    r"""Turns images by 90° and compares the `z` that an encoder reads off them before and after.

    An exact posterior does not change, as the turned image is as good an image of the same
    conformation (Edelberg & Lederman 2023; :func:`pyrocryo.diagnose.pose_invariance`). There are
    two ways to fall short, and two remedies. With `z` = conformation + f(pose) + noise,

    .. math:: z' - z = f(R_{90} A) - f(A) + \text{noise},

    in which the conformation cancels, and with it all that comes from poses that follow the
    conformation: what the pose explains of :math:`z' - z` is the encoder's doing. What it does not
    explain is an encoder that reads noise, or knows its training images by heart.

    Turns in the plane leave the direction of view as it is. What an encoder makes of that is not
    seen here.

    Args:
        encode: Means and standard deviations `(B, K)` of a batch of particles.
        particles: With ``rotation``, and every field that the encoder looks at.
        permutations: Behind the p-values.
        seed: Draws them.

    Raises:
        InputError: If there are fewer than 50 particles, or no poses.
    """
    if len(particles) < max(FEWEST, FEWEST_POSES):
        raise InputError(
            f"particles: expected {FEWEST_POSES} particles or more, got {len(particles)}"
        )
    if "rotation" not in particles.fields:
        raise InputError("rotation: these particles have no poses")
    parts = []
    with torch.no_grad():
        for rows in particles.chunks(256):
            batch = particles.batch(rows)
            parts.append((*encode(batch), encode(turned_batch(batch, 90.0))[0]))
    z, sd, other = (torch.cat(part).double().numpy() for part in zip(*parts, strict=True))
    if not (np.isfinite(z).all() and np.isfinite(other).all()):
        raise InputError("encode: gives numbers that are not finite")
    nrms, r2, *in_sd = moved(z, sd, other)
    by_pose, systematic = None, 0.0
    if np.isfinite(nrms) and nrms > 1e-6:
        by_pose = leak(other - z, particles.rotation, permutations=permutations, seed=seed)
        if by_pose.verdict != "none seen":
            share = max(test.total for test in _found(by_pose))
            systematic = float(share * (other - z).var(axis=0).sum() / z.var(axis=0).sum())
    verdict, reading = _told(len(z), nrms, in_sd[0], systematic)
    return Reencoded(len(z), nrms, r2, tuple(in_sd), by_pose, systematic, verdict, reading)


def _found(by_pose: PoseLeak) -> tuple[Dependence, ...]:
    return tuple(test for test in by_pose.tests if len(by_pose.tests) * test.p <= 0.05) or (
        by_pose.tests
    )


def _told(n: int, nrms: float, in_sd: float, systematic: float) -> tuple[str, str]:
    if np.isnan(nrms):
        return "empty", "z is the same for every particle, so turning cannot change it"
    numbers = (
        f"turned by 90° and encoded again, z moves by {nrms:.2g} of the distance between two "
        f"random particles (half of them by more than {in_sd:.2g} posterior standard deviations; "
        f"{n} particles)"
    )
    if systematic >= MATTERS:
        return "reads the pose", (
            f"the encoder takes turns of the image for motions: {numbers}, and as the pose has "
            f"it: that part is {100 * systematic:.2g} % of the variance of z"
        )
    if nrms < INVARIANT:
        return "invariant", f"z does not depend on how the molecule lies in the image: {numbers}"
    little = (
        f"{100 * systematic:.2g} % of the variance of z" if systematic else "nothing that is seen"
    )
    if nrms > LEAKING:
        return "noisy", (
            f"the encoder is not sure of z: {numbers}, but hardly as the pose has it ({little}): "
            "it reads noise, or knows images by heart"
        )
    return "moves a little", f"{numbers}, of which the pose explains {little}"
