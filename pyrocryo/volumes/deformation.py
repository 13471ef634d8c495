"""A volume that flows: residues, or the density of a map, carried along by a smooth field."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.imaging import one_each
from pyrocryo.perceptron import perceptron
from pyrocryo.precision import exact
from pyrocryo.volumes.gaussians import SPEED, GaussianVolume

__all__ = ["Deformation", "control_points"]

FIRST = 1.0  # size of the first motions: weights in units of the kernel's length
WIDER = 1.25  # default length of the kernel, in mean distances of a control point from the next
FILLED = 0.6  # standard deviation of a map's Gaussians, in units of their spacing
FAINTEST = 0.1  # of a map's maximum: what counts as molecule unless told
SHARPENED = 20  # rounds that find heights whose sum is the map
LLOYD = 10  # rounds of k-means


class Deformation(GaussianVolume):
    r"""Gaussians carried for one unit of time by a smooth velocity field that `z` sets.

    .. math:: \dot r = v(r; z), \quad r(0) = r_a, \quad
              v(r; z) = \sum_j K(|r - c_j| / l)\, w_j(z), \quad K(s) = e^{-s^2 / 2}

    with control points :math:`c_j` spread over the molecule and weights
    :math:`w(z) = w_0 + f(z) - f(0)` of a network `f`: images of `z = 0` start as those of the
    reference, and :math:`w_0` adapts it. What is carried are residues, or the voxels of a map
    (:meth:`of_map`), each with its mass, as by the convection of 3DFlex (Punjani & Fleet 2023);
    there, a mesh moves and rigidity is a penalty.

    With ``incompressible``, the field is the curl of a vector potential,

    .. math:: v = \nabla \times \sum_j \tfrac{l}{2} K(|s_j|)\, w_j \times s_j
                = \sum_j K \big[(1 - \tfrac{1}{2} |s_j|^2)\, w_j
                  + \tfrac{1}{2} (s_j \cdot w_j)\, s_j\big],
              \quad s_j = (r - c_j) / l,

    so that it has no divergence anywhere and the flow keeps every volume, to the error of its
    integration: each control point sends a jet along :math:`w_j`, which returns around it.

    The flow of a smooth field is invertible, so that it cannot fold (integrated with ``steps``
    enough: :meth:`carried` goes both ways), and bonds do not break where a rigid body would end.
    They stretch: the length of a bond is between
    :math:`e^{-\int |\nabla v| dt}` and :math:`e^{\int |\nabla v| dt}` times that of the reference,
    with the norm (the largest stretch) along the way of its atoms. Nothing holds residues
    together beyond that; :class:`pyrocryo.penalties.Bonds` does, and
    :func:`pyrocryo.diagnose.stereochemistry` says how far bonds are off.

    Images, heights, widths, brightness and background are those of :class:`GaussianVolume`.

    Args:
        positions: `(A, 3)` in Å from the box centre; in the order of the chain for restraints.
        pixel_size: Å per pixel of the images.
        points: Number of control points, at most A.
        length: `l` in Å; by default 1.25 times the mean distance of a control point from the next.
        incompressible: Keep volumes.
        steps: Steps of the classical Runge-Kutta method (four fields each).
        width: First standard deviation of each Gaussian in Å, one or `(A,)`.
        weight: First height of each, one or `(A,)`.
        hidden: Widths of hidden layers between `z` and the weights; () for linear ones.
        side: Voxels along an edge of exported maps; by default the box, but at most 48.

    Attributes:
        control: Control points `(J, 3)`, Å.
        length: `l`, Å.
    """

    def __init__(
        self,
        positions: Any,
        *,
        pixel_size: float,
        points: int = 24,
        length: float | None = None,
        incompressible: bool = False,
        steps: int = 1,
        width: Any = 4.0,
        weight: Any = 1.0,
        hidden: tuple[int, ...] = (64,),
        side: int | None = None,
    ) -> None:
        positions = torch.as_tensor(positions, dtype=torch.get_default_dtype())
        if positions.dim() != 2 or positions.shape[1] != 3 or not len(positions):
            raise InputError(f"positions: expected (A, 3) in Å, got {tuple(positions.shape)}")
        if not positions.isfinite().all():
            raise InputError("positions: expected finite numbers of Å, got some that are not")
        super().__init__(pixel_size=pixel_size, dim=3, count=len(positions), side=side)
        if points != int(points) or not 1 <= points:
            raise InputError(f"points: expected at least 1 control point, got {points}")
        if length is not None and not 0 < length < float("inf"):
            raise InputError(f"length: expected a positive number of Å, got {length}")
        if steps != int(steps) or steps < 1:
            raise InputError(f"steps: expected at least 1 step of integration, got {steps}")
        self._reference = positions
        self._width = one_each("width", width, self.count)
        self._weight = one_each("weight", weight, self.count, least=0.0)
        self.control = control_points(positions.double().numpy(), int(points))
        self.length = float(WIDER * _spacing(self.control) if length is None else length)
        self.incompressible = bool(incompressible)
        self.steps = int(steps)
        self.hidden = tuple(hidden)

    @classmethod
    def of_map(
        cls,
        density: Any,
        voxel_size: float,
        *,
        pixel_size: float,
        threshold: float | None = None,
        most: int = 2000,
        **options: Any,
    ) -> Deformation:
        """The density of a consensus map, to be carried.

        Voxels are joined to cubes, of the smallest edge that leaves at most ``most`` of them above
        the threshold. Each of these is a Gaussian with a standard deviation of 0.6 edges; heights
        start so that their sum is the map at the centres of the cubes, and are learned. Density
        below the threshold is left out: background is not carried.

        Images show where density is, not which: within even density the flow may slide unseen, so
        that conformations are found better than the ways of single residues (:meth:`carried`).

        Args:
            density: `(D, D, D)`, indexed `[z, y, x]`, with the box centre at voxel ``D // 2``, as
                :func:`pyrocryo.io.read_map` gives it.
            voxel_size: Å per voxel.
            pixel_size: Å per pixel of the images.
            threshold: Least density of the molecule; by default a tenth of the maximum.
            most: Gaussians at most; the cost of an image grows with them.
            options: ``points``, ``length``, ``incompressible``, ``steps``, ``hidden`` and
                ``side``, as above.
        """
        density = np.asarray(density, dtype=np.float64)
        if density.ndim != 3 or len(set(density.shape)) != 1 or not np.isfinite(density).all():
            raise InputError(
                f"density: expected a finite map (D, D, D), got shape {density.shape}"
            )
        if not 0 < voxel_size < float("inf"):
            raise InputError(f"voxel_size: expected a positive number of Å, got {voxel_size}")
        if most != int(most) or most < 1:
            raise InputError(f"most: expected at least 1 Gaussian, got {most}")
        least = FAINTEST * density.max() if threshold is None else float(threshold)
        if not 0 <= least < density.max():
            raise InputError(
                f"threshold: expected a density from 0 to below the map's maximum, which is "
                f"{density.max():.4g}, got {least:.4g}"
            )
        edge = 1
        while ((cubes := _joined(density, edge)) > least).sum() > most:
            edge += 1
        inside = cubes > least
        if not inside.any():
            raise InputError(f"most: {most} Gaussians are too few for any above {least:.4g}")
        index = np.argwhere(inside)[:, ::-1]  # x, y, z
        positions = (index * edge + (edge - 1) / 2 - len(density) // 2) * voxel_size
        spacing = edge * voxel_size
        new = cls(
            positions,
            pixel_size=pixel_size,
            width=FILLED * spacing,
            weight=_heights(cubes, inside)[inside],
            **options,
        )
        new.chain = False
        return new

    def build(self, latent: int, box: int) -> Deformation:
        """Makes the parameters for `z` of ``latent`` numbers and images of ``box`` pixels."""
        start = self._reference / self.pixel_size
        self._place(start, self._width / self.pixel_size, self._weight, box=box, learned=True)
        self._learn_shapes()
        middle = self.control.mean(axis=0)
        near = torch.as_tensor((self.control - middle) / self.length, dtype=start.dtype)
        self.register_buffer("middle", torch.as_tensor(middle, dtype=start.dtype))
        self.register_buffer("near", near)  # control points as the field sees them
        overlap = (-0.5 * torch.cdist(near, near).square()).exp().sum(1).mean()
        self.first = FIRST / float(overlap)  # longer kernels do not start with more
        self.rest = nn.Parameter(torch.zeros_like(near))
        self.field = perceptron(latent, self.hidden, near.numel(), bias=False)
        return self

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        kept = ", incompressible" if self.incompressible else ""
        return (
            f"{super().extra_repr()}, points={len(self.control)}, length={self.length:.5g}, "
            f"steps={self.steps}{kept}"
        )

    @property
    def numbers_an_image(self) -> int:
        """Numbers held while one image is made, for those who choose how many to make at once."""
        return super().numbers_an_image + 8 * self.steps * self.count * len(self.control)

    def centres(self, z: Tensor) -> Tensor:
        """Positions `(..., A, 3)` in pixels from the box centre, of `z` `(..., K)`."""
        return self.carried(self.start * self.pixel_size, z) / self.pixel_size

    @exact
    def carried(self, points: Tensor, z: Tensor, *, back: bool = False) -> Tensor:
        """Where points of the reference go: such as all atoms, where residues were fitted.

        Args:
            points: `(n, 3)`, or `(..., n, 3)` with the leading axes of `z`; Å from the box centre.
            z: `(..., K)`.
            back: From the conformation to the reference instead: the inverse, to the error of the
                integration.

        Returns:
            `(..., n, 3)`, Å.
        """
        weights = self._weights(z)
        if back:
            weights = -weights
        start = (points - self.middle) / self.length
        s = start.expand(*torch.broadcast_shapes(start.shape[:-2], z.shape[:-1]), -1, -1)
        h = 1.0 / self.steps
        for _ in range(self.steps):
            first = self._velocity(s, weights)
            second = self._velocity(s + h / 2 * first, weights)
            third = self._velocity(s + h / 2 * second, weights)
            fourth = self._velocity(s + h * third, weights)
            s = s + h / 6 * (first + 2 * (second + third) + fourth)
        return points + self.length * (s - start)

    def velocity(self, points: Tensor, z: Tensor) -> Tensor:
        """The field `v` in Å per unit of time at points `(..., n, 3)` in Å."""
        s = (points - self.middle) / self.length
        return self.length * self._velocity(s, self._weights(z))

    def _weights(self, z: Tensor) -> Tensor:
        """What kernels are multiplied with: `(..., J, 3)`, in units of `l`; 19 if incompressible.

        All that a sum over control points has to know of `w` and `c`, so that it is one matrix
        product.
        """
        moved = self.field(z) - self.field(z.new_zeros(z.shape[-1]))
        w = self.first * (SPEED * self.rest + moved.unflatten(-1, self.near.shape))
        if not self.incompressible:
            return w
        c = self.near
        along = (c * w).sum(-1, keepdim=True)
        outer = (c.unsqueeze(-1) * w.unsqueeze(-2)).flatten(-2)
        return torch.cat([w, c.square().sum(-1, keepdim=True) * w, along, along * c, outer], -1)

    def _velocity(self, s: Tensor, weights: Tensor) -> Tensor:
        c = self.near
        square = s.square().sum(-1, keepdim=True)
        summed = (s @ c.T - 0.5 * (square + c.square().sum(-1))).exp() @ weights
        if not self.incompressible:
            return summed
        w, square_w, along, along_c, outer = summed.split((3, 3, 1, 3, 9), dim=-1)
        outer = outer.unflatten(-1, (3, 3))
        across = (s.unsqueeze(-1) * outer).sum(-2) - 0.5 * (outer * s.unsqueeze(-2)).sum(-1)
        ahead = s * ((s * w).sum(-1, keepdim=True) - along) + along_c
        return w - 0.5 * (square * w + square_w) + across + 0.5 * ahead


def control_points(positions: np.ndarray, count: int) -> np.ndarray:
    """Points `(J, 3)` spread evenly over positions `(A, 3)`: the means of k-means.

    It starts from positions that are each the furthest from those before, the first the one
    nearest to the mean; no random number is drawn. There are fewer than ``count`` where there are
    not as many different positions.
    """
    from_mean = np.linalg.norm(positions - positions.mean(axis=0), axis=1)
    chosen = [int(from_mean.argmin())]
    nearest = np.linalg.norm(positions - positions[chosen[0]], axis=1)
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        from_last = np.linalg.norm(positions - positions[chosen[-1]], axis=1)
        nearest = np.minimum(nearest, from_last)
    means = positions[chosen]
    for _ in range(LLOYD):
        owner = ((positions[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
        size = np.bincount(owner, minlength=len(means))
        total = np.stack([np.bincount(owner, x, len(means)) for x in positions.T], axis=1)
        means = np.where(size[:, None] > 0, total / np.maximum(size, 1)[:, None], means)
    return means


def _spacing(points: np.ndarray) -> float:
    """Mean distance of a point from the next, or 10 Å if there is one only."""
    if len(points) == 1:
        return 10.0
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    return float((distance + np.diag(np.full(len(points), np.inf))).min(axis=1).mean())


def _joined(density: np.ndarray, edge: int) -> np.ndarray:
    """Means over cubes of ``edge`` voxels, with 0 beyond the map."""
    n = -(-len(density) // edge)
    padded = np.pad(density, (0, n * edge - len(density)))
    return padded.reshape(n, edge, n, edge, n, edge).mean(axis=(1, 3, 5))


def _heights(cubes: np.ndarray, inside: np.ndarray) -> np.ndarray:
    r"""Heights `h` at the cubes inside whose Gaussians add up to their density `d`.

    .. math:: h \leftarrow h\, d / G h

    which keeps them positive (the ratio update of Gold 1964).
    """
    place = np.arange(len(cubes))
    blur = np.exp(-0.5 * ((place[:, None] - place) / FILLED) ** 2)
    height = np.where(inside, cubes, 0.0)
    for _ in range(SHARPENED):
        seen = np.einsum("ai,bj,ck,ijk->abc", blur, blur, blur, height, optimize=True)
        height = np.where(inside, height * cubes / np.maximum(seen, 1e-300), 0.0)
    return height
