"""Anybody's encoder, given each image once more, turned by 90°."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.diagnose.dependence import ALPHA, Dependence
from pyrocryo.diagnose.invariance import INVARIANT, LEAKING, moved
from pyrocryo.diagnose.leak import FEWEST, IN_PLANE_WAVES, leak
from pyrocryo.diagnose.turning import turned_batch
from pyrocryo.errors import InputError
from pyrocryo.particles import Particles

__all__ = ["Reencoded", "reencoded"]

MATTERS = 0.05  # of the variance of z, that a turn moves it by systematically
KEPT = 0.5  # of the variance of z, that an encoder which reads images finds again


@dataclass(frozen=True)
class Reencoded:
    r"""How `z` moves when images are turned by 90°, with shift and CTF, and encoded again.

    Attributes:
        particles: How many were turned.
        nrms: rms :math:`|z - z'|` over the rms distance of two random particles.
        kept: Share of the variance of `z` that a linear map of `z'` explains, fitted on one half
            of the particles and scored on the other.
        in_sd: Quantiles 50, 90 and 99 % of :math:`|z - z'|` in units of the posterior standard
            deviation, rms over latents.
        by_turn: What the turn in the plane explains of :math:`z' - z` among particles seen from
            about the same direction; None if nothing moves.
        systematic: That, at most, as a share of the variance of `z`; 0 if it may be chance.
        verdict: 'invariant' (nrms below .1), 'reads the pose' (``systematic`` of .05 or more),
            'by heart' (nrms above .2 and ``kept`` below .5), 'noisy' (nrms above .2), 'moves a
            little', or 'empty'.
        sentence: In words.
    """

    particles: int
    nrms: float
    kept: float
    in_sd: tuple[float, float, float]
    by_turn: Dependence | None
    systematic: float
    verdict: str
    sentence: str


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
    two ways to fall short. With `z` = conformation + f(turn) + noise, the conformation cancels in

    .. math:: z' - z = f(\psi + 90°) - f(\psi) + \text{noise},

    and what :math:`\psi` explains of it is an encoder that takes turns for motions. Where turns in
    the plane are uniform, turned images are also new images of the kind it was trained on: an
    encoder that says something else of them knows its training images by heart. (CryoDRGN 4.3.1
    with its defaults but 256 wide, 56 epochs on 10 000 images of two arms in space, SNR .3: on
    those images `z` explains .91 of the truth, on turned ones and on newly simulated ones .00;
    NRMS .75.) Its `z` may be right all the same, as a table's would be that the decoder has filled
    in; but nothing is read off an image that was not there, and how sure it is says nothing.

    Turns in the plane leave the direction of view as it is: what an encoder makes of that is not
    seen here.

    Args:
        encode: Means and standard deviations `(B, K)` of a batch of particles.
        particles: With ``rotation``, and every field that the encoder looks at.
        permutations: Behind the p-value.
        seed: Draws them.

    Raises:
        InputError: If there are fewer than 50 particles, or no poses.
    """
    if len(particles) < FEWEST:
        raise InputError(f"particles: expected {FEWEST} or more, got {len(particles)}")
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
    nrms, _, *in_sd = moved(z, sd, other)
    by_turn, systematic = None, 0.0
    if np.isfinite(nrms) and nrms > 1e-6:
        found = leak(other - z, particles.rotation, permutations=permutations, seed=seed)
        by_turn = next((test for test in found.tests if test.how == IN_PLANE_WAVES), None)
        if by_turn is not None and by_turn.p <= ALPHA:
            systematic = float(by_turn.total * (other - z).var(0).sum() / z.var(0).sum())
    kept = _kept(z, other)
    verdict, reading = _told(len(z), nrms, in_sd[0], kept, systematic)
    return Reencoded(len(z), nrms, kept, tuple(in_sd), by_turn, systematic, verdict, reading)


def _kept(z: np.ndarray, other: np.ndarray) -> float:
    """Held-out R² of `z` by a linear map of ``other``, 0 at least."""
    half = len(z) // 2
    seen = np.concatenate([other, np.ones((len(z), 1))], axis=1)
    fitted = seen[half:] @ np.linalg.lstsq(seen[:half], z[:half], rcond=None)[0]
    spread = np.square(z[half:] - z[half:].mean(0)).sum()
    return float(max(0.0, 1 - np.square(z[half:] - fitted).sum() / spread)) if spread else 0.0


def _told(n: int, nrms: float, in_sd: float, kept: float, systematic: float) -> tuple[str, str]:
    if np.isnan(nrms):
        return "empty", "z is the same for every particle, so turning cannot change it"
    numbers = (
        f"turned by 90° and encoded again, z moves by {nrms:.2g} of the distance between two "
        f"random particles, half of them by more than {in_sd:.2g} posterior standard deviations "
        f"({n} particles)"
    )
    if systematic >= MATTERS:
        return "reads the pose", (
            f"the encoder takes turns of the image for motions: {numbers}, and up to "
            f"{100 * systematic:.2g} % of the variance of z go with the turn"
        )
    if nrms < INVARIANT:
        return "invariant", f"z does not depend on how the molecule lies in the image: {numbers}"
    if nrms > LEAKING and kept < KEPT:
        return "by heart", (
            f"the encoder knows its images by heart, or reads noise: {numbers}, and what it says "
            f"of turned images tells {100 * kept:.2g} % of z. z may be right as a table is; the "
            "encoder is of no use for other images"
        )
    verdict = "noisy" if nrms > LEAKING else "moves a little"
    return verdict, f"{numbers}; turned images tell {100 * kept:.2g} % of z"
