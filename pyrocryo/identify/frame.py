r"""What is free in the poses: a frame that turns with the conformation, and the point group.

With a uniform pose prior, :math:`(z, \phi) \to (z, \phi + \alpha(z))` changes no likelihood, as
the volume takes the turn back; nor does a turn of the molecule onto itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyrocryo.diagnose.common import AT_ONCE, models
from pyrocryo.draws import posed
from pyrocryo.errors import InputError
from pyrocryo.frames import Frame, check_body, reference_body
from pyrocryo.identify.point_group import axes_of, folds, folds_about, highest
from pyrocryo.metrics.pose import in_plane_angle, pose_errors
from pyrocryo.metrics.pose3d import rotation_errors
from pyrocryo.metrics.r2 import cubic
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.poses import Absent
from pyrocryo.svi import Fit

__all__ = ["PoseFrame", "frame"]

FEWEST = 8  # particles
SCORED = 40  # images that pose errors are taken over at least
MOST = 1000  # images looked at
STEADY = 3.0  # degrees (sd) below which a frame counts as one


@dataclass(frozen=True)
class PoseFrame:
    """What is left free in the poses of a fit, a row for each of S seeds.

    Attributes:
        poses: "known", "absent", "in the plane" or "in space".
        fixed: Whether a frame was fixed already (:func:`pyrocryo.frames.reference_body`); α is
            then that of the maps before.
        alpha_sd_deg: `(S,)` standard deviation over particles of the turn α(z) of the learned
            maps; None but for flat molecules with unknown poses.
        alpha_range_deg: `(S,)` its range over the middle 90 % of particles.
        alpha_by_latent_deg: `(S, K)` how much α changes from one standard deviation of a latent
            below its mean to one above, the others at their means.
        alpha_residual_deg: `(S,)` median deviation of the turns found from the cubic α(z).
        symmetry: `(S,)` n of the highest rotation C_n, n <= 8, that leaves the map at the median
            conformation as it is; 1 for none, 0 where it is round. About the centre, and of solid
            maps about their principal axes.
        symmetry_correlation: `(S, 7)` correlation of that map with itself turned by 360°/n, n = 2
            to 8; of solid maps about the axis where it is most symmetric.
        error_deg: `(S,)` median error of poses after one global gauge, against true ones, scored
            on one half of the particles; None where poses are known or no truth is.
        error_frame_deg: `(S,)` the same, α(z) fitted on the other half too.
        seeds: Their names.
        sentence: All of it in words.
    """

    poses: str
    fixed: bool
    alpha_sd_deg: np.ndarray | None
    alpha_range_deg: np.ndarray | None
    alpha_by_latent_deg: np.ndarray | None
    alpha_residual_deg: np.ndarray | None
    symmetry: np.ndarray
    symmetry_correlation: np.ndarray
    error_deg: np.ndarray | None
    error_frame_deg: np.ndarray | None
    seeds: tuple[int, ...]
    sentence: str


def frame(fit: Fit, particles: Particles) -> PoseFrame:
    """Says what is free in the poses, and how far the learned frame turns with the conformation.

    Nothing in the likelihood fixes α(z), so numbers for it describe one training run; seeds may
    well differ. For rotations in space there is no tool yet that finds α(z): only pose errors
    (against true poses) and the symmetry of the map are given. With C_n symmetry, angles in the
    plane are compared modulo 360°/n; rotations in space are not reduced by the point group.

        >>> print(pc.identify.frame(fit, particles.test).sentence)  # doctest: +SKIP

    Args:
        fit: A fit.
        particles: Particles that need not have been trained on; with ``rotation`` (or
            ``true_rotation``) for pose errors, whose α is one of ``truth``, or of z without.

    Raises:
        InputError: If there are fewer than 8 particles, or no fit.
    """
    if not isinstance(fit, Fit):
        raise InputError(f"fit: expected a Fit, got {type(fit).__name__}")
    pairs = models(fit, particles, FEWEST)
    particles = particles.spread(max(FEWEST, MOST // (particles.frames or 1)))
    first = fit.pairs[0]
    fixed = any(pair.frame is not None for pair in fit.pairs)
    z = [_conformations(pair, particles) for pair in fit.pairs]
    alpha = _alpha(fit, particles)
    turns = None
    if alpha is not None:
        numbers = [_turns(a, of) for a, of in zip(alpha, z, strict=True)]
        turns = [np.stack(column) for column in zip(*numbers, strict=True)]
    scores = np.stack([_symmetry(pair, of) for pair, of in zip(fit.pairs, z, strict=True)])
    symmetry = np.array([highest(row) for row in scores])
    errors = _errors(fit, particles, z, symmetry) if first.pose.latent else None
    found = PoseFrame(
        poses=_kind(first),
        fixed=fixed,
        alpha_sd_deg=None if turns is None else turns[0],
        alpha_range_deg=None if turns is None else turns[1],
        alpha_by_latent_deg=None if turns is None else turns[2],
        alpha_residual_deg=None if turns is None else turns[3],
        symmetry=symmetry,
        symmetry_correlation=scores,
        error_deg=None if errors is None else errors[0],
        error_frame_deg=None if errors is None else errors[1],
        seeds=tuple(pairs),
        sentence="",
    )
    return replace(found, sentence=_reading(found))


def _kind(pair: Pair) -> str:
    if isinstance(pair.pose, Absent):
        return "absent"
    if not pair.pose.latent:
        return "known"
    return "in the plane" if pair.pose.spatial == 2 else "in space"


def _conformations(pair: Pair, particles: Particles) -> Tensor:
    """Posterior means `(images, K)`."""
    found = []
    with torch.no_grad():
        for rows in particles.chunks(AT_ONCE):
            batch = pair.moved(particles.batch(rows))
            found.append(pair.posterior_of(batch).mean.reshape(-1, pair.dim))
    return torch.cat(found)


def _alpha(fit: Fit, particles: Particles) -> list[Frame] | None:
    """α(z) of the maps as learned, for each seed; None where there is none, or no tool."""
    try:
        check_body(fit.pairs[0], particles, None)
    except InputError:
        return None
    return [pair.frame for pair in reference_body(fit, particles).pairs]


def _turns(alpha: Callable[[Tensor], Tensor], z: Tensor) -> tuple[np.ndarray, ...]:
    """Standard deviation, range, change with each latent, residual: degrees."""
    with torch.no_grad():
        angle = torch.rad2deg(alpha(z)).double()
        low, high = angle.quantile(torch.tensor([0.05, 0.95]).to(angle))
        centre, scale = z.mean(dim=0), z.std(dim=0)
        step = torch.diag(scale)
        change = torch.rad2deg(alpha(centre + step) - alpha(centre - step))
    return (
        angle.std().cpu().numpy(),
        (high - low).cpu().numpy(),
        change.cpu().numpy(),
        np.asarray(alpha.residual_deg),
    )


def _symmetry(pair: Pair, z: Tensor) -> np.ndarray:
    density = pair.density(z.median(dim=0).values)
    if density.dim() == 2:
        return folds(density)
    solid = density.double().cpu().numpy()
    found = [folds_about(solid, axis) for axis in axes_of(solid)]
    return max(found, key=lambda scores: (scores >= 0).any() * scores.max())


def _errors(
    fit: Fit, particles: Particles, z: list[Tensor], symmetry: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Median errors of poses after a global gauge, and with α(z) fitted as well.

    In the plane, of angles modulo the turn that the point group leaves free.
    """
    name = "true_rotation" if "true_rotation" in particles.fields else "rotation"
    if name not in particles.fields:
        return None
    true, frames = particles.fields[name].reshape(-1, 3, 3), particles.frames or 1
    if len(true) < SCORED:
        return None
    flat = fit.pairs[0].pose.spatial == 2
    angle = in_plane_angle(true)
    if flat and angle is None:
        return None
    plain, framed = [], []
    for chain, of in enumerate(z):
        found = posed(fit, particles, chain=chain).rotation.reshape(-1, 3, 3)
        given = particles.fields.get("truth")
        factors = of.double().cpu().numpy() if given is None else given.reshape(len(true), -1)
        with_alpha = factors if len(true) >= 20 * cubic(factors[:1]).shape[1] else None
        if flat:
            n = max(1, int(symmetry[chain]))
            args = n * angle, n * in_plane_angle(found)
            errors = [pose_errors(*args, f, frames=frames) / n for f in (None, with_alpha)]
        else:
            errors = [rotation_errors(true, found, f, frames=frames) for f in (None, with_alpha)]
        plain.append(np.median(errors[0]))
        framed.append(np.nan if with_alpha is None else np.median(errors[1]))
    return np.array(plain), None if np.isnan(framed).any() else np.array(framed)


