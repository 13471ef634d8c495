r"""Level curves of a prior's contrasts: what the conditions cannot see of `z`.

Where the contrasts :math:`S_l(z)` have rank K - 1, the points with the same contrasts form curves.
If these close, flowing along them at a speed that preserves :math:`p_0` leaves every
:math:`p(z | u_l)` as it is (a twist); if they are open, with finite mass, nothing but the identity
does. Propositions P1 and P2: an automorphism preserves the density ratios.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
        ``closed`` if any closes, ``open`` if all leave, None if neither was seen; and the largest
        and smallest value of each component on the closed ones, `(2, K)`.
    """
    centre = z.median(dim=0).values
    start = (z[torch.randperm(len(z))[:STARTS]] - centre) / scale

    def seen(x: Tensor) -> tuple[Tensor, Tensor]:
        """Contrasts `(B, M)` and their gradients `(B, M, K)`, in whitened `z`."""
        point = (centre + scale * x).requires_grad_()
        every = point.unsqueeze(1).expand(len(x), laws.count, laws.dim)
        total = laws.law.log_prob(every).expand(len(x), laws.count)
        contrast = total[:, 1:] - total[:, :1]
        rows = [
            torch.autograd.grad(contrast[:, m].sum(), point, retain_graph=True)[0] * scale
            for m in range(laws.count - 1)
        ]
        return contrast.detach(), torch.stack(rows, dim=1)

    def along(slope: Tensor, before: Tensor) -> Tensor:
        """The direction in which no contrast changes, going on from ``before``."""
        null = torch.linalg.svd(slope).Vh[:, -1]
        sign = (null * before).sum(-1, keepdim=True)
        return torch.where(sign < 0, -null, null)

    # both ways from each start
    first = torch.linalg.svd(seen(start)[1]).Vh[:, -1]
    origin = torch.cat([start, start])
    x, way = origin, torch.cat([first, -first])
    level = seen(origin)[0]
    length = torch.zeros(len(x))
    left, back = torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    low, high = x.clone(), x.clone()
    for _ in range(STEPS):
        moving = ~(left | back)
        if not moving.any():
            break
        at, goal = x[moving], level[moving]
        step = STEP * (1 + at.norm(dim=-1, keepdim=True) / 3)
        here = along(seen(at)[1], way[moving])
        middle = along(seen(at + 0.5 * step * here)[1], here)
        new = at + step * middle
        value, slope = seen(new)
        fix = torch.linalg.pinv(slope, rtol=1e-5) @ (value - goal).unsqueeze(-1)
        new = new - fix.squeeze(-1).clamp(-0.5, 0.5)
        x = x.index_put((moving,), new)
        way = way.index_put((moving,), middle)
        length = length.index_put((moving,), length[moving] + step.squeeze(-1))
        low, high = torch.minimum(low, x), torch.maximum(high, x)
        with torch.no_grad():
            gone = (x.norm(dim=-1) > FAR) | ~laws.log_prob(centre + scale * x).isfinite().all(-1)
        left |= moving & gone
        away = (x - origin).norm(dim=-1)
        near = away < CLOSE * STEP * (1 + origin.norm(dim=-1) / 3)
        back |= moving & near & (length > 4 * STEP) & (((high - low).amax(-1)) > 2 * STEP)
    span = (
        torch.stack([low[back].amin(0), high[back].amax(0)])
        if back.any()
        else x.new_zeros(2, laws.dim)
    )
    span = centre + scale * span
    if back.any():
        return "closed", span
    return ("open" if left.all() else None), span
