"""Weights on the terms of the ELBO, applied around the loss and never inside a model."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

__all__ = ["Weights"]


class Weights(Messenger):
    r"""Scales the KL of every latent site, and its transition terms once more.

    .. math:: L = -E_q \ln p(x | z) + \beta [KL_1 + \gamma \sum_{t > 1} KL_t]

    β scales latent sites in model and guide alike, as `Trace_ELBO` needs it on both and
    `TraceMeanField_ELBO` reads it from the guide. γ reaches priors that know their transition
    terms (``with_transition_weight``) and acts on a closed-form KL only. β = γ = 1 is the exact
    ELBO.

    Args:
        beta: β.
        gamma: γ.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__()
        self.beta = beta
        self.gamma = gamma

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        msg["scale"] = msg["scale"] * self.beta
        if self.gamma != 1.0 and hasattr(msg["fn"], "with_transition_weight"):
            msg["fn"] = msg["fn"].with_transition_weight(self.gamma)
