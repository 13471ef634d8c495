"""All metrics of a posterior at once, seed by seed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.metrics.maps import image_correlation
from pyrocryo.metrics.mcc import rotation_angle
from pyrocryo.metrics.pose import in_plane_angle, mean_angle, pose_errors, pose_leak
from pyrocryo.metrics.pose3d import RANDOM_MEDIAN, mean_rotation, rotation_errors, shift_errors
from pyrocryo.metrics.r2 import cubic, r2
from pyrocryo.metrics.score import Score
from pyrocryo.metrics.suite import NAMES, each, row, suite
from pyrocryo.rotations import angle_between, matrix_from_quaternion

__all__ = ["groups", "report"]

log = logging.getLogger("pyrocryo")

Metric = Callable[[np.ndarray, np.ndarray, int], Score]  # of factors, latents, frames

METRICS: dict[str, Metric] = {
    "r2_cubic": lambda f, z, frames: r2(f, z, kind="cubic", frames=frames),
    "angle_deg": lambda f, z, _: rotation_angle(f, z),
}
FLIPPED = 90.0  # degrees
CLOSE = 10.0
FEWEST = 40  # images that poses are scored on, and the more the more terms α(z) has


def report(post: Any) -> dict[str, dict[str, Any]]:
    """Scores the posterior of every seed.

    The ELBO and the correlation of decoded with observed images need no truth. Where the particles
    carry ``truth``, posterior means are scored against it by all that
    :func:`~pyrocryo.metrics.suite` has, by cubic R² and by the angle between axes; particles at
    several temperatures are scored at the warmest, where every component moves. Where true
    rotations are known and lie in the plane: how much of `z` the pose explains (``pose_leak``);
    where poses were inferred, the median error after one global gauge (``pose_error_deg``) with
    the share of particles more than 90° off (``pose_flips``), and, the true conformations being
    known, the median error once the conformation-dependent frame α(z) is fitted
    (``pose_error_frame_deg``) with the share within 10° (``pose_within_10_deg``). See
    :mod:`pyrocryo.metrics.pose`. The same where rotations in space were inferred
    (:mod:`pyrocryo.metrics.pose3d`; the gauge is a rotation and a handedness), against
    ``true_rotation`` where there is one; then ``pose_error_given_deg`` is what the poses that came
    with the particles are off by, and ``shift_error_angstroms`` the median length of the error of
    inferred shifts.

    Args:
        post: What :func:`pyrocryo.posterior` gives.

    Returns:
        Metric → ``{mean, sd, per_seed, floor}``; MCC and the angle also have ``rotation_floor``.
        The ELBO (nats a particle, unweighted) has no floor. A metric that is not defined for a
        seed (a dead latent, other numbers of latents than of factors) is NaN there.
    """
    constant = post["constant_data"] if "constant_data" in groups(post) else {}
    stats = post["sample_stats"]
    elbo = np.asarray(post["log_likelihood"]["x"] + stats["log_prior"] - stats["log_q"])
    table = {"elbo": row(elbo.mean(axis=(1, 2)))}
    if "posterior_predictive" in groups(post):
        table["image_correlation"] = _reconstruction(post)
    if "rotation" in constant or "true_rotation" in constant:
        in_space = np.asarray(post["posterior"].get("pose", np.zeros(2))).shape[-1] == 4
        table |= _in_space(post, constant) if in_space else _poses(post, constant)
    if "truth" not in constant:
        return table
    truth, z = np.asarray(constant["truth"]), np.asarray(post["posterior"]["z"]).mean(axis=1)
    if "temperature" in constant:
        kelvin = np.asarray(constant["temperature"])
        warmest = kelvin == kelvin.max()
        truth, z = truth[warmest], z[:, warmest]
    factors = truth.reshape(-1, truth.shape[-1])
    codes = z.reshape(len(z), -1, z.shape[-1])
    frames = truth.shape[1] if truth.ndim == 3 else 1
    try:
        table |= suite(factors, codes, frames=frames)
    except InputError as error:  # such as of a factor that never varies; the fit is done, go on
        log.warning("no metrics of disentanglement: %s", error)
        return table | {name: row(np.full(len(codes), np.nan)) for name in (*NAMES, *METRICS)}
    return table | {
        name: _over_seeds(name, metric, factors, codes, frames) for name, metric in METRICS.items()
    }


def _over_seeds(
    name: str, metric: Metric, factors: np.ndarray, codes: np.ndarray, frames: int
) -> dict[str, Any]:
    undefined = Score(np.nan, np.nan)
    scores = each(name, lambda z: metric(factors, z, frames), codes, undefined)
    sound = [score for score in scores if score is not undefined] or [undefined]
    result = row([score.value for score in scores], float(np.mean([s.floor for s in sound])))
    if all(score.rotation_floor is not None for score in sound):
        result["rotation_floor"] = float(np.mean([score.rotation_floor for score in sound]))
    return result


def _poses(post: Any, constant: Any) -> dict[str, Any]:
    """Leak of true in-plane poses into `z`, and errors of inferred ones."""
    true = in_plane_angle(np.asarray(constant["rotation"]))
    if true is None or true.size < FEWEST:
        return {}
    frames = true.shape[1] if true.ndim == 2 else 1
    true = true.ravel()
    z = np.asarray(post["posterior"]["z"]).mean(axis=1)
    leak: Metric = lambda angle, z, frames: pose_leak(angle[:, 0], z, frames=frames)  # noqa: E731
    table = {
        "pose_leak": _over_seeds(
            "pose_leak", leak, true[:, None], z.reshape(len(z), -1, z.shape[-1]), frames
        )
    }
    if "pose" not in post["posterior"]:
        return table
    inferred = mean_angle(np.asarray(post["posterior"]["pose"])).reshape(len(z), -1)
    errors = np.array([pose_errors(true, angle, frames=frames) for angle in inferred])
    table["pose_error_deg"] = row(np.median(errors, axis=1), 90.0)
    table["pose_flips"] = row((errors > FLIPPED).mean(axis=1), 0.5)
    if "truth" in constant:
        factors = np.asarray(constant["truth"]).reshape(len(true), -1)
        if len(true) < 10 * cubic(factors[:1]).shape[1]:  # α(z) would fit the noise
            return table
        errors = [pose_errors(true, angle, factors, frames=frames) for angle in inferred]
        table["pose_error_frame_deg"] = row(np.median(errors, axis=1), 90.0)
        table["pose_within_10_deg"] = row((np.array(errors) < CLOSE).mean(axis=1), CLOSE / 180)
    return table


def _in_space(post: Any, constant: Any) -> dict[str, Any]:
    """Errors of inferred rotations and shifts."""
    true = np.asarray(constant["true_rotation" if "true_rotation" in constant else "rotation"])
    frames = true.shape[1] if true.ndim == 4 else 1
    true = true.reshape(-1, 3, 3)
    if len(true) < FEWEST:
        return {}
    found = [
        matrix_from_quaternion(mean_rotation(draws)).reshape(-1, 3, 3)
        for draws in np.asarray(post["posterior"]["pose"])
    ]
    errors = [rotation_errors(true, rotation, frames=frames) for rotation in found]
    table = {"pose_error_deg": row(np.median(errors, axis=1), RANDOM_MEDIAN)}
    if "true_rotation" in constant and "rotation" in constant:
        given = np.asarray(constant["rotation"]).reshape(-1, 3, 3)
        table["pose_error_given_deg"] = row([np.median(np.rad2deg(angle_between(true, given)))])
    factors = None
    if "truth" in constant:
        factors = np.asarray(constant["truth"]).reshape(len(true), -1)
    if factors is not None and len(true) >= 20 * cubic(factors[:1]).shape[1]:
        errors = [rotation_errors(true, rotation, factors, frames=frames) for rotation in found]
        table["pose_error_frame_deg"] = row(np.median(errors, axis=1), RANDOM_MEDIAN)
    random = (np.deg2rad(CLOSE) - np.sin(np.deg2rad(CLOSE))) / np.pi  # the Haar measure of 10°
    table["pose_within_10_deg"] = row((np.array(errors) < CLOSE).mean(axis=1), random)
    known = "true_shift" if "true_shift" in constant else "shift"
    if "shift" in post["posterior"] and known in constant:
        shift = np.asarray(post["posterior"]["shift"]).mean(axis=1).reshape(len(found), -1, 2)
        given = np.asarray(constant[known]).reshape(-1, 2)
        errors = [
            shift_errors(given, t, rotation, frames=frames)
            for t, rotation in zip(shift, found, strict=True)
        ]
        table["shift_error_angstroms"] = row(np.median(errors, axis=1))
    return table


def _reconstruction(post: Any) -> dict[str, Any]:
    """Correlation of decoded with observed images; the floor is with the next particle's."""
    observed = np.asarray(post["observed_data"]["x"])
    decoded = np.asarray(post["posterior_predictive"]["clean"])[:, 0]
    flat = (-1, *observed.shape[-2:])
    values = [image_correlation(clean.reshape(flat), observed.reshape(flat)) for clean in decoded]
    if len(observed) == 1:
        return row(values)
    other = np.roll(observed, 1, axis=0).reshape(flat)
    return row(values, image_correlation(decoded[0].reshape(flat), other))


def groups(post: Any) -> set[str]:
    """Names of the groups, in ArviZ 0.23 and 1.x."""
    found = post.groups() if callable(post.groups) else post.groups
    return {name.strip("/") for name in found}
