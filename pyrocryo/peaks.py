"""``modes``: the most probable latents of each particle (MAP), with Laplace's widths."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrocryo import unit_vectors
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit
from pyrocryo.whitened import Whitened

__all__ = ["Modes", "modes", "pair_of", "rows_of"]

DRAWS = 500  # of the guide, for the coordinates
AT_ONCE = 128  # particles
APART = 0.1  # widths of the guide, between gradients that a Hessian is taken from
FURTHEST = 3.0  # widths of the guide, that a step goes
STILL = 0.02  # widths: a mode from which Newton's step is shorter
FLATTEST = 0.05  # of the guide's precision, that a direction is taken to have at least


@dataclass(frozen=True)
class Modes:
    """Modes of the posteriors of n particles, all unknowns together.

    Attributes:
        index: `(n,)` rows in the stack.
        z: `(n, [T,] K)`.
        pose: `(n, [T,] Q)` unit vectors or quaternions, None where poses are known.
        shift: `(n, [T,] 2)` in Å, None where shifts are known.
        sd: `(n, [T,] K)` Laplace's standard deviations of `z`, the other unknowns integrated out.
        log_joint: `(n,)` logarithm of p(x, z, pose, shift) at the mode.
        off: `(n,)` how far the mode is from the guide's mean, in the guide's widths.
        found: `(n,)` whether it is one: Newton's next step is short, and all directions curve up.
    """

    index: np.ndarray
    z: np.ndarray
    pose: np.ndarray | None
    shift: np.ndarray | None
    sd: np.ndarray
    log_joint: np.ndarray
    off: np.ndarray
    found: np.ndarray


def modes(
    fit: Fit | Pair,
    particles: Particles,
    *,
    index: Sequence[int] | None = None,
    steps: int = 12,
    chain: int = 0,
    seed: int = 0,
) -> Modes:
    r"""Maximum a posteriori latents under the model, everything learned frozen.

    .. math:: \hat z, \hat\phi = \arg\max \ln p(x, z, \phi), \quad
              \hat\Sigma^{-1} = -\nabla^2 \ln p(x, \hat z, \hat\phi)

    by Newton's method from the guide's mean, in coordinates in which the guide is round
    (:class:`pyrocryo.whitened.Whitened`), its Hessians from differences of gradients; a step that
    does not pay is taken back and a shorter one tried. A mode depends on the coordinates of `z`
    and is no summary of a posterior that is skewed or has several; :func:`pyrocryo.refined`
    gives the best normal instead. It costs no training, and tells how far an encoder's answer is
    from the nearest peak.

    Example::

        peak = pc.modes(fit, particles.test)
        print(np.median(peak.off), peak.found.mean())

    Args:
        fit: A fit, or one trained pair.
        particles: Particles that it fits, whether trained on or not.
        index: Which of them, counted from 0; by default all.
        steps: Newton's, at most.
        chain: Which of the fit's seeds.
        seed: Of the guide's draws.

    Raises:
        InputError: If the pair does not fit the particles, or they are not there.
    """
    pair = pair_of(fit, chain)
    if steps < 1:
        raise InputError(f"steps: expected at least 1, got {steps}")
    some = particles if index is None else particles.take(rows_of(index, len(particles)))
    pair.check(some)
    parts = []
    with torch.random.fork_rng(), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        for own in some.chunks(AT_ONCE):
            parts.append(_found(pair, pair.moved(some.batch(own)), steps))
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    known = {name: together.get(name) for name in ("pose", "shift")}
    return Modes(index=some.index, **{**together, **known})


def pair_of(fit: Fit | Pair, chain: int) -> Pair:
    """The pair of one seed of a fit, or a copy of a pair; InputError for what is neither."""
    if isinstance(fit, Pair):
        return copy.deepcopy(fit).eval()
    if not isinstance(fit, Fit):
        raise InputError(f"fit: expected a Fit or a Pair, got {type(fit).__name__}")
    if not 0 <= chain < len(fit.pairs):
        raise InputError(f"chain: expected 0 to {len(fit.pairs) - 1}, got {chain}")
    return fit.pairs[chain]


def rows_of(index: Sequence[int], count: int) -> np.ndarray:
    """Rows as an array; InputError unless they are some of ``count``."""
    rows = np.asarray(list(index))
    wrong = rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu"
    if wrong or rows.min() < 0 or rows.max() >= count:
        raise InputError(f"index: expected rows from 0 to {count - 1}, got {index}")
    return rows


def _found(pair: Pair, batch: object, steps: int) -> dict[str, np.ndarray]:
    """The fields of :class:`Modes` of a batch."""
    joint = Whitened(pair, batch, DRAWS)
    at = torch.zeros_like(joint.white[0])
    value, slope = _slope(joint, at)
    rate = torch.ones_like(value)
    for _ in range(steps):
        step = _newton(_curvature(joint, at), slope)[0]
        fresh = at + rate.unsqueeze(-1) * step
        tried, steep = _slope(joint, fresh)
        good = tried < value
        at, slope = (
            torch.where(good.unsqueeze(-1), a, b) for a, b in ((fresh, at), (steep, slope))
        )
        value = torch.where(good, tried, value)
        rate = torch.where(good, (2 * rate).clamp_max(1.0), 0.25 * rate)
    curvature = _curvature(joint, at)
    step, convex = _newton(curvature, slope)
    rows = joint.scale @ torch.linalg.inv(curvature) @ joint.scale.transpose(-1, -2)
    variance = rows.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    values = joint.values(at)
    if "pose" in values:
        values["pose"] = torch.nn.functional.normalize(values["pose"], dim=-1)
    with torch.no_grad():
        told = {
            **values,
            "sd": variance[..., -values["z"][0].numel() :].unflatten(-1, values["z"].shape[1:]),
            "log_joint": joint.log_joint(values),
            "off": at.norm(dim=-1),
            "found": convex & (step.norm(dim=-1) < STILL),
        }
        if joint.centre is not None:
            pose = unit_vectors.one_side(values["pose"], joint.centre)
            told["pose"] = pair.framed(pose, values["z"])
    numbers = {name: value.cpu().numpy() for name, value in told.items()}
    return {k: v if v.dtype == bool else v.astype(np.float64) for k, v in numbers.items()}


def _slope(joint: Whitened, at: Tensor) -> tuple[Tensor, Tensor]:
    """Energies `(B,)` and their gradients `(B, n)`; particles do not depend on one another."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        energy = joint.energy(at)
        (slope,) = torch.autograd.grad(energy.sum(), at)
    return energy.detach(), slope


def _curvature(joint: Whitened, at: Tensor) -> Tensor:
    """Hessians `(B, n, n)` by central differences."""
    steps = APART * torch.eye(at.shape[-1], dtype=at.dtype, device=at.device)
    rows = [_slope(joint, at + step)[1] - _slope(joint, at - step)[1] for step in steps]
    square = torch.stack(rows, dim=-2) / (2 * APART)
    return 0.5 * (square + square.transpose(-1, -2))


def _newton(curvature: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's steps `(B, n)`, downhill and not too far, and where the energy is convex `(B,)`."""
    size, axes = torch.linalg.eigh(torch.nan_to_num(curvature))
    along = (axes.transpose(-1, -2) @ slope.unsqueeze(-1)).squeeze(-1)
    step = -(axes @ (along / size.abs().clamp_min(FLATTEST)).unsqueeze(-1)).squeeze(-1)
    length = step.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return step * (FURTHEST / length).clamp_max(1.0), (size > 0).all(-1)
