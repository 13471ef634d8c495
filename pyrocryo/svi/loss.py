"""The loss of a training step: the negative ELBO, without a single wait for its value."""

from __future__ import annotations

from typing import Any

import pyro
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from pyrocryo.pair import Pair
from pyrocryo.svi.weights import Weights

__all__ = ["elbo", "negative_elbo"]


def negative_elbo(pair: Pair, batch: Any, weights: Weights, *, validate: bool = False) -> Tensor:
    r"""The loss per particle, in nats, with one draw of every latent.

    .. math:: L = \frac1B \sum_i [-\ln p(x_i | z_i) + KL(q(z | x_i) \| p(z))], \quad z_i \sim q

    As ``pyro.infer.TraceMeanField_ELBO``, whose gradients these are: the KL in closed form where
    one is registered, else :math:`\ln q(z_i) - \ln p(z_i)`. That class asks for values as it goes,
    and so can neither be traced nor captured.

    Args:
        pair: Model and guide.
        batch: A batch of B particles.
        weights: Of the KL and its parts.
        validate: Let distributions check their arguments, which waits for values.
    """
    return sum(term.sum() for term in _terms(pair, batch, weights, validate)) / len(batch.images)


def elbo(pair: Pair, batch: Any, *, rigid: bool = False) -> Tensor:
    """The ELBO of each particle, `(B,)` in nats, with one draw of every latent.

    The negative of :func:`negative_elbo` without weights, particle by particle.

    Args:
        pair: Model and guide.
        batch: A batch of B particles.
        rigid: Decode every conformation as `z` = 0, and leave its KL out.
    """
    return -sum(_terms(pair, batch, Weights(rigid=rigid), False))


def _terms(pair: Pair, batch: Any, weights: Weights, validate: bool) -> list[Tensor]:
    """What each site adds to the loss of each particle, `(B,)`."""
    terms = []
    # a store of its own, as modules of Pyro's leave their parameters' values in the global one
    with pyro.get_param_store().scope(), pyro.validation_enabled(validate), weights:
        guide = poutine.trace(pair.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(batch)
        for name, site in model.nodes.items():
            if site["type"] != "sample" or site_is_subsample(site):
                continue
            if site["is_observed"]:
                term, weight = -site["fn"].log_prob(site["value"]), site
            elif isinstance(scale := guide.nodes[name]["scale"], float) and scale == 0:
                continue
            else:
                term, weight = _kl(guide.nodes[name], site), guide.nodes[name]
            terms.append(scale_and_mask(term, weight["scale"], weight["mask"]))
    return terms


def _kl(q: dict[str, Any], p: dict[str, Any]) -> Tensor:
    try:
        return kl_divergence(q["fn"], p["fn"])
    except NotImplementedError:  # none registered: one draw of it instead
        return q["fn"].log_prob(q["value"]) - p["fn"].log_prob(q["value"])
