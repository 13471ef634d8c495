"""The joint density of particles and their latents, in coordinates in which the guide is round."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrocryo import unit_vectors
from pyrocryo.pair import Pair

__all__ = ["Whitened"]

LATENT = ("pose", "shift", "z")
LENGTH_SD = 0.1  # of the vectors whose directions are poses


class Whitened:
    r"""Latents of B particles as vectors `w`, N(0, I) if the guide were a normal.

    .. math:: y = \mu + L w, \quad \mu, L L^\top \text{ of draws of the guide}

    with `y` all latents of a particle side by side. Unknown poses are unit vectors, along which no
    step can be taken: they are the directions of vectors whose length is N(1, .1²), which leaves
    the law of the direction as it is and, unlike that of normal vectors
    (``ProjectedNormalReparam``), has no narrow end at the origin.

    Args:
        pair: A trained pair.
        batch: Of B particles, on its device.
        draws: Of the guide.

    Attributes:
        told: Draws of the guide by site, `(S, B, ...)`; poses all on one side.
        centre: Mean poses `(B, ...)`, or None where they are known.
        white: `(S, B, n)` the draws as `w`.
    """

    def __init__(self, pair: Pair, batch: Any, draws: int) -> None:
        self._pair, self._batch = pair, batch
        with torch.no_grad(), pyro.plate("draw", draws, dim=-2):
            trace = poutine.trace(pair.guide).get_trace(batch)
        told = {name: trace.nodes[name]["value"] for name in LATENT if name in trace.nodes}
        self.centre = None
        if "pose" in told:
            self.centre = unit_vectors.mean(told["pose"])
            told["pose"] = unit_vectors.one_side(told["pose"], self.centre)
        self.told = told
        self._shapes = {name: value.shape[2:] for name, value in told.items()}
        sites = {name: value.flatten(2) for name, value in told.items()}
        if "pose" in told:
            length = 1 + LENGTH_SD * torch.randn_like(told["pose"][..., :1])
            sites["pose"] = (length * told["pose"]).flatten(2)
        self._sizes = [value.shape[-1] for value in sites.values()]
        joined = torch.cat(list(sites.values()), dim=-1)
        self._mean = joined.mean(0)
        apart = (joined - self._mean).movedim(0, -1)
        covariance = apart @ apart.transpose(-1, -2) / draws
        small = 1e-6 * torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
        self.scale = torch.linalg.cholesky(covariance + small)
        offset = (joined - self._mean).unsqueeze(-1)
        scale = self.scale.expand(draws, *self.scale.shape)
        self.white = torch.linalg.solve_triangular(scale, offset, upper=False).squeeze(-1)

    def values(self, white: Tensor) -> dict[str, Tensor]:
        """Latents by site, `(..., B, ...)`; poses of any length."""
        found = self._mean + (self.scale @ white.unsqueeze(-1)).squeeze(-1)
        each = zip(self._shapes.items(), found.split(self._sizes, dim=-1), strict=True)
        return {name: part.unflatten(-1, shape) for (name, shape), part in each}

    def log_joint(self, values: dict[str, Tensor]) -> Tensor:
        r""":math:`\ln p(x, z, \phi)` of each particle, `(B,)`; poses of length 1."""
        held = poutine.condition(self._pair.model, data=values)
        trace = poutine.trace(held).get_trace(self._batch)
        trace.compute_log_prob()
        names = [name for name in (*LATENT, "x") if name in trace.nodes]
        return sum(trace.nodes[name]["log_prob"] for name in names)

    def energy(self, white: Tensor) -> Tensor:
        """The potential of each particle, `(B,)`: its minus logarithm, lengths included."""
        values, energy = self.values(white), 0.0
        if "pose" in values:
            length = values["pose"].norm(dim=-1, keepdim=True)
            energy = 0.5 * ((length - 1) / LENGTH_SD).square()
            energy = energy + (values["pose"].shape[-1] - 1) * length.log()
            energy = energy.flatten(1).sum(-1)
            values["pose"] = values["pose"] / length
        return energy - self.log_joint(values)
