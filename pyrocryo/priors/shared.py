"""Weakly supervised frames: some components are shared with the first frame, nobody says which."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrocryo.errors import InputError
from pyrocryo.priors.quadrature import hermite, resolved
from pyrocryo.priors.transition import Transition, log_sum, normal_log_prob

__all__ = ["SharedFactors"]

ACROSS = 8  # nodes of the later frame, given its difference from the first


class SharedFactors(Transition):
    r"""Each component of a later frame is the first frame's, or a fresh draw.

    .. math::
        p(z) = N(z_1; 0, I) \prod_{t > 1} \prod_k [s_k N(z_{t,k}; \rho z_{1,k}, w^2)
               + (1 - s_k) N(z_{t,k}; 0, 1)], \quad \rho = \sqrt{1 - w^2}

    Pairs that share an unknown subset of factors, unknown also in size (Locatello et al. 2020b),
    as a density instead of a rule for the encoder; a Gaussian width in place of equality. Every
    frame is N(0, I) on its own. Frames share subsets of their own with the first. A share near 1
    serves tilt pairs, where all of `z` is the same and the pose is not (frames then tell little
    of axes: towards 1 the prior becomes Gaussian and rotation invariant).

    Not rotation invariant. Turning the axes of K = 2 by 45° costs .96 nats a pair at share
    .5 and width .1, .61 at .9, .097 at .99.

    The KL integrates over the difference of two frames and the later frame by quadrature (64 × 8
    nodes): within 1e-5 nats for widths from .02 to .3 and posteriors from .1 to 1.4 wide. With 64
    pairs of K = 2 it takes 6 ms with its gradient on one core, a sampled one 2 ms, whose standard
    deviation is 1.8 nats a pair.

    Args:
        dim: Size K of `z` in each frame.
        share: Chance `s` that a component is shared, below 1: a number, `(K,)`, or
            `(..., T - 1, K)`, a row for each later frame.
        width: Standard deviation `w` of a shared component about the first frame's, below 1,
            shaped alike.
        frames: Number of frames T, at least 2.
        validate_args: As of :class:`pyrocryo.priors.Transition`.
    """

    arg_constraints = {
        "share": constraints.independent(constraints.positive, 1),
        "width": constraints.independent(constraints.positive, 1),
    }
    has_rsample = False  # what is shared has no gradient

    def __init__(
        self,
        dim: int,
        share: float | Tensor,
        *,
        width: float | Tensor = 0.1,
        frames: int = 2,
        validate_args: bool | None = None,
    ) -> None:
        options = {"frames": frames, "validate_args": validate_args}
        super().__init__(dim, share=share, width=width, **options)
        if validate_args is not False and not (self.share < 1).all():
            raise InputError(f"share: expected a chance below 1, got {share}")
        if validate_args is not False and not (self.width < 1).all():
            raise InputError(f"width: expected less than 1, the spread of z, got {width}")

    @classmethod
    def over(
        cls, dim: int, value: Tensor, interval: Tensor, exponent: float, **options: Any
    ) -> Transition:
        """Not a matter of time."""
        raise InputError("SharedFactors: its frames have no order, and no law of time")

    @property
    def kept(self) -> Tensor:
        r"""Correlation ρ of what is shared."""
        return (1 - self.width.square()).sqrt()

    def log_steps(self, z: Tensor) -> Tensor:
        return self._mixed(z[..., 1:, :] - self.kept.to(z) * z[..., :1, :], z[..., 1:, :])

    def _mixed(self, difference: Tensor, later: Tensor) -> Tensor:
        share, width = self.share.to(later), self.width.to(later)
        same = share.log() + normal_log_prob(difference, width)
        return log_sum(same, (-share).log1p() + normal_log_prob(later, 1.0))

    def follow(self, first: Tensor) -> Tensor:
        shape = torch.Size([*first.shape[:-2], self.frames - 1, self.dim])
        share, width = self.share.expand(shape), self.width.expand(shape)
        fresh = torch.randn_like(share)
        near = self.kept * first + width * torch.randn_like(share)
        later = torch.where(torch.rand_like(share) < share, near, fresh)
        return torch.cat([first, later], dim=-2)

    def expected_steps(self, mean: Tensor, variance: Tensor) -> Tensor:
        kept = self.kept.to(mean)
        first, later = variance[..., :1, :], variance[..., 1:, :]
        total = later + kept.square() * first  # variance of the difference
        start = mean[..., 1:, :] - kept * mean[..., :1, :]
        x, along = resolved(start, total.sqrt(), self.width.to(mean))
        y, across = (
            a.view(-1, 1, *[1] * mean.dim()) for a in hermite(ACROSS, mean.dtype, mean.device)
        )
        given = mean[..., 1:, :] + later / total * (x - start)
        spread = (later * kept.square() * first / total).sqrt()
        return -(across * along * self._mixed(x, given + spread * y)).sum((0, 1))
