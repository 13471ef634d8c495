r"""Particles in time: trajectories of molecules, single shots after mixing, and tilted pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.particles import Particles
from pyrocryo.rotations import in_plane, matrix_from_vector
from pyrocryo.simulate.images import counted, imaged, reflected
from pyrocryo.simulate.steps import SHAPES, Shape, drawn, framed, normal, numbers, stamps

__all__ = ["single_shot", "tilt_pairs", "time_resolved"]

Boundary = Literal["reflected", "ar", "free"]
BOUNDARIES = get_args(Boundary)
FASTEST = 0.5  # s


def time_resolved(
    molecule: Any,
    n: int,
    seed: int = 0,
    *,
    scale: float = 0.5,
    frames: int = 2,
    interval: float | tuple[float, float] = 1.0,
    steps: Shape | Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = "laplace",
    boundary: Boundary = "reflected",
    correlation: float = 0.0,
    turn: float | None = None,
    **imaging: Any,
) -> Particles:
    r"""Frames of molecules that move by sparse steps, each frame in a pose of its own.

    :math:`z_1 \sim N(0, I)`, and, with steps :math:`\Delta` of variance
    :math:`2 b^2 \Delta t` (:math:`\Delta t` in units of the mean interval),

    - ``reflected``: :math:`z_{t+1} = z_t + \Delta`, folded back into ± 3. Not stationary: what is
      folded relaxes to the uniform law, of variance 3, so late frames are wider than early ones.
      Var(z) over all frames, and of the last, for Laplace steps (.99 in the first; 10⁵ molecules):

      ======  ==========  ==========  ==========  ==========
      frames  b = 1       .5          .25         .1
      ======  ==========  ==========  ==========  ==========
      2       1.50, 2.01  1.19, 1.39  1.05, 1.11  1.00, 1.01
      8       2.51, 2.97  1.98, 2.61  1.36, 1.69  1.06, 1.12
      ======  ==========  ==========  ==========  ==========

      Folding takes from the steps too: their variance is 1.34 at b = 1 (2 without), .46 at .5
      (.50), and their excess kurtosis 2.3 at .5 and T = 8 (3).
    - ``ar``: :math:`z_{t+1} = a z_t + \Delta \sqrt{(1 - a^2) / 2 b^2 \Delta t}` with
      :math:`a = (1 - 2 b^2)^{\Delta t / 2}`, so that Var(z) = 1 at all times and the innovation
      over a mean interval has the variance of a step; this needs b < .707. The variance is
      stationary, and with Gaussian steps all of the law: an Ornstein-Uhlenbeck process that
      relaxes at the rate :math:`-\frac12 \ln(1 - 2 b^2)` in a mean interval. Else tails grow
      from those of the normal towards an excess kurtosis of :math:`(1 - a^2) / (1 + a^2)` times
      that of the steps (Laplace steps of b = .5: 1). Steps seen, :math:`z_{t+1} - z_t`, have the
      variance 2 (1 - a).
    - ``free``: :math:`z_{t+1} = z_t + \Delta`. Var(z) grows without bound, by :math:`2 b^2` in a
      mean interval.

    Args:
        molecule: As for :func:`pyrocryo.simulate.poses`.
        n: Number of molecules.
        seed: Seed of everything drawn.
        scale: Laplace scale `b` of a step over a mean interval, in units of the standard deviation
            of `z`; steps of other shapes have the same variance :math:`2 b^2`.
        frames: Frames T of each molecule.
        interval: Seconds between frames, or the shortest and the longest: gaps are uniform between
            them, and steps scale with :math:`\sqrt{\Delta t}`.
        steps: ``laplace`` (excess kurtosis 3), ``student`` (3 degrees of freedom; infinite),
            ``jump`` (a Poisson process of .25 jumps a mean interval, on a slow diffusion; 9.7 over
            a mean interval), ``gaussian`` (0: leaves rotations of `z` free); or a function of a
            generator and a shape that draws steps of unit variance.
        boundary: ``reflected``, ``ar`` or ``free``.
        correlation: In [0, 1]: components depend on each other by a Gaussian copula of this
            correlation, in :math:`z_1` and in every step, their marginals kept. At 1, one latent
            moves all arms.
        turn: Frames turn as well, in steps of this Laplace scale in degrees (times
            :math:`\sqrt{\Delta t}`) from the pose of the first, in place of a fresh pose each
            frame: in the plane, or in space each about a uniform axis (the paper's Fig. 4B has
            the in-plane angle as a third latent).
        **imaging: As for :func:`pyrocryo.simulate.poses`.

    Returns:
        Particles with images `(n, T, D, D)`, ``time`` `(n, T)` in s, ``truth`` `(n, T, K)`.
    """
    if not 0 < scale < np.inf:
        raise InputError(f"scale: expected a positive Laplace scale, got {scale}")
    if not callable(steps) and steps not in SHAPES:
        raise InputError(f"steps: expected one of {SHAPES} or a function, got {steps!r}")
    if boundary not in BOUNDARIES:
        raise InputError(f"boundary: expected one of {BOUNDARIES}, got {boundary!r}")
    if boundary == "ar" and not 2 * scale**2 < 1:
        raise InputError(f"scale: an ar process of unit variance needs < .707, got {scale}")
    if not 0 <= correlation <= 1:
        raise InputError(f"correlation: expected a number in [0, 1], got {correlation}")
    if turn is not None and not turn > 0:
        raise InputError(f"turn: expected a positive Laplace scale in degrees, got {turn}")
    rng = np.random.default_rng(seed)
    time, gaps = stamps(interval, rng, counted(n), frames)
    z = np.empty((n, frames, molecule.dim))
    z[:, 0] = normal(rng, (n, molecule.dim), correlation)
    if boundary == "reflected":
        z[:, 0] = reflected(z[:, 0])
    for t, gap in enumerate(gaps.T):
        step = drawn(steps, rng, gap, molecule.dim, correlation)
        if boundary == "ar":
            kept = (1 - 2 * scale**2) ** gap[:, None]
            shorter = np.sqrt((1 - kept) / (2 * gap[:, None]))
            z[:, t + 1] = np.sqrt(kept) * z[:, t] + shorter * step
        else:
            z[:, t + 1] = z[:, t] + scale * step
            if boundary == "reflected":
                z[:, t + 1] = reflected(z[:, t + 1])
    if turn is not None:
        angles = np.deg2rad(turn) * np.sqrt(gaps) * rng.laplace(size=gaps.shape)
        imaging["turns"] = _turned(angles, getattr(molecule, "spatial", 2) == 3, rng)
    return imaged(molecule, z, rng, time=time, **imaging)


def single_shot(
    molecule: Any,
    n: int,
    seed: int = 0,
    *,
    times: Sequence[float] | None = None,
    relaxation: Sequence[float] | None = None,
    start: float | Sequence[float] = 1.5,
    spread: float = 0.5,
    **imaging: Any,
) -> Particles:
    r"""Molecules that were mixed, relaxed for a known time, and were frozen: each is seen once.

    Each component relaxes in a harmonic well from a narrow state, with a time of its own,

    .. math:: z_k | t \sim N(\mu_k(t), \sigma_k^2(t)), \quad \mu_k = s e^{-t / \tau_k}, \quad
              \sigma_k^2 = 1 - (1 - w^2) e^{-2 t / \tau_k}

    (an Ornstein-Uhlenbeck process, folded at three standard deviations). The time is the auxiliary
    variable of nonlinear ICA (Khemakhem et al. 2020): with relaxation times that differ, the
    natural parameters :math:`\mu_k / \sigma_k^2` and :math:`1 / \sigma_k^2` vary independently
    over 2 K + 1 times, so that a prior conditional on ``time`` identifies `z`. That much is
    theory: their contrasts are of full rank, but by default, for K = 2, the singular values (of
    columns centred over times and scaled to length 1) are 1.98, .28, .033 and .007, so most of
    what tells components apart lies in the first two directions.

    Args:
        molecule: As for :func:`pyrocryo.simulate.poses`.
        n: Number of particles, shared evenly by the times.
        seed: Seed of everything drawn.
        times: Seconds since mixing, 0 or more; by default 2 K + 2 of them: 0, and from half the
            fastest to four times the slowest relaxation, in equal ratios.
        relaxation: :math:`\tau_k` `(K,)` in s; by default .5, 1.5, 4.5, ....
        start: `s`, one or `(K,)`, in units of the standard deviation at equilibrium.
        spread: `w`, standard deviation at the start.
        **imaging: As for :func:`pyrocryo.simulate.poses`.

    Returns:
        Particles with ``time`` `(n,)` in s and ``truth`` `(n, K)`.
    """
    if relaxation is None:
        relaxation = FASTEST * 3.0 ** np.arange(molecule.dim)
    tau = numbers("relaxation", relaxation)
    if tau.shape != (molecule.dim,) or not ((tau > 0) & np.isfinite(tau)).all():
        raise InputError(
            f"relaxation: expected {molecule.dim} positive times in s, got {relaxation}"
        )
    if times is None:
        times = (0.0, *np.geomspace(tau.min() / 2, 4 * tau.max(), 2 * molecule.dim + 1))
    after = numbers("times", times)
    if after.ndim != 1 or not len(after) or not ((after >= 0) & np.isfinite(after)).all():
        raise InputError(f"times: expected seconds since mixing, 0 or more, got {times}")
    first = numbers("start", start)
    if first.shape not in ((), (molecule.dim,)) or not np.isfinite(first).all():
        raise InputError(f"start: expected one number or {molecule.dim}, got {start}")
    if not 0 < spread < np.inf:
        raise InputError(f"spread: expected a positive standard deviation, got {spread}")
    rng = np.random.default_rng(seed)
    time = rng.permutation(after[np.arange(counted(n)) % len(after)])
    left = np.exp(-time[:, None] / tau)
    sd = np.sqrt(1 - (1 - spread**2) * left**2)
    z = first * left + sd * reflected(rng.standard_normal((n, molecule.dim)))
    return imaged(molecule, z, rng, time=time, **imaging)


def tilt_pairs(
    molecule: Any,
    n: int,
    seed: int = 0,
    *,
    frames: int = 2,
    tilt: float | None = None,
    **imaging: Any,
) -> Particles:
    r"""Molecules seen several times in one conformation, each time in another pose.

    `z` is standard normal (reflected at ± 3) and the same in all frames of a molecule; shift, CTF
    and noise are drawn anew for each.

    Args:
        molecule: As for :func:`pyrocryo.simulate.poses`.
        n: Number of molecules.
        seed: Seed of everything drawn.
        frames: Frames T of each molecule.
        tilt: Degrees by which the stage is tilted from a frame to the next, about the y axis of
            the image (counter-clockwise to who looks against it): frame t + 1 is seen in the pose
            :math:`R_y(t \cdot tilt) A_1`. Only in space. Without, all poses are fresh.
        **imaging: As for :func:`pyrocryo.simulate.poses`.

    Returns:
        Particles with images `(n, T, D, D)` and ``truth`` `(n, T, K)`; no ``time``.
    """
    framed(frames)
    if tilt is not None and getattr(molecule, "spatial", 2) != 3:
        raise InputError("tilt: only a molecule in space tilts; in the plane, leave it out")
    if tilt is not None and not 0 < abs(tilt) < 180:
        raise InputError(f"tilt: expected degrees between 0 and 180, got {tilt}")
    rng = np.random.default_rng(seed)
    z = reflected(rng.standard_normal((counted(n), 1, molecule.dim)))
    if tilt is not None:
        about_y = np.deg2rad(tilt) * np.arange(frames)[:, None] * np.array([0.0, 1.0, 0.0])
        imaging["turns"] = np.broadcast_to(matrix_from_vector(about_y), (n, frames, 3, 3))
    return imaged(molecule, z.repeat(frames, axis=1), rng, **imaging)


def _turned(angles: np.ndarray, in_space: bool, rng: np.random.Generator) -> np.ndarray:
    """Turns `(n, T, 3, 3)` since the first frame, of steps by ``angles`` `(n, T - 1)` (rad)."""
    if not in_space:
        return in_plane(np.pad(angles.cumsum(axis=1), ((0, 0), (1, 0))))
    axis = rng.standard_normal((*angles.shape, 3))
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    single = matrix_from_vector(angles[..., None] * axis)
    turns = [np.broadcast_to(np.eye(3), single[:, 0].shape)]
    for step in np.moveaxis(single, 1, 0):
        turns.append(step @ turns[-1])
    return np.stack(turns, axis=1)
