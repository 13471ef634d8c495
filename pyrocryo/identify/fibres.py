r"""Level curves of a prior's contrasts: what the conditions cannot see of `z`.

Where the contrasts :math:`S_l(z)` have rank K - 1, the points with the same contrasts form curves.
If these close, flowing along them at a speed that preserves :math:`p_0` leaves every
:math:`p(z | u_l)` as it is (a twist); if they are open, with finite mass, nothing but the identity
does. Propositions P1 and P2: an automorphism preserves the density ratios.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrocryo.identify.flows import wedge
from pyrocryo.identify.laws import Laws

__all__ = ["fibres"]

STARTS = 12
STEP = 0.1  # standard deviations, more further out
FAR = 25.0  # standard deviations at which a curve counts as open
STEPS = 800
CLOSE = 0.6  # of a step


def fibres(laws: Laws, z: Tensor, scale: Tensor) -> tuple[str | None, Tensor]:
    """Whether the level curves through typical points are ``closed`` or ``open``.

    Args:
        laws: The prior.
        z: Draws `(N, K)` from the mixture of conditions.
        scale: `(K,)`.

    Returns:
        ``closed`` if any closes, ``open`` if all leave, None if neither was seen; and the smallest
        and largest value of each component on the first that closed, `(2, B, K)`.
    """
    centre = z.median(dim=0).values
    start = (z[torch.randperm(len(z))[:STARTS]] - centre) / scale
    slopes = laws.gradients(z) * scale
    rows = (slopes[:, 1:] - slopes[:, :1]).transpose(0, 1).flatten(1)
    # as many contrasts as there are independent ones
    mix = torch.linalg.svd(rows, full_matrices=False).U[:, : laws.dim - 1].T

    def seen(x: Tensor) -> tuple[Tensor, Tensor]:
        """Contrasts `(B, K - 1)` and their gradients `(B, K - 1, K)`, in whitened `z`."""
        point = (centre + scale * x).requires_grad_()
        every = point.unsqueeze(1).expand(len(x), laws.count, laws.dim)
        total = laws.law.log_prob(every).expand(len(x), laws.count)
        contrast = (total[:, 1:] - total[:, :1]) @ mix.T
        rows = [
            torch.autograd.grad(each.sum(), point, retain_graph=True)[0] * scale
            for each in contrast.unbind(-1)
        ]
        return contrast.detach(), torch.stack(rows, dim=1)

    # both ways from each start
    x = origin = torch.cat([start, start])
    sense = torch.ones(len(x), 1)
    sense[: len(start)] = -1.0
    level = seen(origin)[0]
    length = torch.zeros(len(x))
    left, back = torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    low, high = x.clone(), x.clone()
    for _ in range(STEPS):
        moving = ~(left | back)
        if back.any() or not moving.any():
            break
        at, way = x[moving], sense[moving]
        step = STEP * (1 + at.norm(dim=-1, keepdim=True) / 3)
        half = at + 0.5 * step * way * _along(seen(at)[1])
        new = at + step * way * _along(seen(half)[1])
        value, slope = seen(new)
        miss = (value - level[moving]).unsqueeze(-1)
        new = new - (torch.linalg.pinv(slope, rtol=1e-5) @ miss).squeeze(-1).clamp(-0.5, 0.5)
        x = x.index_put((moving,), new)
        length = length.index_put((moving,), length[moving] + step.squeeze(-1))
        low, high = torch.minimum(low, x), torch.maximum(high, x)
        with torch.no_grad():
            gone = (x.norm(dim=-1) > FAR) | ~laws.log_prob(centre + scale * x).isfinite().all(-1)
        left |= moving & gone
        near = (x - origin).norm(dim=-1) < CLOSE * STEP * (1 + origin.norm(dim=-1) / 3)
        back |= moving & near & (length > 4 * STEP) & ((high - low).amax(-1) > 2 * STEP)
    span = centre + scale * torch.stack([low[back], high[back]])
    if back.any():
        return "closed", span
    return ("open" if left.all() else None), span


def _along(slope: Tensor) -> Tensor:
    """The unit vectors `(B, K)` orthogonal to K - 1 gradients, oriented with these."""
    product = wedge(slope)
    return product / product.norm(dim=-1, keepdim=True).clamp_min(1e-300)
