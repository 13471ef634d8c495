r"""Elastic networks: a structure as points and springs, and the motions that cost least.

.. math:: E = \frac{\gamma}{2} \sum_{|r_a - r_b| \le r_c} c_{ab} (|r_a' - r_b'| - |r_a - r_b|)^2

(Tirion 1996, Atilgan et al. 2001: the anisotropic network model), with :math:`c = 1`, or
:math:`c = (3.8 \text{ Å} / |r_a - r_b|)^2` (Yang, Song & Jernigan 2009). To second order in the
displacements, :math:`E = \frac{\gamma}{2} d^T H d`; eigenvectors of `H` are the normal modes, and
along one of eigenvalue λ, by :math:`q` Å, :math:`E = \frac{1}{2} \gamma \lambda q^2`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import sparse
from scipy.linalg import eigh
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from scipy.spatial import cKDTree
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging import one_each
from pyrocryo.molecules.gaussians import Gaussians

if TYPE_CHECKING:
    from pyrocryo.priors import Boltzmann

__all__ = ["Elastic", "Law", "Modes", "boltzmann", "hessian", "normal_modes"]

Law = Literal["constant", "inverse-square"]

BOLTZMANN = 0.0019872043  # kcal/mol/K
ROOM = 300.0  # K
BOND = 3.8  # Å, between neighbouring Cα: where the inverse-square law is 1
RIGID = 6  # motions of a body that cost nothing: three translations, three rotations
ZERO = 1e-8  # of the mean stiffness of an atom: eigenvalues below cost nothing
DENSE = 60  # atoms up to which all eigenvectors are cheap


@dataclass(frozen=True, eq=False)
class Modes:
    """The softest motions of a structure, from :func:`normal_modes`.

    Attributes:
        positions: `(A, 3)` Å.
        vectors: `(n, A, 3)` orthonormal displacements, the softest first.
        eigenvalues: `(n,)` λ, in units of ``spring``.
        spring: γ, kcal/mol/Å².
    """

    positions: np.ndarray
    vectors: np.ndarray
    eigenvalues: np.ndarray
    spring: float = 1.0

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def __repr__(self) -> str:
        return (
            f"Modes({len(self)} of {len(self.positions)} atoms, eigenvalues "
            f"{self.eigenvalues[0]:.4g} to {self.eigenvalues[-1]:.4g})"
        )

    def take(self, which: Sequence[int]) -> Modes:
        """Some of them, counted from 0."""
        rows = np.asarray(which, dtype=int).reshape(-1)
        if not len(rows) or rows.min() < 0 or rows.max() >= len(self):
            raise InputError(f"which: expected modes 0 to {len(self) - 1}, got {list(which)}")
        return Modes(self.positions, self.vectors[rows], self.eigenvalues[rows], self.spring)

    def thermal(self, temperature: float = ROOM) -> np.ndarray:
        r"""Root mean square :math:`\sqrt{k_B \tau / \gamma \lambda_k}` `(n,)` of each `q`, Å.

        Of the whole vector: divided by :math:`\sqrt{A}`, it is that of one atom.
        """
        return np.sqrt(BOLTZMANN * temperature / (self.spring * self.eigenvalues))

    def scales(self, amplitude: Any = 1.0) -> np.ndarray:
        """Å along each mode for one unit of `z` `(n,)`: ``amplitude`` times thermal at 300 K.

        Args:
            amplitude: One factor `a`, or one for each mode `(n,)`.
        """
        return _factors(amplitude, len(self)) * self.thermal()

    def stiffness(self, amplitude: Any = 1.0) -> list[float]:
        r"""Force constants :math:`\gamma \lambda_k s_k^2 / k_B = 300 a_k^2`, K per `z` squared.

        What :class:`pyrocryo.priors.Boltzmann` takes.
        """
        scale = self.scales(amplitude)
        return (self.spring * self.eigenvalues * scale**2 / BOLTZMANN).tolist()


def hessian(positions: Any, *, cutoff: float = 15.0, law: Law = "constant") -> sparse.csr_matrix:
    """Second derivatives `(3 A, 3 A)` of the energy at rest, in units of the spring γ.

    Args:
        positions: `(A, 3)` Å.
        cutoff: Å up to which two atoms are joined (15 suits Cα with the constant law); inf joins
            all, as suits the other law.
        law: Springs that are all alike, or weaken with the square of the length from 3.8 Å on.
    """
    x = _positions(positions)
    i, j = _pairs(x, cutoff, law)
    apart = x[j] - x[i]
    square = (apart**2).sum(axis=1)
    if not square.all():
        a, b = i[square == 0][0], j[square == 0][0]
        raise InputError(f"positions: atoms {a} and {b} are in the same place")
    strength = 1.0 if law == "constant" else BOND**2 / square
    block = apart[:, :, None] * apart[:, None, :] * (-strength / square)[:, None, None]
    a, b = np.indices((3, 3))
    off = sparse.coo_matrix(
        (
            block.ravel(),
            ((3 * i[:, None, None] + a).ravel(), (3 * j[:, None, None] + b).ravel()),
        ),
        shape=(x.size, x.size),
    )
    own = np.zeros((len(x), 3, 3))
    np.subtract.at(own, i, block)
    np.subtract.at(own, j, block)
    at = 3 * np.arange(len(x))[:, None, None]
    diagonal = sparse.coo_matrix(
        (own.ravel(), ((at + a).ravel(), (at + b).ravel())), shape=off.shape
    )
    return (off + off.T + diagonal).tocsr()


def normal_modes(
    positions: Any,
    n: int = 10,
    *,
    cutoff: float = 15.0,
    law: Law = "constant",
    spring: float = 1.0,
) -> Modes:
    """The ``n`` softest motions of an elastic network, without the six that turn or move it.

    Eigenvectors of the sparse Hessian nearest to 0, by shift and invert. Signs are fixed: the
    largest component of each mode is positive.

    Args:
        positions: `(A, 3)` Å, such as the Cα of :func:`pyrocryo.io.read_structure`.
        n: Number of modes, at most 3 A - 6.
        cutoff: As for :func:`hessian`.
        law: As for :func:`hessian`.
        spring: γ, kcal/mol/Å² (1 ± .5 fits crystals' B-factors with a cutoff of 15 Å, Atilgan et
            al. 2001). It sets the size of thermal motions, not their shapes.

    Raises:
        InputError: If more than six motions cost nothing: a network in several parts, or an atom
            held by too few others.
    """
    x = _positions(positions)
    if not 1 <= n <= x.size - RIGID:
        raise InputError(f"n: {len(x)} atoms have {max(0, x.size - RIGID)} modes, asked for {n}")
    if not 0 < spring < math.inf:
        raise InputError(f"spring: expected a positive kcal/mol/Å², got {spring}")
    h = hessian(x, cutoff=cutoff, law=law)
    i, j = _pairs(x, cutoff, law)
    joined = sparse.coo_matrix((np.ones(len(i)), (i, j)), shape=(len(x), len(x)))
    parts, _ = connected_components(joined, directed=False)
    if parts > 1:
        raise InputError(
            f"cutoff: at {cutoff:g} Å the network falls into {parts} parts; raise it, or "
            "leave out what is far from all else"
        )
    typical = h.diagonal().mean()
    if len(x) <= DENSE or n + RIGID == x.size:
        values, vectors = eigh(h.toarray(), subset_by_index=(0, n + RIGID - 1))
    else:
        # a shift just below 0 leaves the matrix positive definite, and all wanted next to it
        start = np.random.default_rng(0).standard_normal(x.size)
        values, vectors = eigsh(
            h.tocsc(), k=n + RIGID, sigma=-1e-4 * typical, which="LM", v0=start
        )
        order = np.argsort(values)
        values, vectors = values[order], vectors[:, order]
    free = int((values < ZERO * typical).sum())
    if free != RIGID:
        raise InputError(
            f"cutoff: at {cutoff:g} Å, {'at least ' if free == n + RIGID else ''}{free} motions "
            "cost nothing instead of six: an atom is held by too few others; raise it"
        )
    modes = vectors[:, RIGID:].T
    largest = np.take_along_axis(modes, np.abs(modes).argmax(axis=1)[:, None], axis=1)
    modes = modes * np.sign(largest)
    return Modes(x, modes.reshape(n, -1, 3), values[RIGID:], float(spring))


def boltzmann(modes: Modes, amplitude: Any = 1.0, **options: Any) -> Boltzmann:
    r"""The law of the amplitudes at temperature τ: :math:`z_k \sim N(0, \tau / \kappa_k)`.

    With one amplitude `a` for all, every :math:`\kappa_k` is :math:`300 a^2` K: components are
    alike, and the prior does not tell them apart. With one for each mode (such as
    ``3 / modes.thermal()``, by which one unit of `z` is 3 Å along any of them) variances differ.
    They stay proportional at all temperatures, which still leaves rotations of the whitened `z`
    free (:class:`pyrocryo.priors.Boltzmann`): harmonic modes alone never identify a decoder that
    could turn them.

    Args:
        modes: Of :func:`normal_modes`, as many as `z` has numbers.
        amplitude: What the volume was given.
        **options: Of :class:`pyrocryo.priors.Boltzmann`, such as ``temperature``.
    """
    from pyrocryo.priors import Boltzmann

    return Boltzmann(modes.stiffness(amplitude), **options)


class Elastic(Gaussians):
    r"""A molecule that moves along normal modes: :math:`r(z) = r^{(0)} + \sum_k s_k z_k m_k`.

    One unit of `z` is the thermal amplitude at 300 K times ``amplitude``,
    :math:`s_k = a \sqrt{k_B 300 \text{ K} / \gamma \lambda_k}`. Motions are straight: far from
    rest, they stretch bonds.

    Args:
        modes: As many as it shall move along (:meth:`Modes.take`). Images show what is near the
            origin, so centre the structure first.
        amplitude: Factor `a` on the thermal amplitudes, or one for each mode. Springs fitted to
            crystals hold domains much tighter than solution does.
        width: Standard deviation (Å) of each atom's Gaussian, one or `(A,)`.
        weight: Height of each, one or `(A,)`.

    Attributes:
        dim: Number of modes.
        spatial: 3: the molecule turns in space.
        scale: Å along each mode for one unit of `z`, `(dim,)`.
        stiffness: Force constants in K per unit of `z` squared.
    """

    spatial = 3

    def __init__(
        self, modes: Modes, *, amplitude: Any = 1.0, width: Any = 4.0, weight: Any = 1.0
    ) -> None:
        self.modes = modes
        self.dim = len(modes)
        self.scale = modes.scales(amplitude)
        self.stiffness = modes.stiffness(amplitude)
        self.width = one_each("width", width, len(modes.positions))
        self.weight = one_each("weight", weight, len(modes.positions), least=0.0)
        self._moved: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def centres(self, z: Tensor) -> Tensor:
        """Positions (Å) of all atoms, `(..., A, 3)`, of conformations `z` `(..., dim)`."""
        if z.shape[-1] != self.dim:
            raise InputError(f"z: expected {self.dim} modes on the last axis, got {z.shape[-1]}")
        still, along = self._constants(z)
        return still + (z @ along.flatten(1)).unflatten(-1, still.shape)

    def _constants(self, z: Tensor) -> tuple[Tensor, ...]:
        """Rest and modes, of the dtype and on the device of `z`; kept once moved."""
        place = z.dtype, z.device
        if place not in self._moved:
            with torch.inference_mode(False):  # what is kept must serve autograd later
                along = self.scale[:, None, None] * self.modes.vectors
                self._moved[place] = tuple(
                    torch.as_tensor(part).to(z) for part in (self.modes.positions, along)
                )
        return self._moved[place]


def _positions(positions: Any) -> np.ndarray:
    x = np.asarray(positions, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != 3 or not np.isfinite(x).all():
        raise InputError(f"positions: expected finite numbers (A, 3) in Å, got shape {x.shape}")
    if len(x) < 3:
        raise InputError(f"positions: a network needs at least 3 atoms, got {len(x)}")
    return x


def _pairs(x: np.ndarray, cutoff: float, law: str) -> tuple[np.ndarray, np.ndarray]:
    """Which atoms are joined: `i < j`."""
    if law not in ("constant", "inverse-square"):
        raise InputError(f"law: expected 'constant' or 'inverse-square', got {law!r}")
    if not cutoff > 0:
        raise InputError(f"cutoff: expected a positive number of Å, got {cutoff}")
    if cutoff == math.inf:
        return np.triu_indices(len(x), k=1)
    return tuple(cKDTree(x).query_pairs(cutoff, output_type="ndarray").T)


def _factors(amplitude: Any, count: int) -> np.ndarray:
    """One positive factor for each mode."""
    found = np.asarray(amplitude, dtype=np.float64)
    if found.shape not in ((), (count,)) or not ((found > 0) & np.isfinite(found)).all():
        raise InputError(
            f"amplitude: expected a positive factor, or one for each of {count} modes, got "
            f"{amplitude}"
        )
    return np.broadcast_to(found, count)
