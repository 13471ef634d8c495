"""True factors of every kind: numbers, angles and rotations, as the metrics need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation
from scipy.stats import rankdata

from pyrocryo.errors import InputError
from pyrocryo.metrics.score import paired

__all__ = ["Factors", "binned", "correlation", "pair_up"]

BINS = 20  # of a continuous factor or latent
LEVELS = 50  # at most, of a discrete one
MEMBERS = 5  # of a bin, at least, on average
DIGITS = 9  # of a value, relative to the range, beyond which is rounding
SHAPES = {"linear": (), "circular": (), "so3": (3, 3)}


@dataclass(frozen=True)
class Factors:
    r"""The true factors of `N` particles; an angle or a rotation is one factor.

    | kind | values | regression targets | classes |
    |---|---|---|---|
    | "linear" | `(N,)` | the value | levels, or 20 quantile bins |
    | "circular" | `(N,)` rad | cos φ, sin φ | levels, or 20 equal arcs |
    | "so3" | `(N, 3, 3)` | the nine entries | 24 cells around the cube's rotations |

    Of angles and rotations, an association says how much a latent has to do with them, not that
    they are recovered: cos φ alone has all of it, while cos φ and sin φ together, which say more,
    share it, and are marked down by MIG, SAP and DCI-C. Read R² beside them.

    A number or angle with at most 50 distinct values (and four particles to each) is discrete and
    its levels are its classes; a continuous one is cut automatically, as a definition that needs
    classes gives about 0 for perfect latents when every particle is a class of its own.
    Targets span the same space in any frame, so what is computed from them is blind to an offset
    of angles and to a rotation of rotations; classes are so only up to where the cuts lie.

    Attributes:
        kinds: One a factor.
        values: One array a factor.
    """

    kinds: tuple[str, ...]
    values: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        """Number of factors `K`."""
        return len(self.kinds)

    @cached_property
    def targets(self) -> list[np.ndarray]:
        """What a regression predicts, `(N, 1 | 2 | 9)` a factor."""
        return [
            np.stack([np.cos(x), np.sin(x)], axis=1) if kind == "circular" else _columns(x)
            for kind, x in zip(self.kinds, self.values, strict=True)
        ]

    @cached_property
    def classes(self) -> np.ndarray:
        """`(N, K)` class numbers, from 0 on.

        Raises:
            InputError: If a factor falls into one class, or bins would hold too few particles.
        """
        cut = {"linear": binned, "circular": _arcs, "so3": _cells}
        classes = np.stack(
            [cut[kind](x) for kind, x in zip(self.kinds, self.values, strict=True)], axis=1
        )
        same = (classes == classes[:1]).all(axis=0)
        if same.any():
            raise InputError(f"factors: all values of factor {int(np.argmax(same))} are one class")
        return classes

    def association(self, z: np.ndarray, kind: str = "pearson") -> np.ndarray:
        """How much a factor and a latent have to do with each other, `(K, L)` in [0, 1].

        The R of a regression of the latent on the factor's targets: for a number |correlation|,
        for an angle the circular-linear R, for a rotation the multiple R of its nine entries.
        With ``kind`` "spearman", of ranks of the latent (and of the factor, if it is a number).
        """
        size = np.empty((self.count, z.shape[1]))
        linear = [k for k, kind in enumerate(self.kinds) if kind == "linear"]
        if linear:
            values = np.stack([self.values[k] for k in linear], axis=1)
            size[linear] = np.abs(correlation(values, z, kind))
        if len(linear) < self.count:
            ranked = rankdata(z, axis=0) if kind == "spearman" else z
            centred = ranked - ranked.mean(axis=0)
            norm = np.linalg.norm(centred, axis=0)
        for k in set(range(self.count)) - set(linear):
            targets = self.targets[k] - self.targets[k].mean(axis=0)
            u, s, _ = np.linalg.svd(targets, full_matrices=False)
            explained = np.linalg.norm(u[:, s > 1e-9 * s[0]].T @ centred, axis=0)
            size[k] = np.divide(explained, norm, out=np.zeros_like(norm), where=norm > 0)
        return size


def pair_up(
    factors: np.ndarray | Sequence[np.ndarray] | Factors,
    z: np.ndarray,
    kinds: Sequence[str] | None = None,
) -> tuple[Factors, np.ndarray]:
    """Factors and latents `(N, L)` over the same particles, checked.

    Args:
        factors: `(N, K)`, or a sequence of blocks `(N,)` and `(N, 3, 3)`, or what this gives.
        z: `(N, L)`.
        kinds: "linear", "circular" (rad) or "so3", one a factor; without it numbers, and
            rotations where a block is `(N, 3, 3)`.

    Raises:
        InputError: If shapes or kinds do not fit, numbers are not finite, or a factor is constant.
    """
    if isinstance(factors, Factors):
        return factors, _latents(factors.values[0], z)
    if hasattr(factors, "ndim"):  # an array or a tensor
        factors, z = paired(factors, z)
        factors = list(factors.T)
    blocks = [np.asarray(block, dtype=np.float64) for block in factors]
    if kinds is None:
        kinds = ["so3" if block.ndim == 3 else "linear" for block in blocks]
    if not blocks or len(kinds) != len(blocks) or not set(kinds) <= set(SHAPES):
        raise InputError(
            f"kinds: expected one of {', '.join(SHAPES)} for each of {len(blocks)} factors, got "
            f"{list(kinds)}"
        )
    for k, (kind, block) in enumerate(zip(kinds, blocks, strict=True)):
        if block.ndim < 1 or block.shape[1:] != SHAPES[kind]:
            shape = "(N, 3, 3)" if kind == "so3" else "(N,)"
            raise InputError(f"factors: block {k} is {kind}: expected {shape}, got {block.shape}")
        if not np.isfinite(block).all():
            raise InputError(f"factors: block {k}: expected finite numbers only")
        if (block == block[:1]).all():
            raise InputError(f"factors: factor {k} never varies")
        if len(block) != len(blocks[0]):
            raise InputError(f"factors: blocks of {[len(b) for b in blocks]} particles")
    return Factors(tuple(kinds), tuple(blocks)), _latents(blocks[0], z)


def _latents(block: np.ndarray, z: np.ndarray) -> np.ndarray:
    """`z`, checked to be latents of as many particles as the block has."""
    return paired(np.arange(len(block))[:, None], z)[1]


def binned(x: np.ndarray, *, width: bool = False) -> np.ndarray:
    """Class numbers of numbers `(N,)`: levels, if few; else 20 bins of equal counts.

    Args:
        x: `(N,)`; values that differ by rounding only are one.
        width: 20 bins of equal width instead, of levels too.

    Raises:
        InputError: If bins would hold fewer than 5 particles on average.
    """
    low, high = x.min(), x.max()
    if low == high:
        return np.zeros(len(x), dtype=int)
    x = np.round((x - low) / (high - low), DIGITS)
    levels, index = np.unique(x, return_inverse=True)
    if not width and len(levels) <= min(LEVELS, len(x) // 4):
        return index
    _enough(x, BINS)
    cuts = np.arange(1, BINS) / BINS
    return np.searchsorted(cuts if width else np.quantile(x, cuts), x, side="right")


def correlation(a: np.ndarray, b: np.ndarray, kind: str = "pearson") -> np.ndarray:
    """`(columns of a, columns of b)`; a column that never varies correlates 0 with everything."""
    if kind == "spearman":
        a, b = rankdata(a, axis=0), rankdata(b, axis=0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norms = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    return np.divide(a.T @ b, norms, out=np.zeros_like(norms), where=norms > 0)


def _columns(block: np.ndarray) -> np.ndarray:
    return block.reshape(len(block), -1)


def _arcs(angle: np.ndarray) -> np.ndarray:
    """20 equal arcs, from -π on; levels where there are few."""
    turn = np.mod(angle + np.pi, 2 * np.pi)
    levels, index = np.unique(np.round(turn, DIGITS), return_inverse=True)
    if len(levels) <= min(LEVELS, len(angle) // 4):
        return index
    _enough(angle, BINS)
    return np.minimum((turn * BINS / (2 * np.pi)).astype(int), BINS - 1)


def _cells(rotation: np.ndarray) -> np.ndarray:
    """The nearest of the 24 rotations of the cube: cells of equal volume."""
    centres = Rotation.create_group("O").as_matrix().reshape(-1, 9)
    _enough(rotation, len(centres))
    return np.argmax(_columns(rotation) @ centres.T, axis=1)


def _enough(x: np.ndarray, bins: int) -> None:
    if len(x) < MEMBERS * bins:
        raise InputError(
            f"factors and z: {bins} bins need at least {MEMBERS * bins} particles, got {len(x)}"
        )
