"""Posteriors in the user's own particle files, and particles chosen by them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pyrocryo import draws
from pyrocryo.errors import InputError
from pyrocryo.io import relion
from pyrocryo.io.copies import copied, names_and_rows
from pyrocryo.io.where import terms, true_of
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["annotate", "chain_of", "select"]

log = logging.getLogger("pyrocryo")

NAME = re.compile(r"[a-z]\w*", re.ASCII)
TAKEN = (
    "z_mean",
    "z_sd",
    "molecule",
    "frame",
    "temperature",
    "time",
    "truth",
)  # mean other things


def annotate(
    path: str | Path,
    out: str | Path,
    fit_or_post: Any,
    particles: Particles | None = None,
    *,
    seed: int | None = None,
    further: Mapping[str, np.ndarray] | None = None,
    missing: Literal["nan", "drop"] = "nan",
    where: str | None = None,
) -> None:
    """Writes a copy of a .star or .cs file with the posterior of each particle in it.

    Rows and their order stay, and so does all else in the file, bit for bit. A star file gets the
    columns ``pyrocryoZMean1``, ``pyrocryoZMean2``, ..., ``pyrocryoZSd1``, ...; a .cs file the
    fields ``pyrocryo/z_mean`` and ``pyrocryo/z_sd`` `(K,)`, float32. Paths of images stay
    as they are: put the copy where the original is.

    Example::

        particles = pc.io.load("particles.star")
        pc.io.annotate("particles.star", "with_z.star", fit, particles, seed=0)  # all particles
        pc.io.annotate("particles.star", "good.star", post, further={"khat": khat},
                       where="z1 > 1.5 and khat < 0.7")

    Args:
        path: The file the particles were loaded from.
        out: The copy, of the same kind; must not be there yet.
        fit_or_post: A fit, whose guide gives means and standard deviations
            (:func:`pyrocryo.draws.moments`), or a posterior of ``pc.posterior``, of which they
            are taken over draws.
        particles: For a fit: the particles, or a part of them, of ``path``.
        seed: Which of several seeds: their axes need not be the same.
        further: More numbers by name, `(N,)` for the N particles that have a posterior, in their
            order, such as ``khat`` or ``cluster``: columns ``pyrocryoKhat`` and
            ``pyrocryoCluster``, fields ``pyrocryo/khat`` and ``pyrocryo/cluster``.
        missing: Rows without a posterior hold NaN, or are left out.
        where: Keep only rows for which this is true: comparisons of ``z1``, ``z2``, ...,
            ``sd1``, ... or a name in ``further`` with a number, joined by ``and``, such as
            ``"z1 > 1.5 and sd1 < 0.3"``. Rows without a posterior are then left out.

    Raises:
        InputError: If the posterior is not of this file's particles, it is not said which seed,
            or the file cannot be copied so.
    """
    path = Path(path)
    if missing not in ("nan", "drop"):
        raise InputError(f"missing: expected 'nan' or 'drop', got {missing!r}")
    if where is not None:
        terms(where)  # before all particles are looked at
    index, mean, sd = _moments(fit_or_post, particles, seed)
    frames = mean.shape[1:-1]
    values = {"z_mean": mean, "z_sd": sd} | _checked(further or {}, len(index), frames)
    names, size = names_and_rows(path)
    rows = _rows(path, index, frames, names, size)
    table = {name: _spread(value, rows, size) for name, value in values.items()}
    is_star = path.suffix.lower() == ".star"
    columns = _star_columns(table) if is_star else {f"pyrocryo/{n}": v for n, v in table.items()}
    keep = None
    if missing == "drop":
        keep = np.zeros(size, dtype=bool)
        keep[rows] = True
    if where is not None:
        named = _by_name(table)
        keep = true_of(where, named)
        if not keep.any():
            raise InputError(
                f"where: {where!r} is true of none of the {size} rows of {path}; "
                f"{_ranges(named, where)}"
            )
    copied(path, out, columns=columns, keep=keep)
    if keep is not None:
        log.info("%s: %d of the %d rows of %s", out, keep.sum(), size, path)


def select(path: str | Path, out: str | Path, rows: np.ndarray) -> None:
    """Writes a copy of a .star or .cs file with some of its rows, in their order.

    Example::

        keep = np.zeros(len(particles), dtype=bool)
        keep[post["posterior"]["particle"]] = (z_mean[:, 0] > 1) & (khat < 0.7)
        pc.io.select("particles.star", "open.star", keep)
        pc.io.select("particles.cs", "cluster3.cs", np.flatnonzero(cluster == 3))

    Args:
        path: The file.
        out: The copy, of the same kind; must not be there yet.
        rows: Which rows: a mask `(N,)` of all N rows, or their positions, counted from 0.

    Raises:
        InputError: If rows are none, out of range or named twice.
    """
    path = Path(path)
    _, size = names_and_rows(path)
    rows = np.asarray(rows)
    if rows.dtype == bool:
        if rows.shape != (size,):
            raise InputError(
                f"rows: expected a mask ({size},) of the rows of {path}, got {rows.shape}"
            )
        keep = rows
    else:
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise InputError(
                f"rows: expected a mask or positions (n,), got {rows.dtype} {rows.shape}"
            )
        _within(rows, size, path)
        keep = np.zeros(size, dtype=bool)
        keep[rows.astype(np.int64)] = True
        if keep.sum() != rows.size:
            raise InputError("rows: a row is named more than once")
    if not keep.any():
        raise InputError(f"rows: none of the {size} rows of {path} is chosen")
    copied(path, out, keep=keep)


def _moments(
    source: Any, particles: Particles | None, seed: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Particles `(N,)`, means and standard deviations `(N, [T,] K)` of one seed."""
    if isinstance(source, Fit):
        if particles is None:
            raise InputError("particles: a fit needs the particles to look at")
        mean, sd = draws.moments(source, particles, chain=chain_of(source.seeds, seed))
        return particles.index, mean, sd
    try:
        z = source["posterior"]["z"]
        index, seeds = np.asarray(z["particle"]), np.asarray(z["chain"]).tolist()
    except (TypeError, KeyError, AttributeError):
        kind = type(source).__name__
        raise InputError(f"fit_or_post: expected a fit or a posterior, got {kind}") from None
    drawn = np.asarray(z)[chain_of(seeds, seed)]
    if len(drawn) < 2:
        raise InputError("fit_or_post: one draw has no standard deviation, expected two or more")
    return index, drawn.mean(axis=0), drawn.std(axis=0, ddof=1)


