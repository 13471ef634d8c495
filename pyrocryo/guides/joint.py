"""A guide whose frames know of one another: what one shows narrows the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrocryo.context import wanted
from pyrocryo.errors import InputError
from pyrocryo.guides.amortised import Amortised
from pyrocryo.joint_normal import JointNormal
from pyrocryo.particles import Particles
from pyrocryo.precision import applied

__all__ = ["Joint"]

GIVEN = ("images", "rotation", "shift")


class Joint(nn.Module):
    r"""The normal over all T frames of a molecule, with all T K × T K covariances.

    .. math:: q(u | x) \propto N(u; 0, P^{-1}) \prod_t N(u_t; \mu_t, L_t L_t^\top)

    with μ and `L` what the guide within reads off each frame alone, and one precision
    :math:`P = A A^\top` that all molecules share, learned: the prior's part, which ties frames
    together (the message passing of Johnson et al. 2016, with one Gaussian for the prior). So
    encoders need to say only what an image tells; `P` starts as that of independent frames,
    N(0, I). Its KL to a transition prior is exact
    (:class:`pyrocryo.priors.LaplaceTransition` and its siblings), else sampled.

    Example::

        pc.Pair(prior, volume, box=particles.box, guide=pc.guides.Joint(frames=2))

    Args:
        guide: The guide within; :class:`pyrocryo.guides.Amortised` by default.
        frames: Frames T of each particle.
    """

    law = JointNormal

    def __init__(self, guide: nn.Module | None = None, *, frames: int) -> None:
        super().__init__()
        if frames < 2:
            raise InputError(f"frames: expected at least 2 that know of one another, got {frames}")
        self.guide = guide if guide is not None else Amortised()
        if hasattr(self.guide, "law"):
            raise InputError(
                f"guide: {type(self.guide).__name__} gives no normal of each frame alone"
            )
        self.frames = int(frames)

    def extra_repr(self) -> str:
        """What decides its answer beside the weights: resuming goes by it."""
        return f"frames={self.frames}"

    @property
    def fields(self) -> list[str]:
        """Fields of the particles that the guide within wants."""
        return [name for name in wanted(self.guide) if name not in GIVEN]

    def build(self, latent: int, box: int, volume: nn.Module) -> Joint:
        """Makes the guide within for K = ``latent``."""
        self.guide = self.guide.build(latent, box, volume)
        n = self.frames * latent
        self.diagonal = nn.Parameter(torch.empty(n))
        self.below = nn.Parameter(torch.empty(n * (n - 1) // 2))
        below = torch.tril_indices(n, n, offset=-1)
        self.register_buffer("_below", below, persistent=False)
        self.reset_parameters()
        return self

    def reset_parameters(self) -> None:
        """`P` back to 1: independent frames."""
        nn.init.zeros_(self.diagonal)
        nn.init.zeros_(self.below)

    def check(self, particles: Particles) -> None:
        """Raises InputError if the particles have other frames."""
        if particles.frames != self.frames:
            raise InputError(
                f"frames: the guide Joint was made for {self.frames}, the particles have "
                f"{particles.frames}"
            )
        if hasattr(self.guide, "check"):
            self.guide.check(particles)

    def forward(
        self, images: Tensor, rotation: Tensor, shift: Tensor, **known: Any
    ) -> tuple[Tensor, Tensor]:
        """Mean `(..., T, K)` and Cholesky factor `(..., T K, T K)` of each molecule's posterior.

        Args:
            images: `(B, T, D, D)`.
            rotation: `(..., B, T, 3, 3)`.
            shift: `(..., B, T, 2)` in pixels.
            known: What the guide within wants.
        """
        loc, scale = self.guide(images, rotation, shift, **known)
        each = torch.cholesky_inverse(scale)
        root = torch.diag_embed(self.diagonal.exp())
        root[self._below[0], self._below[1]] = self.below
        precision = _blocks(each) + root @ root.transpose(-1, -2)
        told = applied(each, loc).flatten(-2)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        mean = applied(covariance, told).unflatten(-1, loc.shape[-2:])
        return mean, torch.linalg.cholesky(covariance)


def _blocks(each: Tensor) -> Tensor:
    """Matrices `(..., T, K, K)` along the diagonal of one `(..., T K, T K)`."""
    frames, k = each.shape[-3:-1]
    eye = torch.eye(frames, dtype=each.dtype, device=each.device)
    spread = each.unsqueeze(-2) * eye[:, None, :, None]  # (..., T, K, T, K)
    return spread.flatten(-4, -3).flatten(-2, -1)
