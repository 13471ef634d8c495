"""The closed-form KL of a guide's posterior from a prior, against Monte Carlo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrocryo.rotated_normal import RotatedNormal, RotationLayer
from pyrocryo.testing.checks import Fault, mapped
from pyrocryo.testing.importance import Draws

__all__ = ["check_kl", "posterior"]

DRAWS = 50_000


def posterior(law: Any, centre: Tensor, scale: Tensor) -> Any:
    """A turned, correlated Gaussian in the place of ``law``, as a guide would give it."""
    lead, k = (3, *law.batch_shape, *law.event_shape[:-1]), law.event_shape[-1]
    centre, scale = (a.reshape(*law.batch_shape, *law.event_shape) for a in (centre, scale))
    layer = RotationLayer(k).to(centre)
    nn.init.uniform_(layer.angle, -0.06, 0.06)
    like = {"dtype": centre.dtype, "device": centre.device}
    factor = 0.3 * torch.randn(*lead, k, k, **like).tril(-1)
    factor = scale.unsqueeze(-1) * (factor + torch.diag_embed(0.2 + torch.rand(*lead, k, **like)))
    loc = centre + scale * torch.randn(*lead, k, **like)
    q = RotatedNormal(loc, factor, layer().detach())
    return q.to_event(1) if len(law.event_shape) == 2 else q


def check_kl(draws: Draws) -> str:
    """Whether a registered KL agrees with Monte Carlo, inside a plate of 3."""
    law = draws.law
    q = posterior(law, draws.centre.to(draws.dtype), draws.scale.to(draws.dtype))
    wide = law.expand(torch.Size((3, *law.batch_shape)))
    with torch.no_grad():
        try:
            exact = kl_divergence(q, wide)
        except NotImplementedError:  # how torch says that none is registered: no fault
            return "none registered: the ELBO will be sampled"
        if exact.shape != wide.batch_shape:
            raise Fault(f"has shape {tuple(exact.shape)}, expected {tuple(wide.batch_shape)}")
        size = max(DRAWS // draws.rows, 2_000)
        z = q.sample((size,))
        terms = (q.log_prob(z) - mapped(wide).log_prob(z)).double()
    mean, error = terms.mean(0), terms.std(0) / size**0.5
    off = (exact - mean).abs() / (error + 1e-5 * mean.abs())
    worst = off.argmax()
    if not off.max() <= 5:
        raise Fault(
            f"the closed form gives {exact.flatten()[worst]:.3f}, Monte Carlo "
            f"{mean.flatten()[worst]:.3f} ± {error.flatten()[worst]:.3f}"
        )
    return f"closed form, at most {off.max():.1f} standard errors from Monte Carlo"