def chain_of(seeds: Sequence[int], seed: int | None) -> int:
    """Which of the seeds is meant; the only one need not be named."""
    if seed is None and len(seeds) == 1:
        return 0
    if seed not in seeds:
        known = ", ".join(map(str, seeds))
        if seed is None:
            raise InputError(
                f"seed: name one of {known}, as the axes of one need not be those of another"
            )
        raise InputError(f"seed: expected one of {known}, got {seed}")
    return list(seeds).index(seed)


def _ranges(columns: Mapping[str, np.ndarray], where: str) -> str:
    """From where to where the numbers go that a condition names."""
    told = []
    for name in dict.fromkeys(re.findall(r"[A-Za-z]\w*", where)):
        values = columns.get(name, np.empty(0))
        values = values[np.isfinite(values)]
        if len(values):
            told.append(f"{name} is {values.min():.3g} to {values.max():.3g}")
    return ", ".join(told)


def _within(rows: np.ndarray, size: int, path: Path) -> None:
    bad = rows[(rows < 0) | (rows >= size)]
    if bad.size:
        raise InputError(f"rows: {path} has rows 0 to {size - 1}, got {bad[0]}")


def _rows(
    path: Path, index: np.ndarray, frames: tuple[int, ...], names: Sequence[str], size: int
) -> np.ndarray:
    """Rows `(N, [T])` of the file that particles are of."""
    grouped = relion.MOLECULE in names or relion.FRAME in names
    order = relion.molecules(path) if grouped else None
    each = () if order is None else order.shape[1:]
    if frames != each:
        said = [f"{shape[0]} frames a molecule" if shape else "single images"
                for shape in (frames, each)]  # fmt: skip
        raise InputError(f"fit_or_post: it is of {said[0]}, but {path} of {said[1]}")
    rows = np.arange(size) if order is None else order
    _within(index, len(rows), path)
    if len(np.unique(index)) != len(index):
        raise InputError("fit_or_post: a particle is in it more than once")
    return rows[index]


def _checked(
    further: Mapping[str, np.ndarray], n: int, frames: tuple[int, ...]
) -> dict[str, np.ndarray]:
    values = {}
    for name, value in further.items():
        value = np.asarray(value)
        if not NAME.fullmatch(name) or _label(name).rstrip("0123456789") in map(_label, TAKEN):
            raise InputError(f"further: {name!r} cannot be the name of a column")
        if value.shape not in ((n,), (n, *frames)) or value.dtype.kind not in "biuf":
            raise InputError(
                f"further: expected {name} of shape ({n},), a number for each particle, got "
                f"{value.dtype} {value.shape}"
            )
        whole = value.dtype.kind in "biu"
        if whole and value.size and max(abs(int(value.min())), int(value.max())) > 2**53:
            raise InputError(f"further: {name} has whole numbers beyond 2**53, which lose digits")
        value = value.astype(np.int64 if whole else np.float32)
        if value.shape == (n,) and frames:
            value = value[:, None].repeat(frames[0], 1)
        values[name] = value
    return values


def _spread(value: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Values `(N, [T,] ...)` where their rows are, `(size, ...)`, and NaN elsewhere."""
    last = value.shape[rows.ndim :]
    whole = value.dtype.kind == "i" and rows.size == size
    kind: Any = np.int64 if whole else np.float32
    if value.dtype.kind == "i" and (value.astype(kind) != value).any():  # too many digits
        kind = np.float64
    out = np.full((size, *last), 0 if whole else np.nan, kind)
    out[rows.ravel()] = value.reshape(-1, *last)
    return out


def _by_name(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns as conditions call them."""
    names = {f"z{k}": part for k, part in enumerate(table["z_mean"].T, start=1)}
    names |= {f"sd{k}": part for k, part in enumerate(table["z_sd"].T, start=1)}
    return names | {name: part for name, part in table.items() if part.ndim == 1}


def _label(name: str) -> str:
    """A name as star files have them."""
    return "pyrocryo" + "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _star_columns(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    columns = {}
    for name, value in table.items():
        label = _label(name)
        if value.ndim == 1:
            columns[label] = value
        else:
            columns |= {f"{label}{k}": part for k, part in enumerate(value.T, start=1)}
    return columns
