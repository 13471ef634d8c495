r"""What temperature and other knobs add to energies: entropies, heat capacities, tilts.

In units of k_B, with τ₀ the temperature at which energies and entropies are given, a state with
the energy :math:`r \epsilon` and a heat capacity `c` that does not depend on temperature has

.. math::
    U = r \epsilon + c (\tau - \tau_0), \quad S = S_0 + c \ln(\tau / \tau_0), \quad
    F = U - \tau S

(:math:`dU = c \, d\tau`, :math:`dS = c \, d\tau / \tau`), so that its weight :math:`e^{-F / \tau}`
has the exponent

.. math::
    h = -\frac{r \epsilon}{\tau} + S_0 + c \left[\ln\frac{\tau}{\tau_0} - 1 + \frac{\tau_0}{\tau}
    \right],

and a field with the value `u` that couples to :math:`\phi(z)` adds :math:`r u \phi / \tau`. Each
is a function of `z` times a factor that is a function of the conditions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.priors.energies import Energy, Function

__all__ = ["Terms", "elementwise", "positive_kelvin"]

ENTROPY, CAPACITY = "entropy", "heat capacity"


class Terms(nn.Module):
    """Functions of single components, and their factors under given conditions.

    Args:
        dim: Number K of components.
        z: Where the functions must be finite.
        entropies: K functions or None, in k_B.
        capacities: K functions or None, in k_B.
        tilts: By the name of a field, functions by component (from 0); None is :math:`z`.
        reference: `r` in K, the unit of energies and of tilts over k_B.
        standard: τ₀ in K.

    Attributes:
        fields: The names of the fields that tilt.
    """

    def __init__(
        self,
        dim: int,
        z: Tensor,
        *,
        entropies: Sequence[Energy | None] | None = None,
        capacities: Sequence[Energy | None] | None = None,
        tilts: Mapping[str, Mapping[int, Energy | None]] | None = None,
        reference: float = 1.0,
        standard: float = 298.15,
    ) -> None:
        super().__init__()
        self.functions = nn.ModuleList()
        self.owners: list[int] = []
        self.kinds: list[str] = []
        self.fields = list(tilts or {})
        self.reference = reference
        self.standard = standard
        for kind, label, functions in (
            (ENTROPY, "entropies", entropies),
            (CAPACITY, "heat_capacities", capacities),
        ):
            if functions is None:
                continue
            if not isinstance(functions, (Sequence, nn.ModuleList)) or len(functions) != dim:
                raise InputError(
                    f"{label}: expected {dim} functions of a tensor (None for none), one for each "
                    f"energy, got {functions!r}"
                )
            for k, function in enumerate(functions):
                if function is not None:
                    self._add(kind, k, f"{label}[{k}]", function, z)
        for name, functions in (tilts or {}).items():
            if not isinstance(name, str) or not name.isidentifier() or name == "temperature":
                raise InputError(f"tilts: {name!r} cannot be the name of a field that tilts")
            if not isinstance(functions, Mapping) or not functions:
                raise InputError(
                    f"tilts[{name!r}]: expected functions by component, such as {{0: None}} for "
                    f"a tilt of the first along z, got {functions!r}"
                )
            for k, function in functions.items():
                if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k < dim:
                    raise InputError(
                        f"tilts[{name!r}]: expected components from 0 to {dim - 1}, got {k!r}"
                    )
                label = f"tilts[{name!r}][{k}]"
                self._add(name, k, label, linear if function is None else function, z)

    def _add(self, kind: str, k: int, label: str, function: Energy, z: Tensor) -> None:
        elementwise(label, function, z)
        self.kinds.append(kind)
        self.owners.append(k)
        module = isinstance(function, nn.Module)
        self.functions.append(function if module else Function(function))

    @property
    def each(self) -> list[tuple[int, nn.Module]]:
        """Component and function of each of the J terms."""
        return list(zip(self.owners, self.functions, strict=True))

    def forward(self, temperature: Tensor, **fields: Tensor) -> Tensor:
        """Factors `(..., J)` at temperatures `(...)` in K and values `(...)` of the fields."""
        warmth = temperature / self.standard
        found = {
            ENTROPY: torch.ones_like(warmth),
            CAPACITY: warmth.log() - 1 + 1 / warmth,
            **{n: u * (self.reference / temperature) for n, u in fields.items()},
        }
        return torch.stack([found[kind] for kind in self.kinds], dim=-1)

    def extra_repr(self) -> str:
        """What each function is, and of which component."""
        return ", ".join(f"{kind}[{k}]" for kind, k in zip(self.kinds, self.owners, strict=True))


def linear(z: Tensor) -> Tensor:
    """The coordinate itself: what a constant force along it couples to."""
    return z


def elementwise(label: str, function: Energy, z: Tensor) -> None:
    """Raises InputError unless ``function`` maps ``z`` elementwise to finite numbers."""
    if not callable(function):
        raise InputError(f"{label}: expected a function of a tensor, got {function!r}")
    extent = float(z.abs().max())
    with torch.no_grad():
        values = function(z)
    if getattr(values, "shape", None) != z.shape:
        raise InputError(
            f"{label}: expected a tensor of the shape of z, {tuple(z.shape)}, got "
            f"{tuple(values.shape) if isinstance(values, Tensor) else values!r}"
        )
    finite = torch.isfinite(values)
    if not finite.all():
        raise InputError(
            f"{label}: expected finite energies within ± {extent:g}, got "
            f"{values[~finite][0].item()} at z = {z[~finite][0].item():.3g}"
        )


def positive_kelvin(name: str, value: float) -> float:
    """A temperature in K."""
    if isinstance(value, (bool, str)) or not 0 < value < math.inf:
        raise InputError(f"{name}: expected positive K, got {value!r}")
    return float(value)
