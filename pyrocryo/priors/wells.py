"""The Boltzmann law of any one-dimensional energies: integrals by quadrature, exact samples."""

from __future__ import annotations

from collections.abc import Iterable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyrocryo.priors.energies import Energy
from pyrocryo.priors.quadrature import hermite
from pyrocryo.rotated_normal import RotatedNormal

__all__ = ["BoltzmannWells"]

HERMITE = 32  # nodes of E_q: exact for polynomials up to degree 63
LEAST = -80.0  # exponents below make exp seven times slower, and add nothing
NEWTON = 3  # steps inside a cell of the grid, from an error of the cell's width squared


class BoltzmannWells(dist.TorchDistribution):
    r"""Independent components in wells of any shape, event shape `(K,)`.

    .. math::
        p(z | \tau) = \prod_k \frac{e^{-r \epsilon_k(z_k) / \tau}}{Q_k(\tau)}, \quad
        Q_k(\tau) = \int e^{-r \epsilon_k(s) / \tau} ds

    with the reference `r` in K, so that :math:`k_B r` is the unit of the energies. :math:`Q_k` is
    the trapezoid sum on an evenly spaced grid, whose error falls exponentially with the number of
    nodes for smooth energies (1e-17 for a Gaussian of standard deviation σ and a spacing of .7 σ).

    Args:
        temperature: `(...)` τ in K: the batch shape.
        energies: K energies (:mod:`pyrocryo.priors.energies`), each a function of a tensor.
        reference: `r` in K: energies are in units of :math:`k_B r`.
        extent: The grid covers ± this, in units of `z`; beyond, the density must be negligible
            (:meth:`pyrocryo.priors.Boltzmann.check`).
        nodes: Number of nodes of the grid.
    """

    arg_constraints = {"temperature": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        temperature: Tensor,
        energies: Iterable[Energy],
        *,
        reference: float = 1.0,
        extent: float = 6.0,
        nodes: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        self.temperature = temperature
        self.energies = tuple(energies)
        self.reference = reference
        self.extent = extent
        self.spacing = 2 * extent / (nodes - 1)
        like = self._inverse
        grid = torch.linspace(-extent, extent, nodes, dtype=like.dtype, device=like.device)
        energy = torch.stack([energy(grid) for energy in self.energies])
        self.lowest = energy.detach().amin(-1)  # (K,)
        self.levels = energy - self.lowest.unsqueeze(-1)  # (K, nodes), at least 0
        event = torch.Size([len(self.energies)])
        super().__init__(temperature.shape, event, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> BoltzmannWells:
        new = self._get_checked_instance(BoltzmannWells, _instance)
        batch_shape = torch.Size(batch_shape)
        new.temperature = self.temperature.expand(batch_shape)
        for name in ("energies", "reference", "extent", "spacing", "lowest", "levels"):
            setattr(new, name, getattr(self, name))
        super(BoltzmannWells, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def log_partition(self) -> Tensor:
        r""":math:`\ln Q_k(\tau)`, `(..., K)`."""
        total = self.weights().sum(-1)
        return (self.spacing * total).log() - self._inverse.unsqueeze(-1) * self.lowest

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        energy = torch.stack([e(value[..., k]) for k, e in enumerate(self.energies)], dim=-1)
        return -(self._inverse.unsqueeze(-1) * energy + self.log_partition).sum(-1)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        r"""Samples by the inverse of the cumulative distribution function `F` on the grid.

        Around the node `i`, with :math:`p_i` the density there and :math:`S_i = \sum_{j \le i}
        p_j` in units of the spacing, `d` and `c` its first and second central differences,
        :math:`F(s) = S_i - p_i / 2 - d / 12 + p_i s + d s^2 / 2 + c s^3 / 6`: the trapezoid sum
        with its Euler-Maclaurin term, and a parabola. Gradients in temperature and energies are
        implicit, :math:`dz = -dF / p` (Figurnov et al. 2018, Eq. 5).
        """
        shape = torch.Size(sample_shape)
        weights = self.weights()  # (..., K, nodes)
        sums = weights.cumsum(-1)
        total = sums[..., -1:]
        like = {"dtype": sums.dtype, "device": sums.device}
        smallest = torch.finfo(sums.dtype).eps / 2  # torch.rand can be 0
        u = torch.rand(*self.batch_shape, *self.event_shape, shape.numel(), **like)
        goal = total.detach() * u.clamp(smallest, 1 - smallest)
        i = torch.searchsorted(sums.detach(), goal).clamp(1, sums.shape[-1] - 2)
        before, here, after = (weights.gather(-1, i + step) for step in (-1, 0, 1))
        below, d, c = (
            sums.gather(-1, i) - here / 2,
            (after - before) / 2,
            after - 2 * here + before,
        )
        below = below - d / 12
        with torch.no_grad():
            s = torch.zeros_like(goal)
            for _ in range(NEWTON):
                slope = torch.maximum(here + s * (d + s * c / 2), here / 8)
                miss = below + s * (here + s * (d / 2 + s * c / 6)) - goal
                s = (s - miss / slope).clamp(-1, 1)
            slope = torch.maximum(here + s * (d + s * c / 2), here / 8)
        level = (below + s * (here + s * (d / 2 + s * c / 6))) / total
        moved = s - (level - level.detach()) * (total / slope).detach()
        z = self.spacing * (i + moved) - self.extent
        return z.movedim(-1, 0).reshape(self._extended_shape(shape))

    @property
    def _inverse(self) -> Tensor:
        return self.reference / self.temperature

    def weights(self) -> Tensor:
        """Densities on the grid, `(..., K, nodes)`, 1 at the lowest node."""
        exponents = self.levels * -self._inverse[..., None, None]
        return exponents.clamp_min_(LEAST).exp_()


@register_kl(RotatedNormal, BoltzmannWells)
def _kl(q: RotatedNormal, p: BoltzmannWells) -> Tensor:
    r""":math:`\sum_k [r E_q \epsilon_k(z_k) / \tau + \ln Q_k(\tau)] - H(q)`.

    Components of `z` under `q` are :math:`N(m_k, v_k)`, whatever their correlations: E by
    Gauss-Hermite, exact for polynomials up to degree 63 and good for details of an energy as
    narrow as half the posterior's standard deviation.
    """
    nodes, weights = hermite(HERMITE, p.levels.dtype, p.levels.device)
    z = q.mean.unsqueeze(-1) + q.variance.sqrt().unsqueeze(-1) * nodes
    energy = torch.stack([e(z[..., k, :]) @ weights for k, e in enumerate(p.energies)], dim=-1)
    return (p._inverse.unsqueeze(-1) * energy + p.log_partition).sum(-1) - q.entropy()
