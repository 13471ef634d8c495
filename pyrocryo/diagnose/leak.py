"""Does `z` depend on the pose? Of anyone's latents and poses, without the model that made them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyrocryo.diagnose.dependence import (
    ALPHA,
    LITTLE,
    Dependence,
    by_features,
    by_groups,
    by_neighbours,
    dependence,
    orthonormal,
)
from pyrocryo.errors import InputError
from pyrocryo.metrics.pose import IN_PLANE

__all__ = ["PoseLeak", "active", "against", "in_plane_features", "leak", "psi", "view_features"]

MOST = 20_000  # particles compared
MOST_NEAR = 5_000  # particles compared by neighbours
FEWEST = 50
TESTS = 3  # where views differ
LEAST = 59  # permutations
NEIGHBOURS = 10
DEGREE = 4  # of spherical harmonics, and of in-plane waves
PER_HARMONIC = 50  # particles; permutations do not know what a regression took
CELL = 32  # particles seen from about the same direction
ACTIVE = 0.01  # of the variance of the latent that varies most
MORE = 1.25  # times what smooth functions explain, for neighbours to be worth a sentence
IN_PLANE_WAVES = "in-plane waves"
DISTINCT = 20  # whole numbers with no more values than this are labels


@dataclass(frozen=True)
class PoseLeak:
    """What the pose explains of `z`.

    Attributes:
        tests: One for each aspect of the pose, neighbours last.
        p: The smallest p of them, corrected for their number (Holm).
        share: The largest share of the variance of all latents that any of them explains.
        verdict: 'depends', 'depends a little' (no direction of `z` has 2 % of its variance
            explained), or 'none seen'.
        latents: Numbers, from 0, of the latents looked at: those that vary.
        particles: How many there are; each test says how many it compared.
        sentence: In words.
    """

    tests: tuple[Dependence, ...]
    p: float
    share: float
    verdict: str
    latents: tuple[int, ...]
    particles: int
    sentence: str


def leak(
    z: np.ndarray,
    rotation: np.ndarray,
    *,
    permutations: int = 999,
    most: int = MOST,
    seed: int = 0,
) -> PoseLeak:
    r"""Tests whether `z` depends on the pose, by permuting the poses of the particles.

    Three tests. *The direction of view* (a point of S²): regression on spherical harmonics up to
    degree 4. *The turn in the image's plane*, given the view: regression on the functions of SO(3)
    of degree 1 and 2 that average to nothing over a turn in the plane (Wigner's
    :math:`D^l_{m n}` with m != 0), which do not depend on where angles are counted from, and on
    waves :math:`\cos h\psi, \sin h\psi`, h = 1..4, of RELION's angle; what harmonics explain of
    `z` is taken first (one for 50 particles), and permuted are particles seen from about the same
    direction, so that a dependence on the view neither counts as one on the turn nor hides it.
    *Neighbours in pose*, which see what smooth functions do not.

    An encoder that reads conformations alone gives a `z` independent of the pose, if molecules lie
    on the grid whatever their conformation. So a dependence is an encoder's leak, or poses that
    follow the conformation (a preferred orientation of one conformation; a consensus alignment
    that turns with a domain): this test cannot tell these apart; turning images and encoding them
    again can (:func:`pyrocryo.diagnose.pose_invariance`).

    Rows are taken to be independent: copies of particles (symmetry expansion) raise false alarms.

    Args:
        z: `(N, K)` posterior means.
        rotation: `(N, 3, 3)`, molecule to image (RELION's, cryoDRGN's).
        permutations: How many, 59 or more.
        most: Particles compared, drawn at random where there are more; at most 5000 of them by
            neighbours.
        seed: Draws them and the permutations.

    Raises:
        InputError: If the arrays do not go together, hold NaN, do not vary, or are of fewer than
            50 particles.
    """
    if permutations < LEAST:
        raise InputError(
            f"permutations: expected {LEAST} or more, with fewer no p of three tests is below "
            f"{ALPHA:g}, got {permutations}"
        )
    z, rotation = _latents(z), np.asarray(rotation, dtype=np.float64)
    if rotation.shape != (len(z), 3, 3):
        raise InputError(
            f"rotation: expected ({len(z)}, 3, 3), one for each row of z, got {rotation.shape}"
        )
    off = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max(axis=(1, 2))
    if not (off < 1e-2).all():  # NaN among them
        row = int(np.flatnonzero(~(off < 1e-2))[0])
        raise InputError(f"rotation: row {row} is not a rotation")
    columns = active(z)
    if np.ptp(rotation.reshape(-1, 9), axis=0).max() < IN_PLANE:
        raise InputError("rotation: all particles have the same pose")
    rng, names = np.random.default_rng(seed), np.array(columns) + 1
    rows = _some(len(z), most, rng)
    few = rows[_some(len(rows), max(FEWEST, min(MOST_NEAR, most)), rng)]
    options = {"permutations": permutations, "names": names, "seed": seed, "tests": TESTS}
    tests = []
    near, turns = rotation[few], rotation[rows]
    views = view_features(turns)
    explain, count = by_features(views)
    if count:
        tests.append(
            dependence(
                z[np.ix_(rows, columns)],
                explain,
                what="the direction of view",
                features=count,
                how="spherical harmonics",
                **options,
            )  # fmt: skip
        )
    cells = _cells(turns[:, 2])
    explain, count = by_features(_within(in_plane_features(turns), cells))
    if count:
        tests.append(
            dependence(
                _within(_less_harmonics(z[np.ix_(rows, columns)], views), cells),
                explain,
                what="the turn in the image's plane",
                features=count,
                how=IN_PLANE_WAVES,
                permute=lambda rng: _shuffled(cells, rng),
                **options,
            )  # fmt: skip
        )
    explain, count = by_neighbours(near.reshape(-1, 9), NEIGHBOURS)
    tests.append(
        dependence(
            z[np.ix_(few, columns)],
            explain,
            what="the pose, by neighbours",
            features=count,
            how="nearest neighbours in pose",
            **options,
        )  # fmt: skip
    )
    return _told(tuple(tests), columns, len(z))


def against(
    z: np.ndarray,
    values: np.ndarray,
    *,
    what: str,
    permutations: int = 999,
    most: int = MOST,
    seed: int = 0,
) -> Dependence:
    """Tests whether `z` depends on a column: numbers by a cubic of their ranks, labels by groups.

    Particles of one micrograph share its defocus, its ice and more: a dependence on one of these
    may come through another.

    Args:
        z: `(N, K)` posterior means.
        values: `(N,)` numbers or labels, or `(N, F)` numbers taken together. Whole numbers of few
            values are labels.
        what: Its name.
        permutations: How many.
        most: Particles compared, drawn at random where there are more.
        seed: Draws them and the permutations.

    Raises:
        InputError: As :func:`leak`, or if the column never varies.
    """
    z, values = _latents(z), np.asarray(values)
    if len(values) != len(z):
        raise InputError(f"{what}: expected {len(z)} values, one a particle, got {len(values)}")
    columns = active(z)
    rows = _some(len(z), most, np.random.default_rng(seed))
    values, z = values[rows], z[np.ix_(rows, columns)]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{what}: expected finite numbers, got NaN or infinity")
    labels = values.ndim == 1 and (
        values.dtype.kind not in "iuf"
        or (len(np.unique(values)) <= DISTINCT and bool((values == np.floor(values)).all()))
    )
    if labels:
        explain, count = by_groups(values)
        if count == len(z):
            raise InputError(f"{what}: every particle has a label of its own")
        count -= 1
        how = f"means of {count + 1} groups"
    else:
        explain, count = by_features(_cubic_of_ranks(values.reshape(len(z), -1)))
        how = "a cubic of its ranks"
    if not count:
        raise InputError(f"{what}: the same for all particles")
    return dependence(
        z, explain, what=what, how=how, features=count, permutations=permutations,
        names=np.array(columns) + 1, seed=seed,
    )  # fmt: skip


def active(z: np.ndarray) -> list[int]:
    """Latents that vary: by 1 % or more of the variance of the one that varies most."""
    variance = np.var(z, axis=0)
    if not variance.max() > 1e-12 * max(np.abs(z).max(), 1e-300) ** 2:
        raise InputError("z: no latent varies")
    return np.flatnonzero(variance >= ACTIVE * variance.max()).tolist()


def view_features(rotation: np.ndarray) -> np.ndarray:
    """Monomials of the direction of view up to degree 4, `(N, 34)`: they span harmonics."""
    from sklearn.preprocessing import PolynomialFeatures

    return PolynomialFeatures(DEGREE, include_bias=False).fit_transform(rotation[:, 2])


def in_plane_features(rotation: np.ndarray) -> np.ndarray:
    """Functions of the pose `(N, F)` that average to 0 over turns in the plane."""
    # a turn by α multiplies this by exp(iα)
    e, v = rotation[:, 0] + 1j * rotation[:, 1], rotation[:, 2]
    i, j = np.triu_indices(3)
    waves = np.exp(1j * psi(rotation)[:, None] * np.arange(1, DEGREE + 1))
    parts = [e, e[:, i] * v[:, j] + e[:, j] * v[:, i], e[:, i] * e[:, j], waves]
    return np.concatenate([part for x in parts for part in (x.real, x.imag)], axis=1)


def psi(rotation: np.ndarray) -> np.ndarray:
    """RELION's psi (rad) but for sign and offset; the angle in the plane if all views are one."""
    e = rotation[:, 0] + 1j * rotation[:, 1]
    flat = 1 - np.abs(rotation[:, 2, 2]) < IN_PLANE
    return np.angle(e[:, 0] if flat.all() else e[:, 2])


