"""A volume of atoms that move along given modes, such as those of an elastic network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.imaging import one_each
from pyrocryo.perceptron import perceptron
from pyrocryo.volumes.gaussians import SPEED, GaussianVolume

__all__ = ["NormalModes"]

FIRST_RMS = 1.0  # Å of all atoms along the softest mode: the unit of what is learned
SMALL = 0.01


class NormalModes(GaussianVolume):
    r"""Gaussians at :math:`r_a(z) = r_a^{(0)} + \sum_k s_k z_k m_{ka}`, all of them known.

    .. math:: s_k = a \sqrt{k_B 300 \text{ K} / \gamma \lambda_k}

    One unit of `z` is the thermal amplitude of its mode at 300 K times ``amplitude``. Learned are
    widths and heights, the brightness and the background, as by
    :class:`pyrocryo.volumes.Atoms`; the motion has no parameters, so that `z` is in units that
    mean something and cannot be warped. A basis that is turned by the pair's rotation layer is no
    longer the one of the modes: give the pair ``rotate=False`` to keep each to its axis.

    Modes identify `z` only so far as they are the molecule's own motions: a turned basis fits the
    images as well, with other axes. More can be learned, in the space of all `n` modes:

    .. math:: r_a(z) = r_a^{(0)} + \sum_{j \le n} (s_j [j \le K] z_j + c_j + f_j(z)) m_{ja}

    with a ``rest`` `c` about which particles scatter, and combinations `f`, linear or with
    ``hidden`` layers, of fewer latents than modes: a classical flexible refinement, whose axes
    prior and data decide (``rotate=True``, the default of pairs, is right then).

    Modes neither turn nor shift the molecule, but poses may be those of a part of it: when the
    domains of adenylate kinase close by the angles of :class:`pyrocryo.molecules.AdenylateKinase`
    over a CORE that stays, 10 modes of its open form come within 1.7 Å of the conformations
    (median Cα RMSD), within .56 Å of them superposed, and within .58 Å with ``whole``. Of the
    squared way to the closed form, the first 2, 10 and 20 modes have .72, .93 and .93 after
    superposition (of 1AKE .71, .93 and .94), and .57, .73 and .74 in the frame of the CORE.

    Of 1000 images of it (32 pixels of 3 Å, SNR 1, poses known, GaussNewton, 300 steps, three
    seeds that differ by .03 Å and .004), ten modes of the open form and ``amplitude`` 4: median Cα
    RMSD to the truth, as it is and superposed, and linear R² of the two hinges, whose bound by the
    true molecule is .71 and .85 (120 images):

    ================================  ======  ==========  ==========
    learned                           RMSD    superposed  R²
    ================================  ======  ==========  ==========
    10 modes, nothing                 2.60 Å  1.84 Å      .55, .69
    10 modes, rest                    2.21    1.28        .59, .75
    10 modes, rest, whole             1.58    1.37        .69, .84
    2 combinations, rest              2.14    1.14        .60, .79
    2 combinations, rest, whole       1.44    1.25        .72, .86
    2 curved (64), rest, whole        1.20    1.02        .73, .86
    ================================  ======  ==========  ==========

    Args:
        modes: With ``positions`` `(A, 3)` in Å from the box centre, ``vectors`` `(n, A, 3)`,
            ``scales(amplitude)``, ``stiffness(amplitude)`` and ``thermal()``, such as
            :func:`pyrocryo.molecules.normal_modes`. `z` of K numbers goes along the first K.
        pixel_size: Å per pixel of the images.
        amplitude: Factor `a` on the thermal amplitudes, or one for each mode `(n,)`. Domains move
            much further than springs fitted to crystals allow. Of several, the one of the lowest
            loss; or see where ``stretch`` goes; or, of another structure of the molecule, what
            :func:`pyrocryo.molecules.amplitudes` says.
        rest: Learn `c`, from 0, along all modes: for a reference that is not the mean of the
            particles. `z` then counts from there, and no longer from the reference.
        stretch: Learn one more factor on the amplitudes of `z`, from 1 (:attr:`factor`): how much
            further the molecule moves than its springs say. Units of `z` then say no more than
            how the modes compare.
        hidden: Learn `f`, from about 0: () for a linear one, or the widths of hidden layers, for
            motions that are curved; None for none.
        whole: Let turns and shifts of the molecule go with the modes (six more rows of `c` and
            `f`; without ``hidden``, of a linear `f` of theirs), to first order. For poses that
            are known; learned poses say the same.
        width: First standard deviation of each Gaussian in Å, one or `(A,)`, such as
            :attr:`pyrocryo.io.Structure.width`.
        weight: First height of each, one or `(A,)`, such as :attr:`pyrocryo.io.Structure.height`.
        side: Voxels along an edge of exported maps; by default the box, but at most 48.

    Attributes:
        scale: Å along each mode for one unit of `z`, `(n,)`.
        stiffness: Force constants in K per unit of `z` squared, n of them.
    """

    def __init__(
        self,
        modes: Any,
        *,
        pixel_size: float,
        amplitude: Any = 1.0,
        rest: bool = False,
        stretch: bool = False,
        hidden: tuple[int, ...] | None = None,
        whole: bool = False,
        width: Any = 4.0,
        weight: Any = 1.0,
        side: int | None = None,
    ) -> None:
        super().__init__(pixel_size=pixel_size, dim=3, count=len(modes.positions), side=side)
        self._modes = modes
        self.scale = modes.scales(amplitude)
        self.stiffness = modes.stiffness(amplitude)
        self.rest = rest
        self.stretch = stretch
        self.hidden = None if hidden is None else tuple(hidden)
        self.whole = whole
        self._width = one_each("width", width, self.count)
        self._weight = one_each("weight", weight, self.count, least=0.0)

    def build(self, latent: int, box: int) -> NormalModes:
        """Makes the parameters for `z` of ``latent`` numbers and images of ``box`` pixels."""
        n = len(self.scale)
        if latent > n:
            raise InputError(f"dim: there are {n} modes, z has {latent} numbers")
        reference = np.asarray(self._modes.positions)
        like = {"dtype": torch.get_default_dtype()}
        along = self.scale[:latent, None, None] * self._modes.vectors[:latent]
        self._place(
            torch.as_tensor(reference / self.pixel_size, **like),
            self._width / self.pixel_size,
            self._weight,
            box=box,
            learned=True,
        )
        self._learn_shapes()
        self.register_buffer("along", torch.as_tensor(along / self.pixel_size, **like))
        basis, thermal = self._modes.vectors, self._modes.thermal()
        if self.whole:
            basis = np.concatenate([basis, rigid(reference)])
            thermal = np.append(thermal, [thermal.max()] * 6)
        unit = FIRST_RMS * math.sqrt(self.count) * thermal / thermal.max()
        basis = unit[:, None, None] * basis / self.pixel_size
        self.register_buffer("basis", torch.as_tensor(basis, **like))
        if self.stretch:
            self.log_factor = nn.Parameter(torch.zeros(()))
        if self.rest:
            self.constant = nn.Parameter(torch.zeros(len(basis)))
        if self.hidden:
            self.network = perceptron(latent, self.hidden, len(basis), bias=False)
        elif self.hidden is not None or self.whole:
            rows = len(basis) if self.hidden is not None else 6
            self.mixing = nn.Parameter(torch.zeros(rows, latent))
        self.reset_parameters()
        return self

    def reset_parameters(self) -> None:
        """Back to where it started: the first modes, and small combinations of all."""
        super().reset_parameters()
        if self.hidden == ():
            nn.init.normal_(self.mixing, std=SMALL)

    @property
    def axes(self) -> str | None:
        """What each latent is, where that is given."""
        return "the motion along one normal mode" if self.hidden is None else None

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        far = np.linspace(1, 2, len(self.scale)) * self.scale
        far = self._modes.positions + np.tensordot(far, self._modes.vectors, axes=1)
        told = [f"{value:.5g}" for value in (*self.scale, *np.abs(far).mean(axis=0))]
        learned = {"rest": self.rest, "stretch": self.stretch, "whole": self.whole}
        more = "".join(f", {name}" for name, given in learned.items() if given)
        more += "" if self.hidden is None else f", hidden={self.hidden}"
        return f"{super().extra_repr()}, modes=[{', '.join(told)}]{more}"

    @property
    def factor(self) -> Tensor:
        """What ``amplitude`` is to be multiplied by, as learned (1 without ``stretch``)."""
        return (SPEED * self.log_factor).exp() if self.stretch else self.start.new_ones(())

    def centres(self, z: Tensor) -> Tensor:
        """Positions `(..., A, 3)` in pixels from the box centre, of `z` `(..., K)`."""
        moved = z @ (self.factor * self.along if self.stretch else self.along).flatten(1)
        further = self._further(z)
        if further is not None:
            moved = moved + further @ self.basis.flatten(1)
        return self.start + moved.unflatten(-1, self.start.shape)

    def amplitudes(self, z: Tensor) -> Tensor:
        """How far it is along each of the n modes, `(..., n)`, in units of :attr:`scale`."""
        n = len(self.scale)
        q = nn.functional.pad(self.factor * z, (0, n - z.shape[-1]))
        further = self._further(z)
        if further is None:
            return q
        length = self.basis[:n].flatten(1).norm(dim=-1) * self.pixel_size
        return q + further[..., :n] * length / torch.as_tensor(self.scale).to(z)

    def _further(self, z: Tensor) -> Tensor | None:
        """What is learned along the rows of the basis, in their units."""
        parts = []
        if self.rest:
            parts.append(SPEED * self.constant)
        if self.hidden:
            parts.append(self.network(z))
        elif self.hidden is not None or self.whole:
            mixed = SPEED * (z @ self.mixing.T)
            parts.append(nn.functional.pad(mixed, (len(self.basis) - mixed.shape[-1], 0)))
        return sum(parts[1:], parts[0]) if parts else None


def rigid(positions: np.ndarray) -> np.ndarray:
    """Shifts along three axes and turns about them, orthonormal: `(6, A, 3)`."""
    about = positions - positions.mean(axis=0)
    axes = np.eye(3)[:, None, :]
    each = np.concatenate([np.broadcast_to(axes, (3, *about.shape)), np.cross(axes, about)])
    return np.linalg.qr(each.reshape(6, -1).T)[0].T.reshape(each.shape)
