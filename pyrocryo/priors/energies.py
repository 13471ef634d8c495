r"""Energies :math:`\epsilon(z)` of one coordinate, for :class:`pyrocryo.priors.Boltzmann`.

An energy is any function that maps a tensor of any shape elementwise to energies of that shape,
``lambda z: z**4`` as well as the modules here. Its unit is set where it is used, by ``reference``:
k_B · K, or k_B · 300 K (k_B T at 300 K). A constant added to it changes nothing, so two energies
are to be compared less their minima (:meth:`pyrocryo.priors.Boltzmann.profiles`). The same
functions serve as entropies, heat capacities (both in k_B) and tilts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError

__all__ = ["DoubleWell", "Energy", "Function", "Harmonic", "LearnedEnergy", "SingleWell"]

Energy = Callable[[Tensor], Tensor]


class DoubleWell(nn.Module):
    r"""Two states, :math:`\epsilon(z) = b ((z / a)^2 - 1)^2 + t z / a`.

    Args:
        barrier: Height `b` of the barrier at 0 over the wells at ± `a` (without tilt); each well
            has the curvature :math:`8 b / a^2`.
        position: Distance `a` of the wells from 0, in units of `z`.
        tilt: Half the energy `t` by which the well at + `a` lies above the one at - `a` (nearly: a
            tilt also shifts the wells); from 1.54 `b` on there is only one well.
    """

    def __init__(self, barrier: float, *, position: float = 1.0, tilt: float = 0.0) -> None:
        super().__init__()
        self.barrier = _positive("barrier", barrier)
        self.position = _positive("position", position)
        if not math.isfinite(tilt):
            raise InputError(f"tilt: expected a finite energy, got {tilt}")
        self.tilt = float(tilt)

    def forward(self, z: Tensor) -> Tensor:
        """Energies of ``z``, any shape."""
        x = z / self.position
        return self.barrier * (x.square() - 1).square() + self.tilt * x

    def extra_repr(self) -> str:
        """The numbers that make it this double well."""
        return f"{self.barrier:g}, position={self.position:g}, tilt={self.tilt:g}"


class Harmonic(nn.Module):
    r"""One state, :math:`\epsilon(z) = \frac12 \kappa z^2`: at τ, :math:`N(0, \tau / \kappa)`.

    Args:
        stiffness: Force constant κ, energy per unit of `z` squared.
    """

    def __init__(self, stiffness: float) -> None:
        super().__init__()
        self.stiffness = _positive("stiffness", stiffness)

    def forward(self, z: Tensor) -> Tensor:
        """Energies of ``z``, any shape."""
        return 0.5 * self.stiffness * z.square()

    def extra_repr(self) -> str:
        """The number that makes it this well."""
        return f"{self.stiffness:g}"


class LearnedEnergy(nn.Module):
    r"""A free energy profile to be learned.

    .. math::
        \epsilon(z) = \tfrac12 \kappa z^2 + \sum_j w_j e^{-(z - c_j)^2 / 2 s^2}

    Evenly spaced centres :math:`c_j`, `s` their spacing, heights :math:`w_j` learned from 0 (a
    harmonic well). The sum is bounded, so the energy confines whatever is learned; κ stays as
    given, as the scale of `z` is the decoder's to choose. With κ = 1 k_B T, bumps as high as
    1e3 k_B T leave 1e-3 of the mass beyond ± 6, those of 1e6 k_B T .6 %. Any shape can be learned,
    also wells that are none; :class:`SingleWell` has one, and bounds.

    Args:
        stiffness: Force constant κ, energy per unit of `z` squared; 0 for a learned entropy, heat
            capacity or tilt, which need not confine, and so starts at 0.
        bumps: Number of bumps.
        extent: The centres lie within ± this, in units of `z`.

    Attributes:
        height: `(bumps,)` heights :math:`w_j`, energies.
    """

    def __init__(self, stiffness: float = 1.0, *, bumps: int = 16, extent: float = 3.0) -> None:
        super().__init__()
        self.stiffness = 0.0 if stiffness == 0 else _positive("stiffness", stiffness)
        self.extent = _positive("extent", extent)
        if bumps < 2:
            raise InputError(f"bumps: expected at least 2, got {bumps}")
        self.register_buffer("centre", torch.linspace(-self.extent, self.extent, bumps))
        self.width = 2 * self.extent / (bumps - 1)
        self.height = nn.Parameter(torch.zeros(bumps))

    def reset_parameters(self) -> None:
        """Back to the harmonic well."""
        nn.init.zeros_(self.height)

    def forward(self, z: Tensor) -> Tensor:
        """Energies of ``z``, any shape."""
        unit = math.sqrt(2) * self.width
        away = (z / unit).unsqueeze(-1) - self.centre / unit
        bumps = away.square().neg_().clamp_min_(-80.0).exp_()  # exp is slow further down
        return 0.5 * self.stiffness * z.square() + bumps @ self.height.to(bumps)

    def extra_repr(self) -> str:
        """What is not learned."""
        return f"{self.stiffness:g}, bumps={len(self.height)}, extent={self.extent:g}"


class SingleWell(nn.Module):
    r"""A single well of any shape to be learned: the energy rises on either side of 0.

    .. math::
        \epsilon(z) = \int_0^{|z|} f_\pm(s) ds, \quad f_\pm(c_j) = \kappa c_j m_{\pm j} > 0

    with evenly spaced knots :math:`c_0 = 0, ..., c_n`, slopes `f` linear between them, and as of a
    harmonic well of stiffness :math:`\kappa m_{\pm n}` beyond. The multipliers are positive and
    bounded, :math:`1 / \rho < m_j < \rho`, and learned from 1 (a harmonic well),

    .. math:: \ln m_j = \tfrac12 \ln\rho \, (\tanh w_j - \overline{\tanh w}).

    So whatever is learned, the energy lies between those of harmonic wells of stiffness
    :math:`\kappa / \rho` and :math:`\kappa \rho`: it confines, `Q` is between theirs, and it has
    no minimum but 0. Gauge: the minimum is at 0 with energy 0, and the geometric mean of all
    multipliers is 1, as place and scale of `z` are the decoder's to choose.

    Args:
        stiffness: Force constant κ, energy per unit of `z` squared.
        knots: Number n of knots on each side.
        extent: The last of them, in units of `z`.
        limit: ρ, more than 1.

    Attributes:
        steps: `(2, n)` the numbers :math:`w_j` to the left and to the right.
    """

    def __init__(
        self,
        stiffness: float = 1.0,
        *,
        knots: int = 8,
        extent: float = 3.0,
        limit: float = 10.0,
    ) -> None:
        super().__init__()
        self.stiffness = _positive("stiffness", stiffness)
        self.extent = _positive("extent", extent)
        if knots < 2:
            raise InputError(f"knots: expected at least 2, got {knots}")
        if not 1 < limit < math.inf:
            raise InputError(f"limit: expected a ratio of stiffnesses over 1, got {limit}")
        self.limit = float(limit)
        self.register_buffer("knot", torch.linspace(0, self.extent, knots + 1))
        self.steps = nn.Parameter(torch.zeros(2, knots))

    def reset_parameters(self) -> None:
        """Back to the harmonic well."""
        nn.init.zeros_(self.steps)

    def forward(self, z: Tensor) -> Tensor:
        """Energies of ``z``, any shape."""
        bent = self.steps.tanh()
        stiff = self.stiffness * (0.5 * math.log(self.limit) * (bent - bent.mean())).exp()
        slope = nn.functional.pad(stiff * self.knot[1:], (1, 0))  # (2, n + 1), at the knots
        curvature = torch.cat([slope.diff(dim=-1) * (1 / self.knot[1]), stiff[:, -1:]], dim=-1)
        change = torch.cat([curvature[:, :1], curvature.diff(dim=-1)], dim=-1).to(z)
        knot = self.knot.to(z)
        left = (-z.unsqueeze(-1) - knot).relu().square()
        right = (z.unsqueeze(-1) - knot).relu().square()
        return 0.5 * (left @ change[0] + right @ change[1])

    def extra_repr(self) -> str:
        """What is not learned."""
        return (
            f"{self.stiffness:g}, knots={self.steps.shape[1]}, extent={self.extent:g}, "
            f"limit={self.limit:g}"
        )


class Function(nn.Module):
    """A plain function as a module; told from others by a few of its values.

    Args:
        function: An energy.
    """

    POINTS = (-2.0, -0.7, 0.0, 0.7, 2.0)

    def __init__(self, function: Energy) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """Energies of ``z``, any shape."""
        return self.function(z)

    def extra_repr(self) -> str:
        """Its name, and energies at ± 2, ± 0.7 and 0."""
        with torch.no_grad():
            values = self.function(torch.tensor(self.POINTS)).tolist()
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{name}: {', '.join(f'{value:.6g}' for value in values)}"


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise InputError(f"{name}: expected a positive number, got {value}")
    return float(value)
