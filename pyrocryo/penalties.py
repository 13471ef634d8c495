r"""What is known of molecules and decoders in general, as further terms of the loss.

``pc.fit(pair, particles, penalties=(pc.penalties.Bonds(), pc.penalties.Clashes()))``. Each is
weighed in nats a particle, beside the negative ELBO. All look at draws `z` of the posterior of
some particles of the batch, and none has a gradient with respect to `z`: the decoder has to give
way, not the guide.

Stereochemistry, of volumes of atoms with a reference: :class:`Bonds` and :class:`Clashes`, as
harmonic energies. Of any decoder, by the Jacobian of its clean images, through the optics
(:mod:`pyrocryo.jacobians`): :class:`Orthogonal`, :class:`Isometric` and :class:`Sparse`. These
restrict a decoder; that an orthogonal Jacobian excludes known counterexamples (Gresele et al.
2021) is no proof that it identifies axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrocryo.chain import bond_lengths, bonded, overlaps
from pyrocryo.errors import InputError
from pyrocryo.jacobians import (
    gram,
    ima_contrast,
    isometry_contrast,
    rows,
    slopes,
    spread,
    whitened,
)
from pyrocryo.pair import Pair
from pyrocryo.precision import applied
from pyrocryo.ramp import Ramped

__all__ = ["Bonds", "Clashes", "Isometric", "Orthogonal", "Sparse", "again", "drawn_centres"]

MOST_LATENTS = 10
FLOOR = 0.01  # square of the change (in sd of the noise) below which a latent counts as dead


@dataclass(frozen=True)
class _Penalty(Ramped):
    weight: float = 1.0
    start: int = 0
    ramp: int = 0
    particles: int = 16
    kind: str = field(init=False)  # a checkpoint tells two of them apart by it

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", type(self).__name__)
        self._check_ramp()
        for name in set(self.__dataclass_fields__) - {"weight", "start", "ramp", "kind"}:
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}")


class _Stereochemical(_Penalty):
    def check(self, pair: Pair) -> None:
        """Raises InputError where a volume has no atoms, or no reference with bonds."""
        volume = pair.volume
        missing = [n for n in ("places", "start", "pixel_size") if not hasattr(volume, n)]
        if missing:
            raise InputError(
                f"penalties: {self.kind} needs a volume of atoms, and {type(volume).__name__} has "
                f"no {missing[0]}"
            )
        if (
            not getattr(volume, "chain", True)
            or not bonded(volume.start * volume.pixel_size).any()
        ):
            raise InputError(
                f"penalties: {self.kind} needs atoms in the order of a chain, and in the "
                "reference no two in a row are bonded"
            )


@dataclass(frozen=True)
class Bonds(_Stereochemical):
    r"""Bonds along the chain keep the length that they have in the reference.

    .. math:: \sum_a \frac{(|r_{a+1} - r_a| - l_a)^2}{2 s^2}

    over neighbours that are bonded (:func:`pyrocryo.chain.bonded`), a mean over conformations.
    Proteins bend without stretching, by turns about bonds that no volume here has. With the
    ``weight`` and ``sd`` of real bonds most cannot move at all: .02 suits rigid bodies with
    joints that are blended over 6 residues, .01 a flow.

    Attributes:
        weight: Of the term, beside the negative ELBO.
        start: Steps (after the rigid ones) without it.
        ramp: Steps over which the weight then rises linearly.
        particles: Of each batch, to look at.
        sd: Standard deviation `s` of a bond's length, Å.
    """

    sd: float = 0.1

    def __call__(self, pair: Pair, batch: Any) -> Tensor:
        """The energy of a conformation, in nats."""
        reference = pair.volume.start * pair.volume.pixel_size
        off = bond_lengths(drawn_centres(pair, batch, self.particles)) - bond_lengths(reference)
        return 0.5 * (off / self.sd).square().mul(bonded(reference)).sum(-1).mean()


@dataclass(frozen=True)
class Clashes(_Stereochemical):
    r"""Atoms three and more places apart along the chain keep a distance `d`.

    .. math:: \sum_{b \ge a + 3} \frac{(d - |r_b - r_a|)_+^2}{2 s^2}

    a mean over conformations. All pairs are looked at: memory grows with the square of the number
    of atoms, times ``particles``.

    Attributes:
        weight: Of the term, beside the negative ELBO.
        start: Steps (after the rigid ones) without it.
        ramp: Steps over which the weight then rises linearly.
        particles: Of each batch, to look at.
        distance: `d`, Å; the default is for Cα.
        sd: `s`, Å.
    """

    distance: float = 3.5
    sd: float = 0.2

    def __call__(self, pair: Pair, batch: Any) -> Tensor:
        """The energy of a conformation, in nats."""
        near = overlaps(drawn_centres(pair, batch, self.particles), self.distance)
        return 0.5 * (near / self.sd).square().sum((-2, -1)).mean()


class _OfDecoder(_Penalty):
    def check(self, pair: Pair) -> None:
        """Raises InputError where there are too many latents, or one particle to scale them by."""
        if not self.particles > 1:
            raise InputError(
                f"penalties: {self.kind} needs two particles or more, got {self.particles}"
            )
        if pair.dim > MOST_LATENTS:
            raise InputError(
                f"penalties: {self.kind} makes two images a latent, and takes at most "
                f"{MOST_LATENTS} latents; got {pair.dim}"
            )

    def _slopes(self, pair: Pair, batch: Any) -> Tensor:
        """Whitened slopes `(K, images, pixels)`, in the precision of `z`."""
        some, z, direction = posed_draws(pair, batch, self.particles)
        scale = z.detach().flatten(0, -2).std(dim=0, correction=0).clamp_min(1e-6)
        where = pair.placed(some, direction)
        turn = pair.rotation().T
        u = applied(turn.detach(), z)  # a draw of z turns with the layer, its u does not

        def seen(moved: Tensor) -> Tensor:
            # without autocast: differences of images in bfloat16 would be rounding
            clean = pair.volume(u + applied(turn, moved - z), *where)
            if pair.optics is not None:
                clean = pair.optics(clean, some)
            return whitened(pair, clean)

        return rows(slopes(seen, z, scale))


@dataclass(frozen=True)
class Orthogonal(_OfDecoder):
    r"""Latents change images at right angles: independent mechanism analysis.

    .. math:: \sum_k \ln |J_k| - \tfrac12 \ln \det J^\top J, \quad J^\top J + f 1

    a mean over particles (Gresele et al. 2021, Eq. 11;
    :func:`pyrocryo.jacobians.ima_contrast`), with a floor `f` = .01 so that latents that change
    nothing, or all the same, have a finite gradient. :func:`pyrocryo.identify.jacobian` reports
    it without the floor as ``ima``.

    Attributes:
        weight: Of the contrast, beside the negative ELBO.
        start: Steps (after the rigid ones) without it.
        ramp: Steps over which the weight then rises linearly.
        particles: Of each batch, to look at.
    """

    weight: float = 10.0

    def __call__(self, pair: Pair, batch: Any) -> Tensor:
        """The contrast, in nats."""
        found = gram(self._slopes(pair, batch))
        return ima_contrast(found + FLOOR * torch.eye(pair.dim).to(found)).mean()


@dataclass(frozen=True)
class Isometric(_OfDecoder):
    """A standard deviation of any latent, anywhere, changes images by as much.

    :func:`pyrocryo.jacobians.isometry_contrast` (Horan, Richardson & Weiss 2021), a mean over
    particles; :func:`pyrocryo.identify.jacobian` reports it as ``isometry``.

    Attributes:
        weight: Of the contrast, beside the negative ELBO.
        start: Steps (after the rigid ones) without it.
        ramp: Steps over which the weight then rises linearly.
        particles: Of each batch, to look at.
    """

    weight: float = 10.0

    def __call__(self, pair: Pair, batch: Any) -> Tensor:
        """The contrast, without a unit."""
        return isometry_contrast(gram(self._slopes(pair, batch))).mean()


@dataclass(frozen=True)
class Sparse(_OfDecoder):
    """Each latent changes few pixels.

    :func:`pyrocryo.jacobians.spread`, a sum over latents and a mean over particles (a norm of the
    Jacobian as of Zheng, Ng & Zhang 2022, that a smaller scale does not lower);
    :func:`pyrocryo.identify.jacobian` reports it as ``spread``.

    Attributes:
        weight: Of the sum, beside the negative ELBO.
        start: Steps (after the rigid ones) without it.
        ramp: Steps over which the weight then rises linearly.
        particles: Of each batch, to look at.
    """

    weight: float = 10.0

    def __call__(self, pair: Pair, batch: Any) -> Tensor:
        """The sum, between 0 and K."""
        return spread(self._slopes(pair, batch), FLOOR).mean(1).sum()


def posed_draws(pair: Pair, batch: Any, most: int) -> tuple[Any, Tensor, Tensor | None]:
    """The first ``most`` particles of a batch, and a draw `z` `(n, [T,] K)` of each posterior.

    With the mean of the pose's, where poses are unknown. Neither has a gradient.
    """
    some = batch._make(value[:most] if value.dim() else value for value in batch)
    with torch.no_grad():
        direction = pair.pose_of(some).mean if pair.pose.latent else None
        return some, pair.posterior_of(some, direction).rsample(), direction


def drawn_centres(pair: Pair, batch: Any, most: int) -> Tensor:
    """Positions `(n, A, dim)` in Å at draws of :func:`posed_draws`.

    The rotation layer has no gradient of them: it turns the draw and what is decoded alike.

    Args:
        pair: Whose volume has atoms.
        batch: Particles whose conformations are drawn.
        most: Draws, at most.
    """
    _, z, _ = posed_draws(pair, batch, most)
    u = applied(pair.rotation().detach().T, z.flatten(0, -2))
    return pair.volume.places(u) * pair.volume.pixel_size


def again(told: dict[str, Any]) -> _Penalty:
    """The penalty that a checkpoint tells of.

    Raises:
        InputError: If it is of a kind that is not defined here.
    """
    kinds = {kind.__name__: kind for kind in (Bonds, Clashes, Orthogonal, Isometric, Sparse)}
    kind = told.get("kind")
    if kind not in kinds:
        raise InputError(f"penalties: {kind or told} is none of {', '.join(kinds)}")
    return kinds[kind](**{name: value for name, value in told.items() if name != "kind"})
