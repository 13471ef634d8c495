"""The conditional prior of iVAE: any field of the particles moves and stretches the law of z."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.particles import PER_IMAGE
from pyrocryo.perceptron import perceptron
from pyrocryo.priors.boltzmann import BoltzmannNormal

__all__ = ["Conditional"]


class Conditional(nn.Module):
    r"""A Gaussian whose mean and spread are learned functions of a field `u` of the particle.

    .. math:: p(z | u) = \prod_k N(z_k; \mu_k(u), \sigma_k(u)^2)

    (iVAE; Khemakhem et al. 2020, Eq. 6-7.) Of a class (segment, batch, mutant, ligand) the
    moments are a table; of numbers (concentration, time since mixing, dose) they are a network of
    the standardised value. Particles with frames have one `u` a molecule, but for ``time``.

    What it identifies, for a decoder that is injective: with mean and scale (two statistics a
    component, n = K) `2 K + 1` values of `u` whose log-density contrasts have rank `2 K` fix `z`
    up to permutation and a map of each component (theorems 1 and 2; K + 1 values of rank K for
    the scale alone, theorem 3, up to permutation, sign and scale). With the mean alone the
    statistic is `z` itself, and K + 1 values fix `z` only up to one linear map (theorem 1):
    axes then need something else. These hold for the true law of the data; a learned prior has
    axes wherever it is fitted, so look at seeds.

    Gauge. The decoder can undo any affine map of `z`, so one value of `u` is the anchor, where
    the prior is N(0, I): class 0, or the mean of the field (network at `u` less network at the
    anchor). All start there: at first no `u` makes a difference.

    Args:
        field: Name of the particles' field.
        dim: Size K of `z`.
        hidden: Widths of the network's hidden layers, by default one of 32.
        classes: How many classes there are, 0, 1, ...; None for numbers.
        mean: Whether the mean moves with the field; else it is 0.
        scale: Whether the spread does; else it is 1.
        standard: Mean and standard deviation of the field, numbers or `(D,)`. By default those
            of the first particles that :meth:`check` sees; they are kept with the parameters.
        size: Length D of a field of vectors `(N, D)`; None for a field of numbers `(N,)`.

    Attributes:
        fields: The fields it wants (see :func:`pyrocryo.context.wanted`).

    Raises:
        InputError: If neither moment depends on the field, or there are fewer than two classes.
    """

    def __init__(
        self,
        field: str,
        dim: int,
        *,
        hidden: Sequence[int] | None = None,
        classes: int | None = None,
        mean: bool = True,
        scale: bool = True,
        standard: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise InputError(f"dim: expected at least one latent, got {dim}")
        if not mean and not scale:
            raise InputError("Conditional: mean and scale are both False; let one of them vary")
        if classes is not None and classes < 2:
            raise InputError(f"classes: expected at least 2, got {classes}")
        of_numbers = {"hidden": hidden, "standard": standard, "size": size}
        idle = [name for name, given in of_numbers.items() if given is not None]
        if classes is not None and idle:
            raise InputError(f"classes: a table of classes has no use for {' and '.join(idle)}")
        if size is not None and size < 1:
            raise InputError(f"size: expected at least one number, got {size}")
        self.fields = [field]
        self.dim = dim
        self.classes = classes
        self.size = size
        self.mean = mean
        self.scale = scale
        outputs = dim * (mean + scale)
        if classes is not None:
            self.table = nn.Parameter(torch.zeros(classes - 1, outputs))
            return
        self.network = perceptron(
            size or 1, (32,) if hidden is None else hidden, outputs, bias=False
        )
        self.network[-1] = _Zero(self.network[-1].in_features, outputs)
        self.register_buffer("known", torch.tensor(standard is not None))
        centre, spread = standard or (0.0, 1.0)
        like = torch.zeros(size or 1)
        for name, value in (("centre", centre), ("spread", spread)):
            value = torch.as_tensor(value, dtype=like.dtype)
            if value.dim() > 1 or value.numel() not in (1, len(like)):
                raise InputError(
                    f"standard: expected a number or {len(like)} of them, got {value.tolist()}"
                )
            self.register_buffer(name, value.expand_as(like).clone())
        if not (self.spread > 0).all():
            raise InputError(f"standard: expected a positive deviation, got {spread}")

    def reset_parameters(self) -> None:
        """Back to N(0, I) for every `u`; layers of a network reset themselves, the last to 0."""
        if self.classes is not None:
            nn.init.zeros_(self.table)

    def check(self, **fields: np.ndarray) -> None:
        """Checks the field; the first time, takes mean and deviation from it, unless given.

        Raises:
            InputError: If it is not what the prior was made for.
        """
        name = self.fields[0]
        u = np.asarray(fields[name])
        if self.classes is not None:
            if u.ndim != 1 + (name in PER_IMAGE and u.ndim == 2):
                raise InputError(f"{name}: expected a class for each particle, got {u.shape}")
            whole = u.dtype.kind in "iu" and u.min() >= 0 and u.max() < self.classes
            if not whole:
                raise InputError(
                    f"{name}: expected whole numbers from 0 to {self.classes - 1}, got "
                    f"{u.dtype} from {u.min()} to {u.max()}"
                )
            return
        if u.dtype.kind not in "iuf" or not np.isfinite(u).all():
            raise InputError(f"{name}: expected finite numbers, got {u.dtype}")
        if self.size is not None and (u.ndim < 2 or u.shape[-1] != self.size):
            raise InputError(f"{name}: expected vectors (..., {self.size}), got shape {u.shape}")
        if self.size is None and u.ndim > 1 and name not in PER_IMAGE:
            raise InputError(f"{name}: vectors {u.shape}; give Conditional(size={u.shape[-1]})")
        rows = u.reshape(-1, self.size or 1).astype(np.float64)
        if self.known:
            return
        spread = rows.std(axis=0)
        if not (spread > 0).all():
            raise InputError(f"{name}: is {rows[0]} for every particle, and can tell nothing")
        self.centre.copy_(torch.as_tensor(rows.mean(axis=0)))
        self.spread.copy_(torch.as_tensor(spread))
        self.known.fill_(True)

    def extra_repr(self) -> str:
        """The field and what of the law it moves."""
        return f"{self.fields[0]!r}, classes={self.classes}, mean={self.mean}, scale={self.scale}"

    def forward(self, **fields: Tensor) -> BoltzmannNormal:
        """The law of `z` at each `u`, `(...)` or `(..., D)`: batch `(...)`, event `(K,)`."""
        u = fields[self.fields[0]]
        if self.classes is not None:
            anchored = torch.cat([torch.zeros_like(self.table[:1]), self.table])[u.long()]
        else:
            u = u if self.size is not None else u.unsqueeze(-1)
            white = (u.to(self.centre) - self.centre) / self.spread
            anchored = self.network(white) - self.network(torch.zeros_like(self.centre))
        parts = anchored.split(self.dim, dim=-1)
        zero = torch.zeros_like(parts[0])
        loc = parts[0] if self.mean else zero
        return BoltzmannNormal(loc, parts[-1].exp() if self.scale else zero + 1)


class _Zero(nn.Linear):
    """A last layer that starts at 0."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
