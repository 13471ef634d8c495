"""A guide that knows which components stand still in the cold: the paper's thought experiment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrocryo.context import wanted
from pyrocryo.errors import InputError
from pyrocryo.guides.amortised import Amortised
from pyrocryo.particles import Particles

__all__ = ["Frozen"]

GIVEN = ("images", "rotation", "shift")


class Frozen(nn.Module):
    r"""Particles colder than ``below`` are encoded without some of the components.

    .. math:: q(u | x, \tau) = N(u_{free}; \mu, L L^\top) \, N(u_{frozen}; 0, s^2)
              \quad \text{for } \tau < \tau_0

    and the guide within otherwise. "Fit a model to the data at temperature :math:`\tau_b` with the
    additional constraint that the same model also has to be able to encode the data at temperature
    :math:`\tau_a`, albeit, with only the first latent dimension" (Klindt et al. 2024, section
    4.2.2): the decoder must explain cold particles by the free components alone. With a prior
    whose frozen components have the same `s` there, they cost nothing.

    Components are those of `u`, which the decoder sees; they are those of `z` where the pair has
    no rotation layer, or one that stays at the identity, as under such a prior it does.

    Two arms, 300 and 180 K, the second arm's spread at 180 K as given (SNR 2.56, box 20, poses
    known, 1500 steps of 32; scored at 300 K; mean ± sd of 8 seeds, 24 at .1; ELBO in nats a
    particle), against a prior that is told the spread, with a rotation layer:

    ======  =====================  =====================  ====================
    spread  R², seeds within 10°   told, with a layer     ELBO against it
    ======  =====================  =====================  ====================
    .01     .975 ± .003, 8 of 8    .720 ± .109, 8 of 8    +10 (components die)
    .1      .972 ± .005, 24 of 24  .926 ± .128, 23 of 24  0
    .3      .973 ± .006, 8 of 8    .921 ± .065, 6 of 8    -1
    .6      .898 ± .215, 7 of 8    .952 ± .070, 8 of 8    -12
    1       .939 ± .078, 8 of 8    .975 ± .009, 3 of 8    -24
    ======  =====================  =====================  ====================

    No component dies where the assumption holds. A prior of spread .01 alone, without the guide,
    gets .66 ± .23. The last row is a warning: nothing stands still there, and the axes are aligned
    all the same, since the guide forces them to be; what tells is the ELBO beside that of a plain
    guide and a prior of the spread that was seen.

    Example::

        prior = pc.priors.Boltzmann(table={300.0: (1.0, 1.0), 180.0: (1.0, 1e-2)})
        guide = pc.guides.Frozen(below=200.0, components=[1])
        pc.Pair(prior, volume, box=particles.box, guide=guide, rotate=False)

    Args:
        guide: The guide within; :class:`pyrocryo.guides.Amortised` by default.
        below: Temperature in K under which components are frozen.
        components: Which, counted from 0; not all of them.
        sd: Standard deviation `s` that is left to them.
    """

    def __init__(
        self,
        guide: nn.Module | None = None,
        *,
        below: float,
        components: Sequence[int],
        sd: float = 1e-2,
    ) -> None:
        super().__init__()
        if not below > 0:
            raise InputError(f"below: expected a temperature in K, got {below}")
        if not sd > 0:
            raise InputError(f"sd: expected a positive standard deviation, got {sd}")
        self.guide = guide if guide is not None else Amortised()
        if hasattr(self.guide, "law"):
            raise InputError(
                f"guide: {type(self.guide).__name__} gives no normal of each frame alone"
            )
        self.below = float(below)
        self.components = tuple(components)
        self.sd = float(sd)
        if not self.components or len(set(self.components)) < len(self.components):
            raise InputError(
                f"components: expected at least one, each different, got {self.components}"
            )

    def extra_repr(self) -> str:
        """What decides its answer beside the weights: resuming goes by it."""
        return f"below={self.below:g}, components={self.components}, sd={self.sd:g}"

    @property
    def fields(self) -> list[str]:
        """Fields of the particles that it wants, those of the guide within among them."""
        return [*self._inner(), "temperature"]

    def build(self, latent: int, box: int, volume: nn.Module) -> Frozen:
        """Makes the guide within for K = ``latent``."""
        if min(self.components) < 0 or max(self.components) >= latent:
            raise InputError(
                f"components: expected numbers from 0 to {latent - 1}, got {self.components}"
            )
        if len(self.components) == latent:
            raise InputError("components: with all of them frozen nothing is left to encode")
        self.guide = self.guide.build(latent, box, volume)
        frozen = torch.zeros(latent, dtype=torch.bool)
        frozen[list(self.components)] = True
        self.register_buffer("frozen", frozen)
        return self

    def check(self, particles: Particles) -> None:
        """Raises InputError if the particles do not say how cold they are."""
        if "temperature" not in particles.fields:
            raise InputError(
                "temperature: the guide Frozen needs the temperature of each particle, and these "
                "particles have none"
            )
        if hasattr(self.guide, "check"):
            self.guide.check(particles)

    def forward(
        self, images: Tensor, rotation: Tensor, shift: Tensor, **known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean `(..., K)` and Cholesky factor `(..., K, K)` of each image's posterior.

        Args:
            images: `(B, [T,] D, D)`.
            rotation: `(..., B, [T,] 3, 3)`.
            shift: `(..., B, [T,] 2)` in pixels.
            known: ``temperature`` `(B,)` in K, and what the guide within wants.
        """
        inner = {name: known[name] for name in self._inner()}
        loc, scale = self.guide(images, rotation, shift, **inner)
        cold = known["temperature"] < self.below
        cold = cold.view(-1, *[1] * (images.dim() - 2))  # (B, 1) or (B, 1, 1)
        still = cold & self.frozen
        loc = torch.where(still, 0.0, loc)
        # neither their rows nor their columns: frozen components know nothing of the others
        apart = still.unsqueeze(-1) | still.unsqueeze(-2)
        own = torch.diag_embed(still.to(scale)) * self.sd
        return loc, torch.where(apart, own, scale)

    def _inner(self) -> list[str]:
        return [name for name in wanted(self.guide) if name not in (*GIVEN, "temperature")]
