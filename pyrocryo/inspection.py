r"""What particles are like, from their images and fields alone: a dictionary of plain values.

Of up to ``most`` images, evenly spaced, with the background :math:`b` (pixels outside the circle
that fits the box) and variances of each image about its own mean:

.. math:: SNR = \frac{\overline{\mathrm{var}(x)} - \overline{\mathrm{var}(x_b)}}
                     {\overline{\mathrm{var}(x_b)}}

which is var(clean image) / σ², over all pixels of the box, if the noise is the same everywhere
and the particle stays in the circle. Where a CTF spreads it past that, it is too low; where ice
or a gradient differs between centre and corners, it is off either way.

The sign is that of :math:`T_i = \sum_r g(r) x_i(r)`, `g` a Gaussian of standard deviation .15 of
the box about its centre, less its mean, tested against 0 over images (Student's t).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from pyrocryo.errors import InputError
from pyrocryo.particles import Particles, evenly
from pyrocryo.preprocess import background
from pyrocryo.rotations import euler_from_matrix

__all__ = ["looks_dark", "sample", "summary", "views"]

CHUNK = 64  # images read at once
WIDTH = 0.15  # of the box: the Gaussian that tells the sign
SURE = 0.01  # p below which the sign counts as told
NORMALISED = 0.1  # backgrounds within this of mean 0 and deviation 1 count as normalised
BANDS, SECTORS = 8, 16  # of equal area, that views are counted in
LISTED = 20  # bad images named


def summary(particles: Particles, *, most: int = 1000) -> dict[str, Any]:
    """All that is said below, in one dictionary that JSON can hold.

    Args:
        particles: The particles, of which nothing is changed.
        most: Most images to read.

    Returns:
        ``particles``, ``frames``, ``box``, ``pixel_size_in_angstroms``, ``fields`` (name to
        shape), ``images`` (what was read, what is wrong with it, the background), ``snr``,
        ``sign``; ``views``, ``ctf``, ``shift``, ``temperature`` and ``time`` if there are any.

    Raises:
        InputError: If ``most`` is less than 1.
    """
    found: dict[str, Any] = {
        "particles": len(particles),
        "frames": particles.frames,
        "box": particles.box,
        "pixel_size_in_angstroms": particles.pixel_size,
        "fields": {name: list(value.shape[1:]) for name, value in particles.fields.items()},
    }
    found |= _pixels(particles, sample(particles, most))
    fields = particles.fields
    if "rotation" in fields:
        found["views"] = views(fields["rotation"].reshape(-1, 3, 3))
    if "ctf" in fields:
        found["ctf"] = _ctf(fields["ctf"].reshape(-1, fields["ctf"].shape[-1]))
    if "shift" in fields:
        length = np.linalg.norm(fields["shift"].reshape(-1, 2), axis=1)
        half = 0.5 * particles.box * particles.pixel_size
        found["shift"] = {
            "rms_in_angstroms": float(np.sqrt(np.mean(length**2))),
            "largest_in_angstroms": float(length.max()),
            "beyond_half_the_box": int((length > half).sum()),
        }
    if "temperature" in fields:
        values, counts = np.unique(fields["temperature"], return_counts=True)
        several = len(values) <= LISTED
        found["temperature"] = {
            "range_in_kelvin": [float(values[0]), float(values[-1])],
            "particles": dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))
            if several
            else None,
        }
    if "time" in fields:
        found["time"] = {
            "range_in_seconds": [float(fields["time"].min()), float(fields["time"].max())]
        }
    return found


def sample(particles: Particles, most: int) -> np.ndarray:
    """Positions of at most ``most`` images' worth of particles, evenly spaced."""
    if most < 1:
        raise InputError(f"images: expected at least 1 to look at, got {most}")
    return evenly(len(particles), max(1, most // (particles.frames or 1)))


def looks_dark(particles: Particles, *, most: int = 300) -> bool:
    """Whether the images say with confidence that particles are darker than their background."""
    return _pixels(particles, sample(particles, most))["sign"]["verdict"] == "dark"


def _pixels(particles: Particles, rows: np.ndarray) -> dict[str, Any]:
    """What the images at ``rows`` say."""
    box = particles.box
    corner = background(box)
    r = np.arange(box) - box // 2
    template = np.exp(-0.5 * (np.hypot(r[:, None], r) / (WIDTH * box)) ** 2)
    template -= template.mean()
    disc = np.hypot(r[:, None], r) <= box / 4
    beside = corner[:, 1:] & corner[:, :-1]  # neighbours, both in the background
    bad: dict[str, list[int]] = {"not_finite": [], "constant": []}
    table, repeated = [], []
    seen: dict[int, int] = {}  # by background, which a touched-up copy still shares
    for start in range(0, len(rows), CHUNK):
        which = rows[start : start + CHUNK]
        raw = particles.raw(which)
        names = np.repeat(particles.index[which], particles.frames or 1)
        for name, image in zip(names.tolist(), raw.reshape(-1, box, box), strict=True):
            if not np.isfinite(image).all():
                bad["not_finite"].append(name)
                continue
            if image.max() == image.min():
                bad["constant"].append(name)
                continue
            noise = image[corner]
            noise = noise if noise.min() < noise.max() else image
            twin = seen.setdefault(hash(noise.tobytes()), name)
            if twin != name:
                repeated.append([twin, name])
            x = (image.astype(np.float64) - particles.offset) / particles.scale
            y = x - x[corner].mean()
            table.append(
                (
                    x[corner].mean(),
                    x[corner].var(ddof=1) if corner.sum() > 1 else 0.0,
                    x.var(ddof=1),
                    x[disc].var(ddof=1) if disc.sum() > 1 else 0.0,
                    (template * y).sum(),
                    (y[:, 1:] * y[:, :-1])[beside].mean() if beside.any() else 0.0,
                )
            )
    numbers = np.array(table).reshape(-1, 6)
    images = {
        "read": len(rows) * (particles.frames or 1),
        **{name: {"count": len(every), "first": every[:LISTED]} for name, every in bad.items()},
        "repeated": {"count": len(repeated), "first": repeated[:LISTED]},
    }
    if not len(numbers):
        sign = {"verdict": "unclear", "t": None, "p": None}
        return {"images": images, "snr": None, "sign": sign}
    mean, noise, total, inner, signal, lag = numbers.T
    level, sd = float(mean.mean()), float(np.sqrt(noise.mean()))
    spread = float(mean.std(ddof=1)) if len(mean) > 1 else 0.0
    images |= {
        "background_mean": level,
        "background_mean_spread": spread,
        "background_sd": sd,
        "background_sd_spread": float(np.sqrt(noise).std(ddof=1)) if len(mean) > 1 else 0.0,
        "normalised": bool(
            max(abs(level), spread, abs(sd - 1)) < NORMALISED
            and np.abs(np.sqrt(noise) - 1).mean() < NORMALISED
        ),
        "neighbour_correlation": float(lag.mean() / noise.mean()) if noise.mean() > 0 else None,
    }
    return {"images": images, "snr": _snr(noise, total, inner), "sign": _sign(signal)}


def _snr(noise: np.ndarray, total: np.ndarray, inner: np.ndarray) -> dict[str, Any] | None:
    """None where there is no noise to speak of."""
    level = noise.mean()
    if level <= 1e-6 * total.mean():
        return None
    se = (total - noise).std(ddof=1) / level / np.sqrt(len(noise)) if len(noise) > 1 else None
    return {
        "box": float((total - noise).mean() / level),
        "se": None if se is None else float(se),
        "central_disc": float((inner - noise).mean() / level),
    }


def _sign(signal: np.ndarray) -> dict[str, Any]:
    """Bright or dark particles, by the mean of what the template finds in each image."""
    n = len(signal)
    if n < 2 or not signal.std() > 0:
        return {"verdict": "unclear", "t": None, "p": None, "leans": _leaning(signal.mean())}
    t = float(signal.mean() / (signal.std(ddof=1) / np.sqrt(n)))
    p = float(2 * stats.t.sf(abs(t), n - 1))
    verdict = _leaning(t) if p < SURE else "unclear"
    return {"verdict": verdict, "t": t, "p": p, "leans": _leaning(t)}


def _leaning(value: float) -> str:
    return "bright" if value > 0 else "dark"


def views(rotation: np.ndarray) -> dict[str, Any]:
    r"""How evenly rotations `(N, 3, 3)` cover directions of view, and angles in the plane.

    A view is the beam in the frame of the molecule, the third row of `A`. With the eigenvalues
    :math:`\lambda` of their second moments (1/3 each if uniform), Bingham's statistic
    :math:`\tfrac{15}{2} N \sum (\lambda - 1/3)^2` is :math:`\chi^2_5` under uniformity (Mardia &
    Jupp 2000, Eq. 10.7.1); Rayleigh's for angles in the plane is :math:`p = e^{-N R^2}`, `R` the
    length of the mean direction. Opposite views, whose images mirror each other, are one in the
    moments, and two in the areas.

    Returns:
        ``in_plane_only``, ``largest_moment``, ``uniform_p``, ``filled`` and ``filled_if_uniform``
        (shares of 128 equal areas with a view in them), ``fullest`` (views in the fullest area
        over the mean), ``angle_resultant`` and ``angle_p``.
    """
    n = len(rotation)
    beam = rotation[:, 2]
    plane = euler_from_matrix(rotation)[:, 2]
    resultant = float(np.abs(np.exp(1j * np.deg2rad(plane)).mean()))
    flat = bool((np.abs(beam[:, 2]) > 1 - 1e-6).all())
    found: dict[str, Any] = {
        "in_plane_only": flat,
        "angle_resultant": resultant,
        "angle_p": float(np.exp(-n * resultant**2)),
    }
    if flat:
        return found
    moments = np.linalg.eigvalsh(beam.T @ beam / n)
    bingham = 7.5 * n * np.square(moments - 1 / 3).sum()
    band = np.clip(((beam[:, 2] + 1) / 2 * BANDS).astype(int), 0, BANDS - 1)
    turn = np.arctan2(beam[:, 1], beam[:, 0]) / (2 * np.pi) % 1
    sector = np.clip((turn * SECTORS).astype(int), 0, SECTORS - 1)
    count = np.bincount(band * SECTORS + sector, minlength=BANDS * SECTORS)
    return found | {
        "largest_moment": float(moments[-1]),
        "moments": moments.tolist(),
        "uniform_p": float(stats.chi2.sf(bingham, 5)),
        "filled": float((count > 0).mean()),
        "filled_if_uniform": float(1 - (1 - 1 / count.size) ** n),
        "fullest": float(count.max() / count.mean()),
    }


def _ctf(ctf: np.ndarray) -> Mapping[str, Any]:
    """Ranges of CTF parameters `(N, 7)` or `(N, 8)`."""
    defocus, apart = ctf[:, :2].mean(axis=1), np.abs(ctf[:, 0] - ctf[:, 1])
    found = {
        "defocus_in_angstroms": {
            "least": float(defocus.min()),
            "median": float(np.median(defocus)),
            "most": float(defocus.max()),
        },
        "overfocused": int((defocus < 0).sum()),
        "astigmatism_in_angstroms": {
            "median": float(np.median(apart)),
            "most": float(apart.max()),
        },
    }
    names = ("voltage_in_kilovolts", "aberration_in_millimetres", "amplitude_contrast")
    for name, column in zip(names, ctf[:, 3:6].T, strict=True):
        found[name] = [float(value) for value in np.unique(column)[:LISTED]]
    phase = ctf[:, 6]
    found["phase_shift_in_degrees"] = [float(phase.min()), float(phase.max())]
    found["phase_plate"] = bool((phase != 0).any())
    if ctf.shape[1] == 8:
        found["b_factor_in_square_angstroms"] = [float(ctf[:, 7].min()), float(ctf[:, 7].max())]
    return found