def _latents(z: np.ndarray) -> np.ndarray:
    z = np.asarray(z)
    if z.ndim != 2 or not z.shape[1] or z.dtype.kind not in "iuf":
        raise InputError(f"z: expected numbers (N, K), got {z.dtype} {z.shape}")
    if len(z) < FEWEST:
        raise InputError(f"z: expected {FEWEST} particles or more, got {len(z)}")
    z = z.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
    if bad.size:
        raise InputError(f"z: expected finite numbers, got {z[bad[0]]} in row {bad[0]}")
    return z


def _some(n: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))


def _cells(view: np.ndarray) -> list[np.ndarray]:
    """Rows of particles seen from about the same direction, 32 to 63 each, by halving."""
    done, todo = [], [np.arange(len(view))]
    while todo:
        rows = todo.pop()
        if len(rows) < 2 * CELL or np.ptp(view[rows], axis=0).max() < IN_PLANE:
            done.append(rows)
            continue
        order = rows[np.argsort(view[rows, np.ptp(view[rows], axis=0).argmax()], kind="stable")]
        todo += np.array_split(order, 2)
    return done


def _less_harmonics(z: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Less what harmonics of the view explain, of as high a degree as particles allow."""
    degree = min(DEGREE, int(np.sqrt(len(z) / PER_HARMONIC + 1)) - 1)
    smooth = orthonormal(views[:, : math.comb(degree + 3, 3) - 1]) if degree else z[:, :0]
    z = z - z.mean(axis=0)
    return z - smooth @ (smooth.T @ z)


def _within(x: np.ndarray, cells: list[np.ndarray]) -> np.ndarray:
    """Less the mean of each cell."""
    x = x.copy()
    for rows in cells:
        x[rows] -= x[rows].mean(axis=0)
    return x


def _shuffled(cells: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    order = np.empty(sum(map(len, cells)), dtype=np.intp)
    for rows in cells:
        order[rows] = rng.permutation(rows)
    return order


def _cubic_of_ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata
    from sklearn.preprocessing import PolynomialFeatures

    ranks = rankdata(values, axis=0)
    ranks = 2 * (ranks - 0.5) / len(ranks) - 1
    return PolynomialFeatures(3, include_bias=False).fit_transform(ranks)


def _told(tests: tuple[Dependence, ...], columns: list[int], n: int) -> PoseLeak:
    order = sorted(tests, key=lambda test: test.p)
    p = min(1.0, len(order) * order[0].p)
    found = [
        test for m, test in enumerate(order)
        if all((len(order) - i) * order[i].p <= ALPHA for i in range(m + 1))
    ]  # fmt: skip
    share = max(test.total for test in tests)
    if not found:
        noticed = max(test.noticed for test in tests[:-1])  # neighbours see less
        verdict = "none seen"
        reading = (
            f"no sign that z depends on the pose (p = {p:.2g} for {len(order)} tests); more than "
            f"about {100 * noticed:.2g} % of the variance of a latent would have been seen"
        )
    else:
        large = any(max(test.share.max(), test.strongest) >= LITTLE for test in found)
        verdict = "depends" if large else "depends a little"
        plain = [test for test in tests[:-1] if test in found]
        # neighbours see the same again, and at times more
        more = tests[-1].total > MORE * sum(test.total for test in plain) + LITTLE
        if tests[-1] in found and (more or not plain):
            plain.append(tests[-1])
        reading = "; ".join(test.sentence for test in plain)
    if (compared := max(test.particles for test in tests)) < n:
        reading += f" (of {n} particles {compared} drawn at random were compared)"
    return PoseLeak(tests, p, share, verdict, tuple(columns), n, reading)
