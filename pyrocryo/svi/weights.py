"""Weights on the terms of the ELBO, applied around the loss and never inside a model."""

from __future__ import annotations

from typing import Any

import torch
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
        rigid: Decode every conformation as `z` = 0, and leave its KL out.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, *, rigid: bool = False) -> None:
        super().__init__()
        self.beta = beta
        self.gamma = gamma
        self.rigid = rigid

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        rigid = self.rigid and msg["name"] == "z"
        msg["scale"] = msg["scale"] * (0.0 if rigid else self.beta)
        if self.gamma != 1.0 and hasattr(msg["fn"], "with_transition_weight"):
            msg["fn"] = msg["fn"].with_transition_weight(self.gamma)

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if self.rigid and msg["name"] == "z":
            msg["value"] = torch.zeros_like(msg["value"])
