"""Atoms in a row: which are bonded, how long bonds are, and who comes too close."""

from __future__ import annotations

from torch import Tensor

__all__ = ["REACH", "bond_lengths", "bonded", "overlaps"]

REACH = 4.5  # Å: neighbours along the chain that are further apart are not bonded (Cα: 3.8 Å)
SMALLEST = 1e-6  # Å: keeps the gradient of a distance finite where it is 0


def bond_lengths(centres: Tensor) -> Tensor:
    """Distances `(..., A - 1)` of each atom `(..., A, d)` from the next, in the same units."""
    step = centres[..., 1:, :] - centres[..., :-1, :]
    return (step.square().sum(-1) + SMALLEST**2).sqrt()


def bonded(reference: Tensor, reach: float = REACH) -> Tensor:
    """Which atoms of a reference `(A, d)` in Å are bonded to the next, `(A - 1,)`.

    Those nearer than ``reach``: where a chain ends or residues are missing, there is no bond.
    """
    return bond_lengths(reference) < reach


def overlaps(centres: Tensor, distance: float, *, apart: int = 3) -> Tensor:
    """By how much pairs of atoms are nearer than ``distance``, `(..., A, A)`, each pair once.

    Args:
        centres: `(..., A, d)`.
        distance: In the same units.
        apart: Pairs fewer places apart in the row are left out, as geometry holds them close.
    """
    between = centres.unsqueeze(-2) - centres.unsqueeze(-3)
    near = distance - (between.square().sum(-1) + SMALLEST**2).sqrt()
    return near.clamp_min(0).triu(apart)
