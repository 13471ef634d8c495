"""What is known of each particle: shapes and ranges of the fields that have a meaning here."""

from __future__ import annotations

import keyword

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["checked"]


def checked(name: str, value: np.ndarray, shape: tuple[int, ...], owner: type) -> np.ndarray:
    """Returns the field ``name`` if it fits images of ``shape`` and hides nothing of ``owner``.

    Raises:
        InputError: If a shape, a range or the name is wrong.
    """
    if name.startswith("_") or keyword.iskeyword(name) or hasattr(owner, name):
        raise InputError(f"{name!r} cannot be the name of a field")
    if value.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected numbers, got an array of {value.dtype}")
    views = shape[:-2]  # one entry an image: (N,) or (N, T)
    expected = {
        "rotation": (*views, 3, 3),
        "shift": (*views, 2),
        "temperature": (shape[0],),
        "time": views,
        "truth": (*views, *value.shape[len(views) :][:1]),
    }.get(name, (shape[0], *value.shape[1:]))
    if value.shape != expected or (name == "truth" and value.ndim != len(views) + 1):
        raise InputError(
            f"{name}: expected shape {expected} to go with the images, got {value.shape}"
        )
    if value.dtype.kind == "f":
        bad = ~(np.abs(value) <= np.finfo(np.float32).max)  # which batches are in
        if bad.any():
            where = tuple(np.argwhere(bad)[0])
            is_one = np.isfinite(value[where])
            raise InputError(
                f"{name}: particle {where[0]} has a value that is "
                f"{f'too large ({value[where]:g})' if is_one else 'not a finite number'}"
            )
    if name == "temperature" and (value <= 0).any():
        raise InputError(f"temperature: expected kelvin, all positive, got {value.min():g}")
    if name == "ctf":
        _check_ctf(value, views)
    if name == "rotation":
        error = np.abs(value @ np.swapaxes(value, -1, -2) - np.eye(3)).max(axis=(-1, -2))
        bad = (error > 1e-3) | (np.linalg.det(value) < 0)
        if bad.any():
            raise InputError(
                f"rotation: particle {np.argwhere(bad)[0][0]} has a matrix that is not a rotation "
                f"(A A^T differs from 1 by {error[bad].max():.2g}, or its determinant is negative)"
            )
    return value


def _check_ctf(value: np.ndarray, views: tuple[int, ...]) -> None:
    """Raises InputError for numbers that no microscope has."""
    if value.shape not in ((*views, 7), (*views, 8)):
        raise InputError(
            f"ctf: expected shape {(*views, 7)} or {(*views, 8)} to go with the images, got "
            f"{value.shape}"
        )
    for column, said, good in (
        (3, "a voltage of {:g} kV, expected more than 0", value[..., 3] > 0),
        (
            5,
            "an amplitude contrast of {:g}, expected 0 to 1",
            (value[..., 5] >= 0) & (value[..., 5] <= 1),
        ),
    ):
        if not good.all():
            row = tuple(np.argwhere(~good)[0])
            raise InputError(f"ctf: particle {row[0]} has {said.format(value[(*row, column)])}")
