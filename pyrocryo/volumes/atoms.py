"""A volume of atoms: Gaussians that the conformation moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.imaging import one_each
from pyrocryo.perceptron import perceptron
from pyrocryo.volumes.gaussians import SPEED, GaussianVolume

__all__ = ["Atoms"]

FILLED = 0.7  # share of the half-box that atoms without a reference fill at first


class Atoms(GaussianVolume):
    r"""Gaussians at :math:`r_a(z) = r_a^{(0)} + \sum_k z_k d_{ak}`: a reference and its modes.

    .. math:: x(r) = b + \sum_a w_a e^{-|r - \pi_\phi r_a(z)|^2 / 2 s_a^2}

    Images are exact, from windows where atoms are narrow beside the box (:class:`GaussianVolume`).
    Learned are the displacement modes `d`, the heights `w`, the widths `s` and the background `b`;
    without a reference, or with one that is ``free``, positions too. With ``hidden`` layers the
    displacement is a network of `z`, and motions may be curved. :meth:`known` makes the volume of
    a molecule whose motion is known.

    Args:
        reference: `(A, 2)` or `(A, 3)` positions in Å from the box centre, or None for ``count``
            atoms on a lattice that learn where to go.
        pixel_size: Å per pixel of the images.
        dim: 2 or 3; only needed without a reference.
        count: Number of atoms without a reference.
        width: First standard deviation in Å of each Gaussian, one or `(A,)` (default: what fills
            the space between atoms on a lattice; 4 Å for a reference).
        weight: First height of each, one or `(A,)`.
        free: Whether a reference, too, learns where to go, such as one that stands for a map
            (:func:`pyrocryo.molecules.mixture`).
        hidden: Widths of hidden layers between `z` and the displacements; () for linear modes.
        side: Voxels along an edge of exported maps; by default the box, but at most 128 or 48.
    """

    def __init__(
        self,
        reference: Any = None,
        *,
        pixel_size: float,
        dim: int = 2,
        count: int = 64,
        width: Any = None,
        weight: Any = None,
        free: bool = False,
        hidden: tuple[int, ...] = (64,),
        side: int | None = None,
    ) -> None:
        if reference is not None:
            reference = torch.as_tensor(reference, dtype=torch.get_default_dtype())
            if reference.dim() != 2 or reference.shape[1] not in (2, 3) or not len(reference):
                raise InputError(
                    f"reference: expected positions (A, 2) or (A, 3), got {tuple(reference.shape)}"
                )
            dim, count = reference.shape[1], len(reference)
        super().__init__(pixel_size=pixel_size, dim=dim, count=count, side=side)
        self.hidden = tuple(hidden)
        self._reference = reference
        self._width = None if width is None else one_each("width", width, self.count)
        self._known: Callable[[Tensor], Tensor] | None = None
        self._weight = None if weight is None else one_each("weight", weight, self.count, least=0)
        self._free = free or reference is None

    @classmethod
    def known(cls, molecule: Any, *, pixel_size: float) -> Atoms:
        """The volume of a molecule whose motion is known: only its brightness is learned.

        `z` is the molecule's own conformation, so give the pair ``rotate=False``.

        Args:
            molecule: With ``centres(z)``, ``width``, ``weight`` and ``dim``, such as
                :class:`pyrocryo.molecules.AdenylateKinase`.
            pixel_size: Å per pixel of the images.
        """
        at_rest = molecule.centres(torch.zeros(molecule.dim))
        new = cls(at_rest, pixel_size=pixel_size)
        new.dim = molecule.spatial
        new._known, new._latent = molecule.centres, molecule.dim
        new._width, new._weight = molecule.width, molecule.weight
        return new

    def build(self, latent: int, box: int) -> Atoms:
        """Makes the parameters for `z` of ``latent`` numbers and images of ``box`` pixels."""
        if self._known is not None and latent != self._latent:
            raise InputError(f"dim: the molecule moves in {self._latent} ways, z has {latent}")
        learned = self._known is None
        if self._reference is None:
            start, width = _lattice(self.count, self.dim, FILLED * box / 2)
        else:
            start = self._reference / self.pixel_size
            width = torch.tensor((4.0 if self._width is None else 1.0) / self.pixel_size)
        if self._width is not None:
            width = torch.as_tensor(self._width) / self.pixel_size
        height = torch.ones(self.count) if self._weight is None else self._weight
        self._place(start, width, height, box=box, learned=learned)
        if learned:
            self.offset = nn.Parameter(torch.zeros_like(start), requires_grad=self._free)
            self._learn_shapes()
            self.displacement = perceptron(latent, self.hidden, start.numel(), bias=False)
        return self

    @property
    def axes(self) -> str | None:
        """What each latent is, where that is given."""
        return None if self._known is None else "one motion of the molecule as given"

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        told = super().extra_repr()
        if self._known is None:
            return f"{told}, free" if self._free and self._reference is not None else told
        moved = self._known(torch.linspace(-2, 2, self._latent)).abs().mean(dim=0)
        return f"{told}, known={[round(x, 4) for x in moved.tolist()]}"

    def centres(self, z: Tensor) -> Tensor:
        """Positions `(..., A, dim)` in pixels from the box centre."""
        if self._known is not None:
            return self._known(z)[..., : self.dim] / self.pixel_size
        moved = self.displacement(z).unflatten(-1, self.start.shape)
        return self.start + SPEED * self.offset + moved


def _lattice(count: int, dim: int, radius: float) -> tuple[Tensor, Tensor]:
    """About evenly spread positions `(count, dim)` in a ball, and a width that fills the gaps.

    The R-sequence of Roberts (2018), a low-discrepancy set, mapped into the ball.
    """
    golden = {2: 1.32471795724474602596, 3: 1.22074408460575947536}[dim]
    n = torch.arange(1, 8 * count + 1, dtype=torch.float64)
    cube = torch.stack([(0.5 + n / golden**k) % 1 for k in range(1, dim + 1)], dim=-1)
    ball = 2 * cube - 1
    ball = ball[ball.norm(dim=-1) <= 1][:count].to(torch.get_default_dtype()) * radius
    spacing = radius * (math.pi if dim == 2 else 4.19) ** (1 / dim) / count ** (1 / dim)
    return ball, torch.tensor(0.6 * spacing)
