"""Does the conformation read off an image change when the image is turned?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyrocryo.diagnose.common import batches, models
from pyrocryo.diagnose.turning import EXACT, turned_batch, turned_images, turned_rotation
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["Invariance", "moved", "pose_invariance"]

INVARIANT, LEAKING = 0.1, 0.2  # of the distance between two random particles
TURNING_DEG = 10.0  # that poses may be off where they turn along
QUANTILES = (0.5, 0.9, 0.99)
FEWEST = 8
MEANINGFUL = 1e-6  # rms distance between particles below which z says nothing


@dataclass(frozen=True)
class Invariance:
    r"""How far `z` moves when particles are turned; arrays `(seeds, angles)`.

    Attributes:
        seeds: Seeds.
        angles: Turns in degrees.
        nrms: rms |z − z'| over the rms distance of two random particles: 0 invariant, 1 as far
            apart as strangers. NaN where `z` is the same for all.
        control: The same between particles as they are and turned there and back, the pose left
            alone: what resampling does. Exactly 0 for quarter turns, which only move pixels.
        leak: What resampling does not explain, :math:`\sqrt{nrms^2 - control^2}`, 0 at least.
        in_sd: `(seeds, angles, 3)`: quantiles 50, 90 and 99 % of |z − z'|, rms over the latents,
            each in units of its posterior standard deviation.
        r2: Share of the variance of z' that `z` is right about, 1 for an invariant guide.
        pose_error_deg: Where poses are inferred, the median angle between the pose of a turned
            particle and the turned pose of the particle; NaN where they are known.
        verdict: 'invariant' (every seed leaks less than .1 at every angle), 'leaking' (the median
            seed leaks more than .2 at some angle), 'partly invariant', or 'empty'.
        sentence: The same with its numbers.
    """

    seeds: tuple[int, ...]
    angles: tuple[float, ...]
    nrms: np.ndarray
    control: np.ndarray
    leak: np.ndarray
    in_sd: np.ndarray
    r2: np.ndarray
    pose_error_deg: np.ndarray
    verdict: str
    sentence: str

    def rows(self) -> list[dict[str, float]]:
        """One flat row of numbers for each seed and angle."""
        return [
            {
                "seed": seed,
                "angle_deg": angle,
                "nrms": float(self.nrms[s, a]),
                "control": float(self.control[s, a]),
                "leak": float(self.leak[s, a]),
                **{
                    f"in_sd_{100 * q:.0f}": float(value)
                    for q, value in zip(QUANTILES, self.in_sd[s, a], strict=True)
                },
                "r2": float(self.r2[s, a]),
                "pose_error_deg": float(self.pose_error_deg[s, a]),
            }
            for s, seed in enumerate(self.seeds)
            for a, angle in enumerate(self.angles)
        ]


def pose_invariance(
    fit: Fit | Pair,
    particles: Particles,
    angles: Sequence[float] = (90.0,),
    *,
    edelberg: bool = False,
) -> Invariance:
    r"""Turns particles in their plane and compares the `z` that is read off them before and after.

    .. math:: NRMS = \sqrt{\overline{|z_i - z'_i|^2} \big/ \overline{|z_i - z_j|^2}_{i \ne j}}

    with `z` the posterior mean. The image turns, and with it the known rotation, the shift and
    the astigmatism (:func:`pyrocryo.diagnose.turned_batch`), so that it is as good an image of the
    same conformation, and an exact posterior does not change: any difference is the encoder's
    error, and `z` holds something of the pose (Edelberg & Lederman 2023; Klindt et al. 2024,
    section 2.2). A frame is turned like an image of its own.

    Quarter turns move pixels and compute nothing; other angles interpolate, and ``control`` says
    what that alone does.

    Example::

        check = pc.diagnose.pose_invariance(fit, particles.test, angles=(90, 180, 30))
        print(check.sentence)

    Args:
        fit: A fit, or one trained pair.
        particles: Particles to turn.
        angles: Degrees, counter-clockwise.
        edelberg: Leave CTF and shift as they were, as the authors' code does. An exact posterior
            then changes too, as a molecule looked for a pixel away looks like another
            conformation (NRMS .35 at 90° in place of .008 with shifts of up to a pixel).

    Raises:
        InputError: If an angle turns nothing, there are fewer than 8 particles, or the pair does
            not fit them.
    """
    angles = _checked(angles)
    pairs = models(fit, particles, FEWEST)
    rows = [
        [_compared(pair, particles, angle, not edelberg, start) for angle in angles]
        for pair in pairs.values()
        for start in [_read(pair, particles, lambda batch: batch)]
    ]
    nrms, control, r2, pose_error, *in_sd = np.moveaxis(np.array(rows), -1, 0)
    leak = np.sqrt(np.maximum(nrms**2 - control**2, 0.0))
    verdict, sentence = _verdict(angles, nrms, control, leak, pose_error)
    return Invariance(
        tuple(pairs), angles, nrms, control, leak, np.stack(in_sd, axis=-1), r2, pose_error,
        verdict, sentence,
    )  # fmt: skip


def _checked(angles: Sequence[float]) -> tuple[float, ...]:
    angles = tuple(float(angle) for angle in np.atleast_1d(angles))
    if not angles:
        raise InputError("angles: expected at least one, got none")
    for angle in angles:
        if not np.isfinite(angle) or abs((angle + 180) % 360 - 180) < EXACT:
            raise InputError(f"angles: expected degrees that turn something, got {angle:g}")
    return angles


Read = tuple[np.ndarray, np.ndarray, torch.Tensor]


def _read(pair: Pair, particles: Particles, change: Callable[[Any], Any]) -> Read:
    """Means and standard deviations of `z`, `(images, K)`, and rotations `(images, 3, 3)`."""
    parts = []
    with torch.no_grad():
        for batch in batches(pair, particles):
            batch = change(batch)
            posterior = pair.posterior_of(batch)
            rotation = pair.placed(batch)[0].reshape(-1, 3, 3)
            z = (posterior.mean, posterior.variance.sqrt())
            parts.append((*(v.reshape(-1, pair.dim).double().cpu() for v in z), rotation.cpu()))
    mean, sd, rotation = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean.numpy(), sd.numpy(), rotation


def _compared(
    pair: Pair, particles: Particles, angle: float, optics: bool, start: Read
) -> list[float]:
    """NRMS, control, R², pose error and the quantiles of one seed and angle."""
    z, sd, rotation = start
    turned, _, seen = _read(pair, particles, lambda b: turned_batch(b, angle, optics=optics))
    nrms, r2, *in_sd = moved(z, sd, turned)
    control = 0.0
    if abs(angle - 90 * round(angle / 90)) >= EXACT:

        def there_and_back(batch: Any) -> Any:
            return batch._replace(images=turned_images(turned_images(batch.images, angle), -angle))

        back, _, _ = _read(pair, particles, there_and_back)
        control = moved(z, sd, back)[0]
    error = np.nan
    if pair.pose.latent:
        error = _degrees_apart(seen, turned_rotation(rotation, angle)).median().item()
    return [nrms, control, r2, error, *in_sd]


def moved(z: np.ndarray, sd: np.ndarray, turned: np.ndarray) -> tuple[float, ...]:
    """NRMS, R² and the quantiles in units of ``sd``, of `z` `(N, K)` and what became of it."""
    apart = np.sqrt(2 * z.var(axis=0, ddof=1).sum())  # rms over all pairs
    apart = apart if apart > MEANINGFUL else np.nan
    nrms = np.sqrt(np.square(turned - z).sum(-1).mean()) / apart
    spread = np.square(turned - turned.mean(0)).sum()
    r2 = 1 - np.square(z - turned).sum() / spread if spread > MEANINGFUL**2 else np.nan
    in_sd = np.quantile(np.sqrt(np.square((turned - z) / sd).mean(-1)), QUANTILES)
    return float(nrms), float(r2), *map(float, in_sd)


def _degrees_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    r"""Angles between rotations `(..., 3, 3)`, :math:`|A - B|_F = 2 \sqrt2 \sin(\theta / 2)`."""
    half = (a - b).double().square().sum((-1, -2)).sqrt() / 8**0.5
    return (2 * half.clamp(max=1.0).asin()).rad2deg()


def _verdict(
    angles: tuple[float, ...],
    nrms: np.ndarray,
    control: np.ndarray,
    leak: np.ndarray,
    pose_error: np.ndarray,
) -> tuple[str, str]:
    if np.isnan(nrms).any():
        return "empty", (
            "Nothing to say: z is the same for every particle, so turning cannot change it."
        )
    typical = np.median(leak, axis=0)
    worst = int(typical.argmax())
    moved, alone = nrms[:, worst], np.median(control[:, worst])
    numbers = (
        f"turned by {angles[worst]:g}°, z moves by {np.median(moved):.2g} of the distance between "
        f"two random particles (resampling alone: {alone:.2g}; median of {len(nrms)} "
        f"seed{'s' * (len(nrms) > 1)}, worst {moved.max():.2g})"
    )
    if not np.isnan(pose_error).all():
        off = pose_error.max()
        along = "and poses turn along" if off < TURNING_DEG else "but poses do not turn along"
        numbers += f", {along} (off by {off:.2g}°)"
    if typical[worst] > LEAKING:
        return "leaking", (
            f"The pose leaks into z: {numbers}. Do not read z as conformation; use an encoder "
            "that turns the image upright first."
        )
    if leak.max() < INVARIANT:
        return "invariant", f"z does not depend on how the molecule lies in the image: {numbers}."
    return "partly invariant", (
        f"z depends a little on how the molecule lies in the image: {numbers}. Differences of z "
        "smaller than that may be differences of pose."
    )
