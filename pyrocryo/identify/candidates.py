"""Candidates for maps of `z` that no condition can see, and the test that they have to pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pyrocryo.identify.flows import HamiltonianFlow, Rotation, Twist
from pyrocryo.identify.laws import Laws
from pyrocryo.identify.symmetry import scales
from pyrocryo.metrics.mcc import matched

__all__ = ["Automorphism", "Candidates", "Map", "named", "why"]

TOLERANCE = 1e-3  # nats by which ln p may change, at every point
TRIVIAL = 0.95  # MCC of z and h(z) from which on h is as good as a permutation
POINTS, FEW, FEWEST = 3000, 600, 100  # over all conditions; least at each

Map = Rotation | HamiltonianFlow | Twist


@dataclass(frozen=True)
class Automorphism:
    r"""A map that leaves a prior as it is at every condition, or what was tried to find one.

    Attributes:
        map: `h`, or None if none was found.
        kind: "rotation" (of whitened `z`), "flow" (Hamiltonian, of the energy), "twist" (along
            the level curves of contrasts), or None.
        components: Those that it moves, counted from 0.
        conditions: What each condition is called.
        warmest: The condition with the widest law.
        max_change: Nats by which :math:`\ln p(h(z) | u_l) + \ln |\det Dh(z)|` differs from
            :math:`\ln p(z | u_l)` at most, over samples of each condition, `(L,)`.
        rms_change: The same, root mean square.
        mcc: MCC of `z` and `h(z)` over the components that move, `(L,)`.
        tried: One sentence for each attempt that failed.
    """

    map: Map | None
    kind: Literal["rotation", "flow", "twist"] | None
    components: tuple[int, ...]
    conditions: tuple[str, ...]
    warmest: int
    max_change: np.ndarray
    rms_change: np.ndarray
    mcc: np.ndarray
    tried: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether there is one."""
        return self.map is not None


class Candidates:
    """Points of a prior at its conditions, where candidates are tested.

    Args:
        laws: The prior.

    Attributes:
        z: Draws at each condition, `(n, L, [T,] K)`.
        few: Some of them.
        centre: Median `(K,)`.
        scale: Standard deviations, `(K,)`.
        warmest: The condition with the widest law.
        tried: One sentence for each attempt that failed.
    """

    def __init__(self, laws: Laws) -> None:
        self.laws = laws
        self.z = laws.sample(max(FEWEST, POINTS // laws.count))  # (n, L, [T,] K)
        self.few = self.z[: max(FEWEST, FEW // laws.count)]
        laws.checked(self.few.flatten(0, 1))
        self.centre = self.z.flatten(0, -2).median(dim=0).values
        self.scale = scales(self.z)
        # the widest law is that of the highest entropy, which is told in all units alike
        self.warmest = int(laws.own(self.z).mean(dim=0).argmin())
        self.tried: list[str] = []

    def change(self, h: Map, z: Tensor, moved: Tensor) -> Tensor:
        """Nats by which h changes ln p `(n, L)` at the points' own conditions."""
        volume = h.log_det(z, moved)
        volume = volume if len(self.laws.event) == 1 else volume.sum(-1)
        change = self.laws.own(moved) + volume - self.laws.own(z)
        return change.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def mcc(self, z: Tensor, moved: Tensor, kept: list[int]) -> np.ndarray:
        """MCC of some components of `z` and `h(z)`, by condition."""
        pairs = (
            (
                z[:, row, ..., kept].reshape(-1, len(kept)).numpy(),
                moved[:, row, ..., kept].reshape(-1, len(kept)).numpy(),
            )
            for row in range(self.laws.count)
        )
        return np.array([matched(*pair)[0] for pair in pairs])

    def checked(self, h: Map, kind: str, components: tuple[int, ...]) -> Iterator[Automorphism]:
        """The map, if all is well."""
        name = named(components)
        z = self.z if len(components) == 2 or kind == "rotation" else self.few  # dear beyond
        moved = h(z)
        change = self.change(h, z, moved).abs()
        worst = float(change.max())
        if not worst <= TOLERANCE:
            open_ended = not np.isfinite(worst)
            reason = why(False) if open_ended else f"the {kind} changes ln p by up to {worst:.2g}"
            self.tried.append(f"{name}: {reason}")
            return
        mcc = self.mcc(z, moved, list(components))
        if not mcc[self.warmest] < TRIVIAL:
            self.tried.append(f"{name}: {why(True)}")
            return
        yield Automorphism(
            h,
            kind,
            components,
            self.laws.names,
            self.warmest,
            change.amax(0).numpy(),
            change.square().mean(0).sqrt().numpy(),
            mcc,
            (),
        )


def named(components: tuple[int, ...]) -> str:
    """What to call some components; words count from 1."""
    return "components " + ", ".join(str(k + 1) for k in components)


def why(closed: bool) -> str:
    """Why a flow does not do."""
    if closed:
        return "no flow mixes them"
    return (
        "level curves are open (or too long to follow), and flows run out to infinity or over an "
        "edge"
    )
