"""The Boltzmann law of any one-dimensional energies: integrals by quadrature, exact samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

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
KEPT = ("energies", "terms", "reference", "extent", "spacing", "lowest", "levels", "lifts")
NEWTON = 3  # steps inside a cell of the grid, from an error of the cell's width squared


class BoltzmannWells(dist.TorchDistribution):
    r"""Independent components in wells of any shape, event shape `(K,)`.

    .. math::
        p(z | \tau) = \prod_k \frac{e^{h_k(z_k)}}{Q_k}, \quad
        h_k(z) = -\frac{r}{\tau} \epsilon_k(z) + \sum_{j: k_j = k} a_j f_j(z), \quad
        Q_k = \int e^{h_k(s)} ds

    with the reference `r` in K, so that :math:`k_B r` is the unit of the energies, and any number
    of further functions :math:`f_j` of one component each, with factors :math:`a_j` that differ
    from row to row as τ does (:mod:`pyrocryo.priors.terms`: entropies, heat capacities, tilts).
    :math:`Q_k` is the trapezoid sum on an evenly spaced grid, whose error falls exponentially with
    the number of nodes for smooth energies (1e-17 for a Gaussian of standard deviation σ and a
    spacing of .7 σ).

    Args:
        temperature: `(...)` τ in K: the batch shape.
        energies: K energies (:mod:`pyrocryo.priors.energies`), each a function of a tensor.
        terms: J pairs :math:`(k_j, f_j)`, a component and a function of a tensor.
        factors: `(..., J)` their :math:`a_j`; wanted if there are terms.
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
        terms: Sequence[tuple[int, Energy]] = (),
        factors: Tensor | None = None,
        reference: float = 1.0,
        extent: float = 6.0,
        nodes: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        self.temperature = temperature
        self.energies = tuple(energies)
        self.terms = tuple(terms)
        self.factors = factors
        self.reference = reference
        self.extent = extent
        self.spacing = 2 * extent / (nodes - 1)
        like = self._inverse
        grid = torch.linspace(-extent, extent, nodes, dtype=like.dtype, device=like.device)
        energy = torch.stack([energy(grid) for energy in self.energies])
        self.lowest = energy.detach().amin(-1)  # (K,)
        self.levels = energy - self.lowest.unsqueeze(-1)  # (K, nodes), at least 0
        self.lifts = torch.stack([f(grid) for _, f in self.terms]) if self.terms else None
        event = torch.Size([len(self.energies)])
        super().__init__(temperature.shape, event, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> BoltzmannWells:
        new = self._get_checked_instance(BoltzmannWells, _instance)
        batch_shape = torch.Size(batch_shape)
        new.temperature = self.temperature.expand(batch_shape)
        new.factors = None
        if self.terms:
            new.factors = self.factors.expand(*batch_shape, len(self.terms))
        for name in KEPT:
            setattr(new, name, getattr(self, name))
        super(BoltzmannWells, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def log_partition(self) -> Tensor:
        r""":math:`\ln Q_k`, `(..., K)`."""
        weights, top = self._weighed()
        return (self.spacing * weights.sum(-1)).log() + top

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_each(value).sum(-1)

    def log_each(self, value: Tensor) -> Tensor:
        """Log-densities of the components of ``value`` `(..., K)`, shaped alike."""
        parts = self._exponents(lambda k, function: function(value[..., k]))
        return torch.stack(parts, dim=-1) - self.log_partition

    def _exponents(self, evaluate: Callable[[int, Energy], Tensor]) -> list[Tensor]:
        """Of each component, from what ``evaluate`` says of a function of component `k`."""
        parts = [-(self._inverse * evaluate(k, energy)) for k, energy in enumerate(self.energies)]
        for j, (k, function) in enumerate(self.terms):
            parts[k] = parts[k] + self.factors[..., j] * evaluate(k, function)
        return parts

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
        """Densities on the grid, `(..., K, nodes)`, 1 at the densest node."""
        return self._weighed()[0]

    def _weighed(self) -> tuple[Tensor, Tensor]:
        """The same, and the exponents `(..., K)` at the densest node."""
        exponents = self.levels * -self._inverse[..., None, None]
        top = -self._inverse.unsqueeze(-1) * self.lowest
        if self.terms:
            parts = list(exponents.unbind(-2))
            for j, (k, _) in enumerate(self.terms):
                parts[k] = parts[k] + self.factors[..., j, None] * self.lifts[j]
            exponents = torch.stack(parts, dim=-2)
            highest = exponents.detach().amax(-1)
            exponents, top = exponents - highest.unsqueeze(-1), top + highest
        return exponents.clamp_min_(LEAST).exp_(), top


@register_kl(RotatedNormal, BoltzmannWells)
def _kl(q: RotatedNormal, p: BoltzmannWells) -> Tensor:
    r""":math:`\sum_k [\ln Q_k - E_q h_k(z_k)] - H(q)`.

    Components of `z` under `q` are :math:`N(m_k, v_k)`, whatever their correlations: E by
    Gauss-Hermite, exact for polynomials up to degree 63 and good for details of an energy as
    narrow as half the posterior's standard deviation.
    """
    nodes, weights = hermite(HERMITE, p.levels.dtype, p.levels.device)
    z = q.mean.unsqueeze(-1) + q.variance.sqrt().unsqueeze(-1) * nodes
    expected = torch.stack(p._exponents(lambda k, f: f(z[..., k, :]) @ weights), dim=-1)
    return (p.log_partition - expected).sum(-1) - q.entropy()
