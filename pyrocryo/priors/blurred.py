"""Laws at temperatures that are known only within an error."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrocryo.priors.quadrature import hermite

__all__ = ["Blurred", "around"]

LABELS = 5  # temperatures within the error: exact for laws of degree 9 in τ
REACH = 2.857  # of the outermost, in standard deviations


def around(temperature: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes `(..., M)` and weights `(M,)` of the mean over N(temperature, error²), in K."""
    nodes, weights = hermite(LABELS, temperature.dtype, temperature.device)
    return temperature.unsqueeze(-1) + error.unsqueeze(-1) * nodes, weights


class Blurred(dist.TorchDistribution):
    r"""A mixture of laws with weights that are known.

    .. math:: p(z) = \sum_m w_m p_m(z)

    Of a label :math:`\tau \pm s`, the laws at the Gauss-Hermite nodes of the true temperature,
    :math:`N(\tau, s^2)` given the label (:func:`around`). All components of `z` share the true
    temperature, so they are not independent.

    No KL is registered, so the ELBO samples it, without bias. Convexity bounds it from above,
    :math:`KL(q \| \sum_m w_m p_m) \le \sum_m w_m KL(q \| p_m)`.

    Args:
        laws: Batch shape `(..., M)`, event shape `(K,)`.
        weights: `(M,)`, of sum 1.
    """

    arg_constraints = {"weights": constraints.simplex}
    support = constraints.real_vector
    has_rsample = True  # the weights are constants, so the choice of a law has no gradient

    def __init__(
        self, laws: Distribution, weights: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.laws, self.weights = laws, weights
        shape = laws.batch_shape[:-1]
        super().__init__(shape, laws.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Blurred:
        new = self._get_checked_instance(Blurred, _instance)
        batch_shape = torch.Size(batch_shape)
        new.laws = self.laws.expand(batch_shape + self.laws.batch_shape[-1:])
        new.weights = self.weights
        super(Blurred, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        each = self.laws.log_prob(value.unsqueeze(-2))
        return torch.logsumexp(each + self.weights.log(), dim=-1)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        z = self.laws.rsample(sample_shape)  # (..., M, K)
        edges = self.weights.cumsum(-1)[:-1]
        u = torch.rand(z.shape[:-2], dtype=z.dtype, device=z.device)
        chosen = (u.unsqueeze(-1) >= edges).sum(-1)[..., None, None]
        return z.gather(-2, chosen.expand(*z.shape[:-2], 1, z.shape[-1])).squeeze(-2)
