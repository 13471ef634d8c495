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
from pyrocryo.rotated_normal import RotatedNormal, kl_to_normal

__all__ = ["Boltzmann", "BoltzmannNormal"]


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

    Either harmonic wells, :math:`\sigma_k^2(\tau) = \tau / \kappa_k`, or a table of free
    :math:`\sigma_k(\tau)` with one row for each temperature that was measured. Harmonic wells and
    any table whose rows are proportional leave rotations of the whitened `z` free. K + 1 rows
    whose log-density contrasts have rank K identify `z` up to permutation and sign (iVAE,
    Khemakhem et al. 2020, theorems 1 and 3): for K = 2, three non-proportional rows.

    Args:
        stiffness: `(K,)` force constants κ in K per unit of `z` squared (energies in units of
            k_B · K): κ = 300 gives unit variance at 300 K.
        table: Standard deviations `(K,)` by temperature in K.
        learned: Learn them, starting from the values given; the row of the highest temperature
            stays as given, since the scale of `z` is the decoder's to choose. (With wells, all of
            κ but its mean logarithm is learned.)

    Raises:
        InputError: If not exactly one of ``stiffness`` and ``table`` is given, or a value is not
            positive.
    """

    def __init__(
        self,
        stiffness: Sequence[float] | None = None,
        *,
        table: Mapping[float, Sequence[float]] | None = None,
        learned: bool = False,
    ) -> None:
        super().__init__()
        if (stiffness is None) == (table is None):
            raise InputError("Boltzmann: give either stiffness or table, not both or neither")
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
        self.learned = learned
        self.register_buffer("temperatures", torch.tensor(temperatures, dtype=values.dtype))
        self.register_buffer("given", values.log())
        free = values.log()[1:] if table is not None else values.log()
        if learned:
            self.free = nn.Parameter(free.clone())
        self._free_given = free

    def reset_parameters(self) -> None:
        """Back to the values given."""
        if self.learned:
            with torch.no_grad():
                self.free.copy_(self._free_given)

    @property
    def stiffness(self) -> Tensor:
        """Force constants κ `(K,)` in K, now; only of harmonic wells."""
        if len(self.temperatures):
            raise AttributeError("a Boltzmann prior made from a table has no stiffness")
        if not self.learned:
            return self.given[0].exp()
        return (self.free[0] - self.free[0].mean() + self.given[0].mean()).exp()

    def scales(self) -> dict[float, list[float]]:
        """The table of standard deviations by temperature (K), as it stands now."""
        rows = self._log_scales().exp().detach()
        return {t.item(): row.tolist() for t, row in zip(self.temperatures, rows, strict=True)}

    def check(self, temperature: np.ndarray) -> None:
        """Raises InputError for a temperature that the table does not hold."""
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

    def forward(self, temperature: Tensor) -> BoltzmannNormal:
        """The law of `z` at each ``temperature`` `(...,)`: batch shape `(...,)`, event `(K,)`."""
        if len(self.temperatures):
            row = (temperature.unsqueeze(-1) - self.temperatures).abs().argmin(-1)
            scale = self._log_scales().exp()[row]
        else:
            scale = (temperature.unsqueeze(-1) / self.stiffness).sqrt()
        return BoltzmannNormal(torch.zeros_like(scale), scale)

    def _log_scales(self) -> Tensor:
        return torch.cat([self.given[:1], self.free]) if self.learned else self.given
