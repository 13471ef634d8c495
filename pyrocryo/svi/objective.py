"""Loss and gradients as a function of tensors alone: what can be traced, stacked and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pyrocryo.pair import Pair
from pyrocryo.svi.loss import negative_elbo
from pyrocryo.svi.settings import Term
from pyrocryo.svi.stack import trained
from pyrocryo.svi.weights import Weights

__all__ = ["Objective"]

ROUNDING = 0.1  # of the largest gradient, counted with each
NOT_A_ROW = ("pixel_size",)  # of a batch: one for all particles


class Objective:
    """Loss and gradients of a pair, or of several seeds of it at once.

    Called with the trained parameters in the order of ``names``, then the fields of a batch, then
    β where it changes, then the weights of the further terms where there are any; returns the
    loss, and the gradients joined to one vector. Of S seeds at once, parameters, loss and
    gradients have a leading axis of S, and each seed draws its own noise.

    Args:
        pair: Model and guide; its own parameters are not used.
        batch: An example of the batches.
        beta: β, or None if it comes with each call.
        gamma: See :class:`pyrocryo.svi.Weights`.
        rigid: See :class:`pyrocryo.svi.Weights`.
        terms: Further terms of the loss.
        seeds: How many at once, or None for a pair without the leading axis.
        own: Whether each of the seeds sees particles of its own: fields have the leading axis too.
    """

    def __init__(
        self,
        pair: Pair,
        batch: Any,
        *,
        beta: float | None = 1.0,
        gamma: float = 1.0,
        rigid: bool = False,
        terms: Sequence[Term] = (),
        seeds: int | None = None,
        own: bool = True,
    ) -> None:
        self.names = list(trained(pair))
        self._sizes = [p.numel() for p in trained(pair).values()]
        self._module = _Loss(pair, tuple(terms))
        self._lead = () if seeds is None else (seeds,)
        self._fields = type(batch)
        self.beta, self._gamma, self._rigid = beta, gamma, rigid
        axes = [None if not own or name in NOT_A_ROW else 0 for name in self._fields._fields]
        self.terms = tuple(terms)
        numbers = (beta is None) + bool(terms)
        self._axes = (*[0] * len(self.names), *axes, *[None] * numbers)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The loss and its gradient."""
        n = len(self.names)
        with torch.enable_grad():
            parameters = [value.detach().requires_grad_() for value in tensors[:n]]
            loss = self._losses(*parameters, *tensors[n:])
            gradients = torch.autograd.grad(
                loss.sum(), parameters, allow_unused=True, materialize_grads=True
            )
        flat = [gradient.reshape(*self._lead, -1) for gradient in gradients]
        return [loss.detach(), torch.cat(flat, dim=-1)]

    def agree(self, a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float) -> bool:
        """Whether two results of one seed are the same, but for a share of each largest entry.

        A parameter whose gradient is the rounding of others' larger ones is no better known.
        """
        rounding = ROUNDING * a[1].abs().max()
        pairs = zip(
            [a[0], *a[1].split(self._sizes)], [b[0], *b[1].split(self._sizes)], strict=True
        )
        return all(
            bool((x - y).abs().max() <= tolerance * (x.abs().max() + rounding))
            or not bool(torch.isfinite(x).all())
            for x, y in pairs
        )

    def loss(self, *tensors: Tensor, validate: bool = False) -> Tensor:
        """The loss of one pair; ``validate`` lets its distributions check their arguments."""
        n, m = len(self.names), len(self.names) + len(self._fields._fields)
        beta = tensors[m] if self.beta is None else self.beta
        weights = Weights(beta, self._gamma, rigid=self._rigid)
        shares = tensors[-1].unbind() if self.terms else ()
        values = {
            f"pair.{name}": value for name, value in zip(self.names, tensors[:n], strict=True)
        }
        batch = self._fields._make(tensors[n:m])
        return functional_call(self._module, values, (batch, weights, shares, validate))

    def _losses(self, *tensors: Tensor) -> Tensor:
        if not self._lead:
            return self.loss(*tensors)
        return vmap(self.loss, self._axes, randomness="different")(*tensors)


class _Loss(nn.Module):
    def __init__(self, pair: Pair, terms: tuple[Term, ...]) -> None:
        super().__init__()
        self.pair = pair
        self.terms = terms

    def forward(
        self, batch: Any, weights: Weights, shares: Sequence[Tensor], validate: bool
    ) -> Tensor:
        loss = negative_elbo(self.pair, batch, weights, validate=validate)
        with pyro.validation_enabled(validate):
            for share, term in zip(shares, self.terms, strict=True):
                loss = loss + share * term(self.pair, batch)
        return loss
