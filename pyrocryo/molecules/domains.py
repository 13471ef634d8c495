"""How domains of structures have turned and moved against each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.rotations import vector_from_matrix

__all__ = ["DomainMotions", "domain_angles", "superposition"]


class DomainMotions(NamedTuple):
    """Rigid motions of B domains, in the frame of the one that stays still.

    What takes a domain from its place in the reference to that in a conformation: a turn by
    ``angle`` about an ``axis`` through its centre of mass, and a ``shift`` of that centre.
    """

    angle: np.ndarray
    """`(..., B)` in [0, π] rad."""
    axis: np.ndarray
    """`(..., B, 3)` unit vectors, seen from whose end the turn is counter-clockwise; of no meaning
    where the angle is 0."""
    shift: np.ndarray
    """`(..., B, 3)` Å."""
    domains: tuple[int, ...]
    """What the segmentation calls them, in this order."""

    def hinges(self) -> tuple[np.ndarray, np.ndarray]:
        r"""The axis about which each domain turns most, and by how much about it.

        The axis `a` is that along which the rotation vectors :math:`\theta_i n_i` vary most over
        all conformations (of one conformation, their own), and the signed angle
        :math:`\theta_i n_i \cdot a`: of conformations that differ by a hinge, exactly the angle
        by which it is open, up to sign; of some that hardly differ, little of it. The sign is
        such that angles are positive on average.

        Returns:
            Axes `(B, 3)`, and angles `(..., B)` in rad.
        """
        vectors = self.angle[..., None] * self.axis
        flat = vectors.reshape(-1, *vectors.shape[-2:])
        centred = flat - flat.mean(axis=0) if len(flat) > 1 else flat
        moments = np.einsum("nbi,nbj->bij", centred, centred)
        axes = np.linalg.eigh(moments)[1][..., -1]
        sign = np.where((flat.mean(axis=0) * axes).sum(-1) < 0, -1.0, 1.0)
        axes = axes * sign[:, None]
        return axes, (vectors * axes).sum(axis=-1)


def superposition(moving: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation `R` and translation `t` that minimise :math:`|R r + t - s|` (Kabsch 1976).

    Args:
        moving: Points `r`, `(..., A, 3)`.
        fixed: Points `s`, `(..., A, 3)`, broadcast against them.

    Returns:
        `(..., 3, 3)`, never a mirror image, and `(..., 3)`.
    """
    a, b = moving.mean(axis=-2), fixed.mean(axis=-2)
    from_a, from_b = moving - a[..., None, :], fixed - b[..., None, :]
    u, _, vt = np.linalg.svd(np.swapaxes(from_b, -1, -2) @ from_a)
    proper = np.ones(u.shape[:-1])
    proper[..., 2] = np.sign(np.linalg.det(u @ vt))
    turn = (u * proper[..., None, :]) @ vt
    return turn, b - (turn @ a[..., None])[..., 0]


def domain_angles(
    positions: Any, reference: Any, segmentation: Any, *, frame: int | None = None
) -> DomainMotions:
    """Turns and shifts of the domains of conformations, of any volume that has atoms.

    Each conformation is superposed on the reference by its frame, and then each domain of the
    reference on that domain, both by least squares (Kabsch 1976). So where a conformation lies and
    how it is turned as a whole does not matter.

        >>> turned = pc.molecules.domain_angles(x, adk.ca_open, adk.domain)  # doctest: +SKIP
        >>> axes, angles = turned.hinges()  # doctest: +SKIP

    Args:
        positions: `(..., A, 3)` Å.
        reference: `(A, 3)` Å.
        segmentation: `(A,)` integers: the domain of each atom.
        frame: The domain that stays still; by default the largest.

    Raises:
        InputError: If shapes disagree, a domain has fewer than three atoms (or less than a plane
            of them), or there are fewer than two.
    """
    x, still = (np.asarray(a, dtype=np.float64) for a in (positions, reference))
    of = np.asarray(segmentation)
    if still.ndim != 2 or still.shape[1] != 3:
        raise InputError(f"reference: expected (A, 3) in Å, got {still.shape}")
    if x.ndim < 2 or x.shape[-2:] != still.shape:
        raise InputError(
            f"positions: expected (..., {len(still)}, 3) as the reference, got {x.shape}"
        )
    if of.shape != (len(still),) or of.dtype.kind not in "iu":
        raise InputError(
            f"segmentation: expected {len(still)} integers, one an atom, got {of.dtype} {of.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(still).all()):
        raise InputError("positions, reference: expected finite numbers of Å")
    names, sizes = np.unique(of, return_counts=True)
    if len(names) < 2:
        raise InputError("segmentation: expected two domains or more, got one")
    frame = int(names[sizes.argmax()]) if frame is None else frame
    if frame not in names:
        raise InputError(f"frame: expected one of {names.tolist()}, got {frame}")
    for name in names:
        part = still[of == name]
        if np.linalg.matrix_rank(part - part.mean(axis=0), tol=1e-6) < 2:
            raise InputError(
                f"segmentation: domain {name} has {len(part)} atoms, which lie on a line; its "
                "turn is not known"
            )
    turn, move = superposition(x[..., of == frame, :], still[of == frame])
    placed = x @ np.swapaxes(turn, -1, -2) + move[..., None, :]
    domains = tuple(int(name) for name in names if name != frame)
    vectors, shifts = [], []
    for name in domains:
        now, before = placed[..., of == name, :], still[of == name]
        vectors.append(vector_from_matrix(superposition(before, now)[0]))
        shifts.append(now.mean(axis=-2) - before.mean(axis=0))
    vector = np.stack(vectors, axis=-2)
    angle = np.linalg.norm(vector, axis=-1)
    axis = np.divide(
        vector, angle[..., None], out=np.zeros_like(vector), where=angle[..., None] > 0
    )
    return DomainMotions(angle, axis, np.stack(shifts, axis=-2), domains)
