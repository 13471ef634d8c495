"""Whether two sets of draws say the same of a particle: means and widths, number by number."""

from __future__ import annotations

import numpy as np

__all__ = ["apart", "columns", "differ"]

OFF, NARROW, WIDE = 0.2, 0.8, 1.25  # what passes for the same posterior
AXES = "xyz"


def columns(sites: dict[str, np.ndarray], *, frames: bool) -> tuple[list[str], np.ndarray]:
    """Names of all that is inferred of a particle, as C plain numbers, and draws of it.

    Args:
        sites: Draws `(S, n, [T,] width)` by site; of ``pose`` angles (rad) from a pose near by.
        frames: Whether there is an axis of T frames.

    Returns:
        C names such as ``z1``, ``pose_x`` (``pose`` in the plane), ``shift_y of frame 2``, and an
        array `(S, n, C)`.
    """
    names: list[str] = []
    parts: list[np.ndarray] = []
    for site, value in sites.items():
        width = value.shape[-1]
        one = [site] if width == 1 else [f"{site}_{axis}" for axis in AXES[:width]]
        one = [f"z{k + 1}" for k in range(width)] if site == "z" else one
        if frames:
            one = [f"{name} of frame {t + 1}" for t in range(value.shape[2]) for name in one]
        names += one
        parts.append(value.reshape(*value.shape[:2], -1))
    return names, np.concatenate(parts, axis=-1)


def apart(
    guide: np.ndarray, exact: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    r"""How far a guide is off, and how wide it is, measured in what is taken for exact.

    .. math:: (\mu_q - \mu) / \sigma, \quad \sigma_q / \sigma

    Args:
        guide: Draws `(S, n, C)` of the guide.
        exact: Draws `(S', n, C)` of the posterior.
        weight: `(S', n)` of the latter, summing to 1 over the draws; all the same by default.

    Returns:
        Two arrays `(n, C)`, not finite where the posterior does not vary.
    """
    if weight is None:
        mean, variance = exact.mean(axis=0), exact.var(axis=0)
    else:
        mean = np.einsum("sn,snc->nc", weight, exact)
        variance = np.einsum("sn,snc->nc", weight, (exact - mean) ** 2)
    sd = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):  # where one draw has all the weight
        return (guide.mean(axis=0) - mean) / sd, guide.std(axis=0) / sd


def differ(off: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Particles `(...)` of which a mean is off by more than .2 or a width outside .8 to 1.25."""
    bad = ~(np.abs(off) <= OFF) | ~((ratio >= NARROW) & (ratio <= WIDE))
    return bad.any(axis=-1)
