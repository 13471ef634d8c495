"""Volumes v(z): from a conformation to a density and its images."""

from __future__ import annotations

from typing import Literal

from torch import nn

from pyrocryo.particles import Particles
from pyrocryo.volumes.atoms import Atoms
from pyrocryo.volumes.deformation import Deformation
from pyrocryo.volumes.fourier import ImplicitFourier
from pyrocryo.volumes.grid import Grid
from pyrocryo.volumes.implicit import Implicit
from pyrocryo.volumes.modes import NormalModes
from pyrocryo.volumes.rigid import RigidBodies

__all__ = [
    "Atoms",
    "Deformation",
    "Grid",
    "Implicit",
    "ImplicitFourier",
    "Kind",
    "NormalModes",
    "RigidBodies",
    "of_kind",
]

Kind = Literal["grid", "implicit", "fourier", "atoms"]


def of_kind(
    kind: Kind,
    particles: Particles,
    *,
    dim: int = 2,
    side: int | None = None,
    whole: bool = False,
) -> nn.Module:
    """The volume that a word on the command line stands for, to fit ``particles``.

    Args:
        kind: "grid", "implicit", "fourier" (implicit, by slices) or "atoms" (without a reference).
        particles: For their pixel size.
        dim: 2 for flat particles, 3 for maps.
        side: Voxels along an edge of maps.
        whole: Show whole images while training, as optics need them.
    """
    if kind == "atoms":
        count = 64 if dim == 2 else 256
        return Atoms(pixel_size=particles.pixel_size, dim=dim, count=count, side=side)
    if kind == "implicit" and whole:
        return Implicit(dim, side=side, pixels=None)
    return {"grid": Grid, "implicit": Implicit, "fourier": ImplicitFourier}[kind](dim, side=side)
