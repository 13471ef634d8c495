r"""The rival of a trained pair: another molecule for every `z`, the same likelihood."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyrocryo.diagnose.common import recast
from pyrocryo.identify.flows import HamiltonianFlow, Rotation, Twist
from pyrocryo.pair import Pair

__all__ = ["Pushed", "Rival", "rival_of", "sampled_elbo"]


class Pushed(dist.TorchDistribution):
    r"""The law of `h(z)`, :math:`\ln q_h(z) = \ln q(h^{-1}(z)) - \ln |\det Dh(h^{-1}(z))|`.

    Args:
        law: Of `z`, event shape `(K,)` or `(T, K)`; `h` moves each frame alike.
        h: The map.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, law: Any, h: Rotation | HamiltonianFlow | Twist) -> None:
        self.law, self.h = law, h
        self._drawn: tuple[Tensor | None, Tensor | None] = (None, None)  # h(z), z
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Pushed:
        """The same law in more rows."""
        return Pushed(self.law.expand(batch_shape), self.h)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """`h` of draws of `z`."""
        z = self.law.rsample(sample_shape)
        self._drawn = self.h(z), z
        return self._drawn[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """By the change of variables."""
        moved, z = self._drawn
        z = z if moved is value else self.h.inverse(value)
        volume = self.h.log_det(z, value)
        if len(self.event_shape) == 2:
            volume = volume.sum(-1)
        return self.law.log_prob(z) - volume

    @property
    def mean(self) -> Tensor:
        """`h` of the mean of `z`: the same molecule, under its other name."""
        return self.h(self.law.mean)


class Rival(Pair):
    r"""A pair whose decoder is :math:`v(h^{-1}(z))`, and whose guide says `h(z)` for `z`.

    Made by :func:`rival_of`. Everything else is the pair's: model and guide are Pyro callables,
    ``density`` draws the molecule. Where `h` leaves the prior as it is, all likelihoods are equal.
    """

    h: Rotation | HamiltonianFlow | Twist

    def seen(self, z: Tensor, *where: Any, **more: Any) -> Tensor:
        """As the pair's, of the conformations that it calls :math:`h^{-1}(z)`."""
        return super().seen(self.h.inverse(z), *where, **more)

    def posterior_of(self, *where: Any, **more: Any) -> Pushed:
        """The pair's posterior, pushed through `h`."""
        return Pushed(super().posterior_of(*where, **more), self.h)

    def density(self, z: Tensor) -> Tensor:
        """As the pair's, of the conformations that it calls :math:`h^{-1}(z)`."""
        return super().density(self.h.inverse(z.to(self.noise_steps)))

    def framed(self, direction: Tensor, z: Tensor) -> Tensor:
        """As the pair's, of the conformations that it calls :math:`h^{-1}(z)`."""
        return direction if self.frame is None else super().framed(direction, self.h.inverse(z))


def rival_of(pair: Pair, h: Rotation | HamiltonianFlow | Twist) -> Rival:
    """A copy of a pair with `h` between `z` and everything but the prior."""
    new = recast(pair, Rival)
    new.h = h
    return new


def sampled_elbo(pair: Pair, batch: Any) -> Tensor:
    r""":math:`\ln p(x, z) - \ln q(z | x)` of each particle `(B,)` at one draw of the latents.

    No term in closed form, so that pairs with and without one are told by the same noise.
    """
    with torch.no_grad(), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        guide = poutine.trace(pair.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(batch)
        parts = []
        for trace, sign in ((model, 1), (guide, -1)):
            trace.compute_log_prob()
            parts += [
                sign * site["log_prob"]
                for site in trace.nodes.values()
                if site["type"] == "sample" and not site_is_subsample(site)
            ]
    return sum(parts)
