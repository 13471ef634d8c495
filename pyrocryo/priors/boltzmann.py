"""Boltzmann priors: the temperature of each particle says how widely each component spreads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.priors.blurred import Blurred, around
from pyrocryo.priors.boltzmann_normal import BoltzmannNormal
from pyrocryo.priors.conditions import checked, resolved, together
from pyrocryo.priors.energies import Energy, Function
from pyrocryo.priors.profiles import Profile, profile
from pyrocryo.priors.terms import Terms, elementwise, positive_kelvin
from pyrocryo.priors.wells import BoltzmannWells

__all__ = ["Boltzmann", "BoltzmannNormal"]

Functions = Sequence[Energy | None]


class Boltzmann(nn.Module):
    r"""From the temperature of a particle to the law of its conformation.

    One of: harmonic wells, :math:`\sigma_k^2(\tau) = \tau / \kappa_k`; a table of free
    :math:`\sigma_k(\tau)` with one row for each temperature that was measured; energies of any
    shape, :math:`\ln p(z_k | \tau) = -r \epsilon_k(z_k) / \tau - \ln Q_k(\tau)`. Harmonic wells
    and any table whose rows are proportional leave rotations of the whitened `z` free. K + 1 rows
    whose log-density contrasts have rank K identify `z` up to permutation and sign (iVAE,
    Khemakhem et al. 2020, theorems 1 and 3): for K = 2, three non-proportional rows. Energies that
    do not depend on temperature never reach that rank, however many temperatures are measured:
    flows along the level curves of the total energy remain.

    Energies may be free energies, :math:`F = U - \tau S`, and other fields of the particles may
    tilt them (:mod:`pyrocryo.priors.terms` derives the exponents). With entropies `S`, heat
    capacities `c` (both in k_B), :math:`\tau_0` = ``standard`` and fields of values :math:`u_m`,

    .. math::
        \ln p(z_k | \tau, u) = -\frac{r}{\tau} \Big[\epsilon_k(z_k) - \sum_m u_m \phi_{km}(z_k)
        \Big] + S_k(z_k) + c_k(z_k) \Big[\ln\frac{\tau}{\tau_0} - 1 + \frac{\tau_0}{\tau}\Big]
        - \ln Q_k(\tau, u).

    Entropies add no rank; heat capacities one, however many components have them; each field that
    tilts a component of its own, one. A tilt that is not even in z also fixes its sign, which the
    rotation layer cannot change: seeds that start mirrored stay so, at a higher loss (three of
    four with two forces on harmonic wells, known poses; none of four with two tilts by
    :math:`-z^2`, all of which aligned). Take the best of several.

    A learned table has a free row for each temperature and knows nothing of any other. A smooth
    law of many temperatures, with an anchor at their mean in place of the warmest row, is
    ``Conditional("temperature", K, mean=False)``.

    Args:
        stiffness: `(K,)` force constants κ in K per unit of `z` squared (energies in units of
            k_B · K): κ = 300 gives unit variance at 300 K.
        table: Standard deviations `(K,)` by temperature in K.
        learned: Learn them, starting from the values given; the row of the highest temperature
            stays as given, since the scale of `z` is the decoder's to choose. (With wells, all of
            κ but its mean logarithm is learned.) Energies learn by themselves
            (:class:`pyrocryo.priors.LearnedEnergy`, :class:`pyrocryo.priors.SingleWell`).
        energies: K functions of a tensor, elementwise (:mod:`pyrocryo.priors.energies`); those
            that are modules train and move with this one, as do all other functions here.
        entropies: Of energies: K functions or None, in k_B.
        heat_capacities: Of energies: K functions or None, in k_B.
        standard: Temperature τ₀ in K at which energies and entropies are given; matters to heat
            capacities only.
        tilts: Of energies: by the name of a field of the particles (numbers `(N,)`, or `(N, T)`
            for ``time``), functions φ by component, counted from 0; None is :math:`\phi(z) = z`, a
            force along it: ``{"ligand": {0: phi}, "force": {1: None}}``. The prior then wants
            these fields as well.
        temperature: In K, if it is the same for all particles; the field is then not wanted.
        temperature_error: Standard deviation, in K, of the true temperature about the label, or
            the name of the field that holds each particle's: the law is then a mixture over five
            temperatures (:class:`pyrocryo.priors.blurred.Blurred`), and the ELBO samples its KL.
            The frames of a molecule have errors of their own.
        reference: Of energies: their unit is k_B times this many K. With 1, they are in k_B · K;
            with 300, in k_B · 300 K, "k_B T at 300 K".
        extent: Of energies: integrals run over ± this, in units of `z`. The density must be
            negligible beyond.
        nodes: Of energies: number of nodes of the integrals.

    Attributes:
        fields: The fields it wants (see :func:`pyrocryo.context.wanted`).

    Raises:
        InputError: If not exactly one of ``stiffness``, ``table`` and ``energies`` is given, a
            value is not positive, or an energy is not a finite elementwise function.
    """

    def __init__(
        self,
        stiffness: Sequence[float] | None = None,
        *,
        table: Mapping[float, Sequence[float]] | None = None,
        energies: Sequence[Energy] | None = None,
        entropies: Functions | None = None,
        heat_capacities: Functions | None = None,
        standard: float = 298.15,
        tilts: Mapping[str, Mapping[int, Energy | None]] | None = None,
        temperature: float | None = None,
        temperature_error: float | str | None = None,
        learned: bool = False,
        reference: float = 1.0,
        extent: float = 6.0,
        nodes: int = 256,
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (stiffness, table, energies)) != 1:
            raise InputError("Boltzmann: give exactly one of stiffness, table and energies")
        self.learned = learned
        self.energies = self.terms = None
        added = {"entropies": entropies, "heat_capacities": heat_capacities, "tilts": tilts}
        self._know(temperature, temperature_error, table is not None)
        if energies is not None:
            self._take(energies, reference=reference, extent=extent, nodes=int(nodes))
            self._add(added, standard)
            return
        idle = [name for name, given in added.items() if given is not None]
        if idle:
            raise InputError(f"{idle[0]}: they add to energies; none are given")
        if reference != 1.0:
            raise InputError(f"reference: {reference:g} K is the unit of energies; none are given")
        if table is not None:
            temperatures = sorted(table, reverse=True)  # the warmest first
            rows = [list(table[tau]) for tau in temperatures]
        else:
            temperatures, rows = [], [list(stiffness)]
        if not rows or len({len(row) for row in rows}) != 1 or not rows[0]:
            raise InputError(
                f"Boltzmann: every row needs the same number of components, got {rows}"
            )
        values = torch.tensor(rows, dtype=torch.get_default_dtype())
        if not (values > 0).all() or any(not tau > 0 for tau in temperatures):
            raise InputError(
                "Boltzmann: temperatures (K) and their values must all be positive, got "
                f"{dict(zip(temperatures, rows, strict=True)) if table is not None else rows[0]}"
            )
        self.dim = values.shape[-1]
        self.register_buffer("temperatures", torch.tensor(temperatures, dtype=values.dtype))
        self.register_buffer("given", values.log())
        free = values.log()[1:] if table is not None else values.log()
        if learned:
            self.free = nn.Parameter(free.clone())
        self._free_given = free

    def _know(self, temperature: Any, error: Any, table: bool) -> None:
        """What is known of the temperature, and so which fields are wanted."""
        fixed = None
        if temperature is not None:
            fixed = torch.tensor(positive_kelvin("temperature", temperature))
        self.register_buffer("fixed", fixed, persistent=False)
        if error is not None and table:
            raise InputError("temperature_error: a table holds no temperatures between its rows")
        if isinstance(error, str):
            if not error.isidentifier() or error == "temperature":
                raise InputError(f"temperature_error: {error!r} cannot be the name of a field")
        elif error is not None:
            error = positive_kelvin("temperature_error", error)
        self.error = error
        self.fields = [] if fixed is not None else ["temperature"]
        self.fields += [error] if isinstance(error, str) else []

    def _take(self, energies: Sequence[Energy], **unit: float) -> None:
        if self.learned:
            raise InputError("learned: energies learn by themselves; give a LearnedEnergy")
        for name, value in unit.items():
            least = 8 if name == "nodes" else 0
            if not least < value < math.inf:
                raise InputError(f"{name}: expected a number over {least}, got {value}")
        several = isinstance(energies, (Sequence, nn.ModuleList))
        energies = list(energies) if several else [energies]
        if not energies or not all(callable(energy) for energy in energies):
            raise InputError(f"energies: expected functions of a tensor, got {energies}")
        z = torch.linspace(-unit["extent"], unit["extent"], unit["nodes"])
        for k, energy in enumerate(energies):
            elementwise(f"energies[{k}]", energy, z)
        self.dim = len(energies)
        self.register_buffer("temperatures", torch.zeros(0))
        self.energies = nn.ModuleList(
            energy if isinstance(energy, nn.Module) else Function(energy) for energy in energies
        )
        self.unit = unit

    def _add(self, added: Mapping[str, Any], standard: float) -> None:
        """Terms beside the energies, and the fields that they want."""
        z = torch.linspace(-self.unit["extent"], self.unit["extent"], self.unit["nodes"])
        terms = Terms(
            self.dim,
            z,
            entropies=added["entropies"],
            capacities=added["heat_capacities"],
            tilts=added["tilts"],
            reference=self.unit["reference"],
            standard=positive_kelvin("standard", standard),
        )
        if terms.kinds:
            self.terms = terms
        for name in terms.fields:
            if name == self.error:
                raise InputError(f"tilts: {name!r} is the error of the temperature")
        self.fields = self.fields + terms.fields

    def reset_parameters(self) -> None:
        """Back to the values given."""
        if self.learned:
            with torch.no_grad():
                self.free.copy_(self._free_given)

    @property
    def stiffness(self) -> Tensor:
        """Force constants κ `(K,)` in K, now; only of harmonic wells."""
        if self.energies is not None or len(self.temperatures):
            raise AttributeError("only a Boltzmann prior of harmonic wells has a stiffness")
        if not self.learned:
            return self.given[0].exp()
        return (self.free[0] - self.free[0].mean() + self.given[0].mean()).exp()

    def scales(self) -> dict[float, list[float]]:
        """The table of standard deviations by temperature (K), as it stands now."""
        if not len(self.temperatures):
            raise AttributeError("only a Boltzmann prior of a table has scales")
        rows = self._log_scales().exp().detach()
        return {t.item(): row.tolist() for t, row in zip(self.temperatures, rows, strict=True)}

    def profiles(
        self,
        temperature: float | None = None,
        *,
        z: np.ndarray | None = None,
        **fields: float,
    ) -> list[Profile]:
        """Free energies of the components under one set of conditions, in k_B T, with wells.

        Args:
            temperature: In K; by default the fixed one, the warmest of a table, or 300.
            z: `(n,)` where to look; by default 601 points over all that has density.
            **fields: Values of the fields that tilt.

        Returns:
            A :class:`pyrocryo.priors.profiles.Profile` for each component, at the temperature
            itself, whatever the error of labels.
        """
        if temperature is None and self.fixed is not None:
            temperature = self.fixed.item()
        elif temperature is None:
            temperature = self.temperatures[0].item() if len(self.temperatures) else 300.0
        tilting = self.terms.fields if self.terms else []
        given = {name: np.asarray([value]) for name, value in fields.items()}
        checked(tilting, given)
        temperature = positive_kelvin("temperature", temperature)
        self._check_table(np.array([temperature]))
        like = self.temperatures
        with torch.no_grad():
            tau = torch.tensor([temperature]).to(like)
            values = {name: torch.as_tensor(given[name]).to(like) for name in tilting}
            law = self._law(tau, values)
            if z is None:
                reach = self.unit["extent"] if self.energies else 4 * law.scale.max().item()
                z = np.linspace(-reach, reach, 601)
            points = torch.as_tensor(np.asarray(z)).to(like)
            if points.dim() != 1 or len(points) < 3 or not (points.diff() > 0).all():
                raise InputError("z: expected at least three numbers, in order")
            each = law.log_each(points[:, None].expand(-1, self.dim)).double().cpu().numpy()
        grid = points.double().cpu().numpy()
        conditions = {name: float(given[name][0]) for name in tilting}
        return [profile(grid, each[:, k], k, temperature, conditions) for k in range(self.dim)]

    def check(self, temperature: np.ndarray | None = None, **fields: np.ndarray) -> None:
        """Checks the prior under these conditions: temperatures (K), and fields that tilt.

        Raises:
            InputError: For a field that is missing or not made of finite numbers; for a
                temperature that the table does not hold, or whose error is not small; for an
                energy that does not confine `z` within ± ``extent`` under the mildest conditions,
                or has details under the sharpest that fall between the nodes.
        """
        given = fields if temperature is None else {"temperature": temperature, **fields}
        checked(self.fields, given)
        fixed = self.fixed is not None
        kelvin = np.array([self.fixed.item()]) if fixed else np.asarray(given["temperature"])
        if not (np.isfinite(kelvin) & (kelvin > 0)).all():
            raise InputError(
                f"temperature: expected positive K, got {kelvin.min():g} to {kelvin.max():g}"
            )
        self._check_table(kelvin)
        spread = given[self.error] if isinstance(self.error, str) else self.error
        warmth = together(kelvin, spread)
        if self.energies is not None:
            tilts = {name: given[name] for name in (self.terms.fields if self.terms else [])}
            resolved(self, warmth, tilts)

    def _check_table(self, kelvin: np.ndarray) -> None:
        if not len(self.temperatures):
            return
        table = self.temperatures.cpu().numpy()
        known = np.isclose(kelvin[:, None], table, rtol=1e-4).any(-1)
        if not known.all():
            held = ", ".join(f"{t:g}" for t in table)
            raise InputError(
                f"temperature: a particle is at {kelvin[~known][0]:g} K, but the Boltzmann "
                f"prior's table holds only {held} K"
            )

    def extra_repr(self) -> str:
        """The unit and grid of the energies, and what is known of the temperature."""
        known = {} if self.energies is None else dict(self.unit)
        if self.terms is not None and "heat capacity" in self.terms.kinds:
            known["standard"] = self.terms.standard
        if self.fixed is not None:
            known["temperature"] = self.fixed.item()
        told = [f"{name}={value:g}" for name, value in known.items()]
        return ", ".join(told + [f"temperature_error={self.error!r}"] * (self.error is not None))

    def forward(
        self, temperature: Tensor | None = None, **fields: Tensor
    ) -> BoltzmannNormal | BoltzmannWells | Blurred:
        """The law of `z` under each row of conditions `(...)`: batch shape `(...)`, event `(K,)`.

        Args:
            temperature: In K; wanted unless it is fixed.
            **fields: Values of the other fields that it wants.
        """
        tau = self.fixed if temperature is None else temperature
        others = [name for name in self.fields if name != "temperature"]
        if tau is None or any(name not in fields for name in others):
            missing = ["temperature"] * (tau is None) + [n for n in others if n not in fields]
            raise InputError(f"{missing[0]}: the Boltzmann prior needs it of each particle")
        if others:
            values = [tau, *(fields[name].to(tau) for name in others)]
            axes = max(value.dim() for value in values)  # those of time: molecule, frame
            tau, *rest = torch.broadcast_tensors(
                *(value.reshape(value.shape + (1,) * (axes - value.dim())) for value in values)
            )
            fields = dict(zip(others, rest, strict=True))
        if self.error is None:
            return self._law(tau, fields)
        if isinstance(self.error, str):
            spread = fields.pop(self.error)
        else:
            spread = torch.full_like(tau, self.error)
        tau, weights = around(tau, spread)
        return Blurred(self._law(tau, {n: u.unsqueeze(-1) for n, u in fields.items()}), weights)

    def _law(self, tau: Tensor, tilts: Mapping[str, Tensor]) -> BoltzmannNormal | BoltzmannWells:
        """Of temperatures known exactly."""
        if self.energies is not None:
            more = {}
            if self.terms is not None:
                more = {"terms": self.terms.each, "factors": self.terms(tau, **tilts)}
            return BoltzmannWells(tau, self.energies, **more, **self.unit)
        if len(self.temperatures):
            row = (tau.unsqueeze(-1) - self.temperatures).abs().argmin(-1)
            scale = self._log_scales().exp()[row]
        else:
            scale = (tau.unsqueeze(-1) / self.stiffness).sqrt()
        return BoltzmannNormal(torch.zeros_like(scale), scale)

    def _log_scales(self) -> Tensor:
        return torch.cat([self.given[:1], self.free]) if self.learned else self.given
