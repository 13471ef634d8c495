"""Could the conformations be a molecule's? Bonds that tear and atoms that clash."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrocryo.chain import bond_lengths, bonded, overlaps
from pyrocryo.diagnose.common import batches, models
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.penalties import Bonds, drawn_centres
from pyrocryo.svi import Fit

__all__ = ["Stereochemistry", "stereochemistry"]

AT_ONCE = 2_000_000  # pairs of atoms
TORN = 1.0  # Å


@dataclass(frozen=True)
class Stereochemistry:
    """Violations over draws of the posterior, a number for each of S seeds.

    Attributes:
        bond_max: `(S,)` largest deviation of a bond's length from that in the reference, Å.
        bond_99: `(S,)` the deviation that 99 % of all bonds stay below, Å.
        torn: `(S,)` share of conformations with a bond off by more than 1 Å.
        worst: `(S,)` the first of the two atoms of the bond that is furthest off, from 0.
        clashes: `(S,)` pairs of atoms nearer than ``distance`` in a conformation, on average.
        clashing: `(S,)` share of conformations with any.
        nearest: `(S,)` the least distance of two atoms (but at most ``distance``), Å.
        reference_clashes: Of the reference itself.
        distance: Below which two atoms clash, Å.
        seeds: Their names.
        sentence: The same in words.
    """

    bond_max: np.ndarray
    bond_99: np.ndarray
    torn: np.ndarray
    worst: np.ndarray
    clashes: np.ndarray
    clashing: np.ndarray
    nearest: np.ndarray
    reference_clashes: int
    distance: float
    seeds: tuple[int, ...]
    sentence: str


def stereochemistry(
    fit: Fit | Pair,
    particles: Particles,
    *,
    distance: float = 3.5,
    most: int = 512,
    seed: int = 0,
) -> Stereochemistry:
    """Bond lengths and clashes of a volume of atoms, over the posterior of some particles.

        >>> print(pc.diagnose.stereochemistry(fit, particles.test).sentence)  # doctest: +SKIP

    Args:
        fit: A fit, or a trained pair, whose volume has atoms and a reference.
        particles: To take conformations from: one draw of each posterior (of each frame).
        distance: Below which two atoms, three or more places apart along the chain, clash, Å.
        most: Particles to look at.
        seed: Of the draws.

    Raises:
        InputError: If the volume has no atoms, or no reference with bonds.
    """
    if not distance > 0:
        raise InputError(f"distance: expected a positive number of Å, got {distance}")
    pairs = models(fit, particles, 1)
    found = []
    for pair in pairs.values():
        Bonds().check(pair)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            centres = torch.cat(
                [
                    drawn_centres(pair, batch, len(batch.images)).cpu()
                    for batch in batches(pair, particles.spread(most))
                ]
            )
            reference = pair.volume.start.cpu() * pair.volume.pixel_size
        found.append(violations(centres, reference, distance))
    numbers = {name: np.array([f[name] for f in found]) for name in found[0]}
    at_rest = int((overlaps(reference, distance) > 0).sum())
    return Stereochemistry(
        **numbers,
        reference_clashes=at_rest,
        distance=distance,
        seeds=tuple(pairs),
        sentence=_reading(numbers, at_rest, distance),
    )


def violations(centres: Tensor, reference: Tensor, distance: float) -> dict[str, float]:
    """Numbers of :class:`Stereochemistry`, by name, of conformations `(n, A, d)` in Å.

    Args:
        centres: The conformations.
        reference: `(A, d)`: what bonds should be like, Å.
        distance: Below which two atoms clash, Å.
    """
    off = (bond_lengths(centres) - bond_lengths(reference)).abs() * bonded(reference)
    each = max(1, AT_ONCE // len(reference) ** 2)
    parts = (overlaps(part, distance).flatten(1) for part in centres.split(each))
    near = [((part > 0).sum(1), part.max().item()) for part in parts]
    counts = torch.cat([count for count, _ in near]).double()
    bonds = off[:, bonded(reference)]
    return {
        "bond_max": bonds.max().item(),
        "bond_99": float(np.quantile(bonds.numpy(), 0.99)),
        "torn": (off.max(dim=1).values > TORN).double().mean().item(),
        "worst": int(off.max(dim=0).values.argmax()),
        "clashes": counts.mean().item(),
        "clashing": (counts > 0).double().mean().item(),
        "nearest": distance - max(deepest for _, deepest in near),
    }


def _reading(numbers: dict[str, np.ndarray], at_rest: int, distance: float) -> str:
    worst = int(numbers["bond_max"].argmax())
    atom = int(numbers["worst"][worst])
    said = (
        f"bonds are off by {numbers['bond_max'][worst]:.2f} Å at most (between atoms {atom} and "
        f"{atom + 1}), and 99 % of them by less than {numbers['bond_99'].max():.2f} Å"
    )
    if numbers["torn"].max() > 0:
        said += f"; in {100 * numbers['torn'].max():.0f} % of conformations one is torn by 1 Å"
    return (
        f"{said}; {numbers['clashes'].max():.2g} pairs of atoms a conformation are nearer than "
        f"{distance:g} Å ({at_rest} in the reference)"
    )
