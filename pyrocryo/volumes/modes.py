"""A volume of atoms that move along given modes, such as those of an elastic network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging import one_each
from pyrocryo.volumes.gaussians import GaussianVolume

__all__ = ["NormalModes"]


class NormalModes(GaussianVolume):
    r"""Gaussians at :math:`r_a(z) = r_a^{(0)} + \sum_k s_k z_k m_{ka}`, all of them known.

    .. math:: s_k = a \sqrt{k_B 300 \text{ K} / \gamma \lambda_k}

    One unit of `z` is the thermal amplitude of its mode at 300 K times ``amplitude``. Learned are
    widths and heights, the brightness and the background, as by
    :class:`pyrocryo.volumes.Atoms`; the motion has no parameters, so that `z` is in units that
    mean something and cannot be warped. A basis that is turned by the pair's rotation layer is no
    longer the one of the modes: give the pair ``rotate=False`` to keep each to its axis.

    Modes identify `z` only so far as they are the molecule's own motions: a turned basis fits the
    images as well, with other axes.

    Args:
        modes: With ``positions`` `(A, 3)` in Å from the box centre, ``vectors`` `(n, A, 3)`,
            ``scales(amplitude)`` and ``stiffness(amplitude)``, such as
            :func:`pyrocryo.molecules.normal_modes`. The first K are used for a `z` of K numbers.
        pixel_size: Å per pixel of the images.
        amplitude: Factor `a` on the thermal amplitudes, or one for each mode `(n,)`.
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
        width: Any = 4.0,
        weight: Any = 1.0,
        side: int | None = None,
    ) -> None:
        super().__init__(pixel_size=pixel_size, dim=3, count=len(modes.positions), side=side)
        self._modes = modes
        self.scale = modes.scales(amplitude)
        self.stiffness = modes.stiffness(amplitude)
        self._width = one_each("width", width, self.count)
        self._weight = one_each("weight", weight, self.count, least=0.0)

    def build(self, latent: int, box: int) -> NormalModes:
        """Makes the parameters for `z` of ``latent`` numbers and images of ``box`` pixels."""
        if latent > len(self.scale):
            raise InputError(f"dim: there are {len(self.scale)} modes, z has {latent} numbers")
        reference = np.asarray(self._modes.positions)
        half = box * self.pixel_size / 2
        outside = int((np.abs(reference) > half).any(axis=1).sum())
        if 2 * outside > self.count:
            raise InputError(
                f"modes: {outside} of {self.count} atoms are outside of the box, which reaches "
                f"from -{half:g} to {half:g} Å about its centre; centre the structure"
            )
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
        return self

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        far = np.linspace(1, 2, len(self.scale)) * self.scale
        far = self._modes.positions + np.tensordot(far, self._modes.vectors, axes=1)
        told = [f"{value:.5g}" for value in (*self.scale, *np.abs(far).mean(axis=0))]
        return f"{super().extra_repr()}, modes=[{', '.join(told)}]"

    def centres(self, z: Tensor) -> Tensor:
        """Positions `(..., A, 3)` in pixels from the box centre, of `z` `(..., K)`."""
        return self.start + (z @ self.along.flatten(1)).unflatten(-1, self.start.shape)