def _reading(found: PoseFrame) -> str:
    said = {
        "known": "The poses were given, so there is no frame to find",
        "absent": "The model has no poses: turns of the molecule are left to the conformation",
        "in the plane": "Angles in the plane are known up to a turn that may depend on the "
        "conformation",
        "in space": "Rotations are known up to one of the molecule, which may depend on the "
        "conformation (no tool here finds it), and its hand",
    }[found.poses]
    parts = [said]
    if found.alpha_sd_deg is not None:
        parts.append(_turning(found))
    elif found.poses == "in the plane":
        parts.append("there are too few particles to find it")
    parts.append(_symmetric(found))
    if found.error_deg is not None:
        told = f"poses are off by {np.median(found.error_deg):.1f}° after one global turn"
        if found.error_frame_deg is not None:
            told += (
                f", and by {np.median(found.error_frame_deg):.1f}° after one for each "
                "conformation (medians, held-out half)"
            )
        parts.append(told)
    return "; ".join(parts) + "."


def _turning(found: PoseFrame) -> str:
    """How far frames turn, in the seed where they turn most."""
    worst = int(found.alpha_sd_deg.argmax())
    sd, span = found.alpha_sd_deg[worst], found.alpha_range_deg[worst]
    where = "" if len(found.seeds) == 1 else f" (seed {found.seeds[worst]}, the most)"
    if found.fixed:
        return f"a reference body fixes it in what is reported; as learned it turned by {sd:.1f}°"
    if sd < STEADY:
        return f"it hardly turns: {sd:.1f}° sd over the particles{where}"
    most = int(np.abs(found.alpha_by_latent_deg[worst]).argmax())
    change = found.alpha_by_latent_deg[worst][most]
    return (
        f"it turns by {span:.0f}° over nine tenths of the particles ({sd:.1f}° sd){where}, most "
        f"with z{most + 1} ({abs(change):.0f}° over two sd): fix it by a reference body before "
        "comparing poses or maps of different conformations"
    )


def _symmetric(found: PoseFrame) -> str:
    highest_n, counts = np.unique(found.symmetry, return_counts=True)
    if list(highest_n) == [1]:
        about = " about its principal axes" if found.poses == "in space" else ""
        return f"no symmetry C2 to C8{about}"
    named = {0: "round", 1: "without symmetry"}
    if len(highest_n) == 1:
        n = int(highest_n[0])
        if n == 0:
            return "the map is round, so angles mean nothing"
        free = f"poses are free by {360 / n:.0f}°" if found.poses.startswith("in") else ""
        return f"the map has the symmetry C{n}" + (f", {free}" if free else "")
    told = [f"{named.get(int(n), f'C{n}')} in {c}" for n, c in zip(highest_n, counts, strict=True)]
    return f"the map is {', '.join(told)} of {len(found.seeds)} seeds"
