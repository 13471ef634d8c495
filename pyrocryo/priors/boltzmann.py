"""Boltzmann priors: the temperature of each particle says how widely each component spreads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyrocryo.errors import InputError
from pyrocryo.priors.energies import Energy, Function
from pyrocryo.priors.wells import BoltzmannWells
from pyrocryo.rotated_normal import RotatedNormal, kl_to_normal

__all__ = ["Boltzmann", "BoltzmannNormal"]

NEGLIGIBLE = 1e-5  # density at the ends of the grid, of its maximum
STEEPEST = 1 / 3  # change of the density between two nodes, of its maximum: .55 σ of a Gaussian
FINER = 4  # the grid that tells whether the nodes are close enough


class BoltzmannNormal(dist.TorchDistribution):
    r"""Independent Gaussian components, :math:`p(z) = \prod_k N(z_k; \mu_k, \sigma_k^2)`.

    The Boltzmann law :math:`e^{-\sum_k \epsilon_k(z_k) / \tau} / Q(\tau)` of harmonic wells, with
    :math:`\sigma_k^2 = \tau / \kappa_k`, and the paper's free :math:`\sigma_k(\tau)` (section
    4.2.2), at one temperature a row.

    Args:
        loc: `(..., K)` means.
        scale: `(..., K)` standard deviations.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        shape = self.loc.shape
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> BoltzmannNormal:
        new = self._get_checked_instance(BoltzmannNormal, _instance)
        shape = torch.Size(batch_shape) + self.event_shape
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        super(BoltzmannNormal, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        white = (value - self.loc) / self.scale
        return -(0.5 * white.square() + self.scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


@register_kl(RotatedNormal, BoltzmannNormal)
def _kl(q: RotatedNormal, p: BoltzmannNormal) -> Tensor:
    return kl_to_normal(q, p.loc, p.scale)


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

    Args:
        stiffness: `(K,)` force constants κ in K per unit of `z` squared (energies in units of
            k_B · K): κ = 300 gives unit variance at 300 K.
        table: Standard deviations `(K,)` by temperature in K.
        learned: Learn them, starting from the values given; the row of the highest temperature
            stays as given, since the scale of `z` is the decoder's to choose. (With wells, all of
            κ but its mean logarithm is learned.) Energies learn by themselves
            (:class:`pyrocryo.priors.LearnedEnergy`).
        energies: K functions of a tensor, elementwise (:mod:`pyrocryo.priors.energies`); those
            that are modules train and move with this one.
        reference: Of energies: their unit is k_B times this many K. With 1, they are in k_B · K;
            with 300, in k_B · 300 K, "k_B T at 300 K".
        extent: Of energies: integrals run over ± this, in units of `z`. The density must be
            negligible beyond.
        nodes: Of energies: number of nodes of the integrals.

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
        learned: bool = False,
        reference: float = 1.0,
        extent: float = 6.0,
        nodes: int = 256,
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (stiffness, table, energies)) != 1:
            raise InputError("Boltzmann: give exactly one of stiffness, table and energies")
        self.learned = learned
        self.energies = None
        if energies is not None:
            self._take(energies, reference=reference, extent=extent, nodes=int(nodes))
            return
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
            with torch.no_grad():
                values = energy(z)
            if getattr(values, "shape", None) != z.shape:
                raise InputError(
                    f"energies[{k}]: expected a tensor of the shape of z, {tuple(z.shape)}, got "
                    f"{tuple(values.shape) if isinstance(values, Tensor) else values!r}"
                )
            if not torch.isfinite(values).all():
                at = z[~torch.isfinite(values)][0].item()
                raise InputError(
                    f"energies[{k}]: expected finite energies within ± {unit['extent']:g}, got "
                    f"{values[~torch.isfinite(values)][0].item()} at z = {at:.3g}"
                )
        self.dim = len(energies)
        self.register_buffer("temperatures", torch.zeros(0))
        self.energies = nn.ModuleList(
            energy if isinstance(energy, nn.Module) else Function(energy) for energy in energies
        )
        self.unit = unit

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
        rows = self._log_scales().exp().detach()
        return {t.item(): row.tolist() for t, row in zip(self.temperatures, rows, strict=True)}

    def check(self, temperature: np.ndarray) -> None:
        """Checks the prior at these temperatures (K).

        Raises:
            InputError: For a temperature that the table does not hold; for an energy that does not
                confine `z` within ± ``extent`` at the hottest, or has details at the coldest that
                fall between the nodes.
        """
        if self.energies is not None:
            self._check_integrals(np.asarray(temperature))
        if len(self.temperatures):
            table = self.temperatures.cpu().numpy()
            known = np.isclose(temperature[:, None], table, rtol=1e-4).any(-1)
            if not known.all():
                odd = temperature[~known][0]
                held = ", ".join(f"{t:g}" for t in table)
                raise InputError(
                    f"temperature: a particle is at {odd:g} K, but the Boltzmann prior's table "
                    f"holds only {held} K"
                )

    def _check_integrals(self, temperature: np.ndarray) -> None:
        cold, hot = float(temperature.min()), float(temperature.max())
        if not 0 < cold <= hot < math.inf:
            raise InputError(f"temperature: expected positive K, got {cold:g} to {hot:g}")
        extent, nodes = self.unit["extent"], self.unit["nodes"]
        with torch.no_grad():
            ends = torch.tensor([cold, hot]).to(self.temperatures)
            fine = {**self.unit, "nodes": FINER * nodes}
            colder, hotter = BoltzmannWells(ends, self.energies, **fine).weights()
        left = torch.maximum(hotter[:, 0], hotter[:, -1]).tolist()
        jump = (colder[:, FINER:] - colder[:, :-FINER]).abs().amax(-1).tolist()
        for k, energy in enumerate(self.energies):
            if not left[k] < NEGLIGIBLE:
                raise InputError(
                    f"energies[{k}]: {energy!r} does not confine z within ± {extent:g} at "
                    f"{hot:g} K, where the density is still {left[k]:.2g} of its maximum (at most "
                    f"{NEGLIGIBLE:g}): widen extent, or is reference not in K?"
                )
            if not jump[k] < STEEPEST:
                raise InputError(
                    f"energies[{k}]: {energy!r} has wells at {cold:g} K too narrow for {nodes} "
                    f"nodes within ± {extent:g}: more nodes, or a smaller extent"
                )

    def extra_repr(self) -> str:
        """The unit and grid of the energies."""
        if self.energies is None:
            return ""
        return ", ".join(f"{name}={value:g}" for name, value in self.unit.items())

    def forward(self, temperature: Tensor) -> BoltzmannNormal | BoltzmannWells:
        """The law of `z` at each ``temperature`` `(...,)`: batch shape `(...,)`, event `(K,)`."""
        if self.energies is not None:
            return BoltzmannWells(temperature, self.energies, **self.unit)
        if len(self.temperatures):
            row = (temperature.unsqueeze(-1) - self.temperatures).abs().argmin(-1)
            scale = self._log_scales().exp()[row]
        else:
            scale = (temperature.unsqueeze(-1) / self.stiffness).sqrt()
        return BoltzmannNormal(torch.zeros_like(scale), scale)

    def _log_scales(self) -> Tensor:
        return torch.cat([self.given[:1], self.free]) if self.learned else self.given
