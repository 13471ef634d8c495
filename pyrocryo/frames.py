r"""The frame of reference of unknown poses, fixed to the part of the molecule that does not move.

With a uniform pose prior, :math:`(z, \phi) \to (z, \phi + \alpha(z))` changes no likelihood for
any function α, as the volume absorbs the turn: what is learned is a molecule that may turn as it
moves. :func:`reference_body` finds α from the learned maps and undoes it in what is reported,
poses and maps alike; model, guide and ELBO stay as they are.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging import polar
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles, evenly
from pyrocryo.svi import Fit

__all__ = ["Frame", "check_body", "reference_body"]

ANGLES = 360
ROUNDS = 20  # of aligning and asking anew what stays still
MOST = 1000  # conformations that α is fitted to


@dataclass(frozen=True)
class Frame:
    """The turn α(z) of the reference body in the learned maps, a cubic polynomial.

    Attributes:
        centre: `(K,)` mean of the conformations it was fitted to.
        scale: `(K,)` their standard deviations; beyond 3 of them α stays what it is at 3.
        coefficients: Of the monomials up to the third degree.
        residual_deg: Median deviation of the polynomial from the turns that were found.
    """

    centre: Tensor
    scale: Tensor
    coefficients: Tensor
    residual_deg: float

    def __call__(self, z: Tensor) -> Tensor:
        """α in rad `(...,)` of conformations `z` `(..., K)`."""
        white = ((z - self.centre.to(z)) / self.scale.to(z)).clamp(-3, 3)
        return _monomials(white) @ self.coefficients.to(z)


def reference_body(fit: Fit, particles: Particles, body: np.ndarray | None = None) -> Fit:
    r"""A fit whose poses and maps are reported in the frame of a reference body.

    For conformations from the posterior means of ``particles``, each map is turned onto the map
    at the median conformation so that :math:`\sum_r w(r) (v_z(R_\alpha r) - v_0(r))^2` is least,
    `w` the body; α(z) is a cubic polynomial through these turns. Without ``body``, `w` is found:
    large where the aligned maps vary least, aligned and asked anew a few times.

    Args:
        fit: Of pairs with in-plane poses and flat volumes.
        particles: Particles to take conformations from.
        body: Weights `(side, side)`, in the frame of the map at the median conformation of each
            seed, `[y, x]`; a mask, for example. None to find what does not move.

    Raises:
        InputError: If poses are known, the volume is not flat, or the body does not fit it.
    """
    check_body(fit.pairs[0], particles, body)
    rows = evenly(len(particles), MOST // (particles.frames or 1))
    pairs = []
    for pair in fit.pairs:
        batch = pair.moved(particles.batch(rows))
        with torch.no_grad():
            z = pair.posterior_of(batch).mean.reshape(-1, pair.dim)
        framed = copy.deepcopy(pair)
        framed.frame = None  # α is that of the maps as learned
        framed.frame = _fitted(framed, z, body)
        pairs.append(framed)
    return replace(fit, pairs=pairs)


def check_body(pair: Pair, particles: Particles, body: np.ndarray | None) -> None:
    """Looks whether the poses of a pair have a frame to fix, before anything is trained.

    Args:
        pair: Of in-plane poses and a flat volume.
        particles: The images that the frame is to be found from.
        body: Weights `(side, side)` on its map, or None for what moves least.

    Raises:
        InputError: If there is no frame to fix, too few images, or a body that fits no map.
    """
    if not pair.pose.latent or pair.volume.dim != 2:
        raise InputError("body: only in-plane poses of flat volumes have a frame to fix")
    images, fewest = len(particles) * (particles.frames or 1), 4 * math.comb(pair.dim + 3, 3)
    if images < fewest:
        raise InputError(f"body: α(z) needs at least {fewest} images, there are {images}")
    side = pair.volume.side
    if body is None:
        return
    r = np.arange(side) - side // 2
    inside = np.hypot(r[:, None], r) < side / 2 - 1
    body = np.asarray(body)
    if body.shape != inside.shape or not np.isfinite(body).all() or not (body[inside] > 0).any():
        raise InputError(
            f"body: expected finite weights of shape {inside.shape}, some positive within the "
            f"circle that fits the map, got shape {body.shape}"
        )


def _fitted(pair: Pair, z: Tensor, body: np.ndarray | None) -> Frame:
    middle = z.median(dim=0, keepdim=True).values
    maps, reference = _rings(pair, z), _rings(pair, middle)
    weight = (
        torch.ones_like(reference) if body is None else _polar(torch.as_tensor(body).to(z)[None])
    )
    area = torch.arange(1, len(reference[0]) + 1).to(z)[:, None]
    for _ in range(ROUNDS if body is None else 1):
        alpha = _turns(maps, reference, weight * area)
        if body is None:
            aligned = _turned_back(maps, alpha)
            variance = aligned.var(dim=0, keepdim=True)
            floor = variance.median() + 1e-6 * aligned.square().mean() + 1e-12
            weight = 1 / (variance + floor)
    centre, scale = z.mean(dim=0), z.std(dim=0).clamp_min(1e-6)
    features = _monomials(((z - centre) / scale).clamp(-3, 3))
    solution = torch.linalg.lstsq(features, alpha.unsqueeze(-1)).solution.squeeze(-1)
    residual = (features @ solution - alpha).abs().median()
    return Frame(centre, scale, solution, float(residual.rad2deg()))


def _rings(pair: Pair, z: Tensor) -> Tensor:
    return _polar(pair.density(z))


def _polar(maps: Tensor) -> Tensor:
    radii = maps.shape[-1] // 2 - 1
    return polar(maps, maps.new_zeros(len(maps), 2), radii=radii, angles=ANGLES)


def _turns(maps: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """The angles (rad) at which each map, `(N, radii, angles)`, fits the reference best."""
    spectrum, squares = torch.fft.rfft(maps), torch.fft.rfft(maps.square())
    mask, seen = torch.fft.rfft(weight), torch.fft.rfft(weight * reference)
    cost = torch.fft.irfft((squares * mask.conj() - 2 * spectrum * seen.conj()).sum(1), n=ANGLES)
    best = cost.argmin(dim=-1, keepdim=True)
    before, here, after = (cost.gather(-1, (best + k) % ANGLES) for k in (-1, 0, 1))
    finer = best + 0.5 * (before - after) / (before - 2 * here + after).clamp_min(1e-12)
    angle = finer.squeeze(-1) * (2 * math.pi / ANGLES)
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _turned_back(maps: Tensor, alpha: Tensor) -> Tensor:
    order = torch.arange(ANGLES // 2 + 1).to(alpha)
    return torch.fft.irfft(
        torch.fft.rfft(maps) * torch.exp(1j * order * alpha[:, None, None]), n=ANGLES
    )


def _monomials(x: Tensor) -> Tensor:
    """All products of up to three columns of `x` `(..., K)`, the constant among them."""
    columns = x.unbind(-1)
    terms: list[Any] = [torch.ones_like(columns[0])]
    for degree in (1, 2, 3):
        for chosen in itertools.combinations_with_replacement(columns, degree):
            terms.append(math.prod(chosen[1:], start=chosen[0]))
    return torch.stack(terms, dim=-1)
