"""Linear ICA of latents: PCA, FastICA, and whether that can have told the components apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.identify.ica_reading import ALPHA, reading
from pyrocryo.identify.negentropy import GROUPS, gaussian_p, negentropy
from pyrocryo.identify.subspaces import dependence, grouped
from pyrocryo.metrics.mcc import matched
from pyrocryo.metrics.r2 import halves

__all__ = ["LinearICA", "linear_ica"]

LEAST = 10 * GROUPS  # particles, or molecules
STARTS = 4  # random ones, for each of the two contrasts
HALF_STARTS = 3  # for halves: now and then one ends in a saddle point
CONTRASTS = ("logcosh", "cube")
SPLITS = 3  # into halves, of which each is fitted again
MOST = 10_000  # rows that starts are tried on
LIMIT = 100  # iterations


@dataclass(frozen=True)
class LinearICA:
    r"""Latents as a linear mixture, :math:`z = m + A s`, components by falling negentropy.

    Those of PCA alone by falling variance. Indices count from 0; ``sentence`` counts components
    from 1. Numbers are in nats.
    """

    sources: np.ndarray
    """`s`, `(N, k)`: uncorrelated, of zero mean and unit variance."""
    mixing: np.ndarray
    """`A`, `(K, k)`: a column is what one standard deviation of a component does to the latents;
    its largest entry is positive."""
    unmixing: np.ndarray
    """`(k, K)`: its pseudo-inverse."""
    mean: np.ndarray
    """`m`, `(K,)`."""
    explained: np.ndarray
    """Share of the variance in each principal component, `(K,)`; the first `k` are kept."""
    negentropy: np.ndarray
    """Of each component, `(k,)` (:func:`~pyrocryo.identify.negentropy.negentropy`)."""
    negentropy_se: np.ndarray
    """Standard errors, over 20 groups of particles."""
    pca_negentropy: np.ndarray
    """Of the principal components kept, `(k,)`, by falling variance."""
    pca_negentropy_se: np.ndarray
    """Standard errors."""
    gaussian_p: np.ndarray
    """That a component is Gaussian, `(k,)`: fitted on one half of the particles and tested on the
    other, both ways, twice the smaller one."""
    stability: np.ndarray
    """|Correlation| of each component's matches in two halves of the particles, `(k,)`, a mean
    over three pairs of halves. Of two components turned at random it is .90 on average."""
    dependence: np.ndarray
    """Rank correlation of squares, `(k, k)`."""
    subspaces: tuple[tuple[int, ...], ...]
    """Components that depend on each other, together."""
    gaussian: tuple[int, ...]
    """Components that are Gaussian within error; two or more are known up to a rotation."""
    separated: tuple[bool, ...]
    """Which components are told apart from all others."""
    method: str
    """How."""
    sentence: str
    """What it comes to."""

    def transform(self, latents: np.ndarray) -> np.ndarray:
        """Sources `(N, k)` of other latents `(N, K)`."""
        z = np.asarray(latents, dtype=np.float64)
        if z.ndim != 2 or z.shape[1] != len(self.mean):
            raise InputError(f"latents: expected (N, {len(self.mean)}), got {z.shape}")
        return (z - self.mean) @ self.unmixing.T

    def bins(
        self, component: int, *, count: int = 10, edges: tuple[float, float] | None = None
    ) -> list[np.ndarray]:
        """Rows of the particles in each bin along a component, from its first bin to its last.

        ``first, *_, last = ica.bins(0)`` are those whose maps show the motion of a component
        (Gao et al. 2020, Fig. 2 F and G of Klindt et al. 2024).

        Args:
            component: Which, from 0.
            count: How many bins.
            edges: Values of the source between which bins are equally wide, with what lies beyond
                in the first and the last; by default bins hold equally many particles.
        """
        s = self._source(component)
        if not 2 <= count <= len(s):
            raise InputError(f"count: expected 2 to {len(s)} bins, got {count}")
        if edges is None:
            return [np.sort(rows) for rows in np.array_split(np.argsort(s, kind="stable"), count)]
        if not (len(edges) == 2 and np.isfinite(edges).all() and edges[0] < edges[1]):
            raise InputError(f"edges: expected two rising numbers, got {edges}")
        which = np.digitize(s, np.linspace(*edges, count + 1)[1:-1])
        return [np.flatnonzero(which == n) for n in range(count)]

    def path(
        self, component: int, *, count: int = 10, edges: tuple[float, float] | None = None
    ) -> np.ndarray:
        """Conformations `(count, K)`: a component at its mean in each bin, the others at theirs.

        Args:
            component: Which, from 0.
            count: As for :meth:`bins`.
            edges: As for :meth:`bins`.
        """
        s = self._source(component)
        rows = self.bins(component, count=count, edges=edges)
        if empty := [n + 1 for n, inside in enumerate(rows) if not len(inside)]:
            raise InputError(f"edges: no particle is in bin {empty[0]} of {count}")
        at = np.array([s[inside].mean() for inside in rows])
        return self.mean + at[:, None] * self.mixing[:, component]

    def _source(self, component: int) -> np.ndarray:
        k = self.sources.shape[1]
        if not 0 <= component < k:
            raise InputError(f"component: expected 0 to {k - 1}, got {component}")
        return self.sources[:, component]


def linear_ica(
    latents: np.ndarray,
    *,
    components: int | float | None = None,
    method: str = "fastica",
    subspaces: int | None = None,
    frames: int = 1,
    seed: int = 0,
) -> LinearICA:
    r"""Linear ICA of any latents: posterior means, rigid-body parameters, cryoDRGN's `z`.

    Principal components of the latents in the units they come in are whitened and turned by
    FastICA (Hyvärinen & Oja 2000; Gao et al. 2020), from several random starts with each of two
    contrasts, logcosh and cube; kept is the rotation whose components have the largest sum of
    negentropies, and so the least mutual information.

    A linear mixture of independent components can be undone if at most one of them is Gaussian
    (Comon 1994), up to order, sign and scale. So each component is tested on particles that it was
    not fitted to: where two or more pass for Gaussian, the result says that they cannot be told
    apart. That the mixture is linear is assumed, not tested; dependent squares are a sign that it
    is not, or that components belong together.

    Args:
        latents: `(N, K)`, rows independent but for ``frames``. Numbers in several units, such as
            Å and rad, should be scaled to be comparable before.
        components: How many principal components to keep, or the share of the variance (below 1)
            that they are to hold; by default all, as a motion may be small. Noise that is kept
            is Gaussian and comes out last.
        method: "fastica", or "pca" to leave the principal components unturned.
        subspaces: How many groups to put dependent components into; by default as they come.
        frames: Consecutive rows that belong to one molecule.
        seed: Draws starts and halves.

    Raises:
        InputError: If latents are not finite, too few, or do not vary, or an option is out of
            range.
    """
    z = _checked(latents, frames)
    if method not in ("fastica", "pca"):
        raise InputError(f"method: expected 'fastica' or 'pca', got {method!r}")
    mean = z.mean(axis=0)
    white, back, explained = _whitened(z - mean, components)
    k = white.shape[1]
    rng = np.random.default_rng(seed)
    turn, contrast = np.eye(k), CONTRASTS[0]
    if method == "fastica" and k > 1:
        turn, contrast = _best(white, CONTRASTS, STARTS, rng)
    sources, mixing = white @ turn.T, back @ turn.T
    j, se = negentropy(sources, frames=frames, seed=seed)
    if method == "fastica":
        order = np.argsort(-j, kind="stable")
        sources, mixing, j, se = sources[:, order], mixing[:, order], j[order], se[order]
    sign = np.sign(mixing[np.abs(mixing).argmax(axis=0), np.arange(k)])
    sources, mixing = sources * sign, mixing * sign
    p, stability = _halved(white, sources, method, contrast, rng, frames, seed)
    links = dependence(sources)
    groups = grouped(links, len(z) // frames, subspaces)
    gaussian = tuple(np.flatnonzero(p > ALPHA / k).tolist())
    apart, told = reading(explained[:k].sum(), gaussian, stability, groups, method)
    before, before_se = negentropy(white, frames=frames, seed=seed)
    return LinearICA(
        sources, mixing, np.linalg.pinv(mixing), mean, explained, j, se, before, before_se, p,
        stability, links, groups, gaussian, apart, method, told,
    )  # fmt: skip


def _checked(latents: np.ndarray, frames: int) -> np.ndarray:
    z = np.asarray(latents)
    if z.ndim != 2 or not z.shape[1] or z.dtype.kind not in "iuf":
        raise InputError(f"latents: expected numbers (N, K), got {z.dtype} {z.shape}")
    z = z.astype(np.float64)
    if frames < 1 or len(z) % frames:
        raise InputError(f"frames: {len(z)} rows cannot be molecules of {frames} frames each")
    bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
    if bad.size:
        raise InputError(f"latents: expected finite numbers, got {z[bad[0]]} in row {bad[0]}")
    least = max(LEAST, 10 * z.shape[1])
    if len(z) // frames < least:
        raise InputError(
            f"latents: expected {least} particles or more for {z.shape[1]} columns, got "
            f"{len(z) // frames}"
        )
    still = np.flatnonzero(np.ptp(z, axis=0) <= 1e-10 * np.abs(z).max(axis=0))
    if still.size:
        raise InputError(f"latents: expected columns that vary, got {still.tolist()} constant")
    return z


def _whitened(
    z: np.ndarray, components: int | float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whitened principal components `(N, k)`, the way back `(K, k)`, and all shares `(K,)`."""
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    share = values / values.sum()
    rank = int((values > 1e-12 * values[0]).sum())
    if components is None:
        k = rank
    elif isinstance(components, float) and 0 < components < 1:
        k = min(int(np.searchsorted(share.cumsum(), components)) + 1, rank)
    elif isinstance(components, int | np.integer) and not isinstance(components, bool):
        if not 1 <= components <= rank:
            raise InputError(
                f"components: expected 1 to {rank}, as many as vary independently, got "
                f"{components}"
            )
        k = int(components)
    else:
        raise InputError(
            f"components: expected a count or a share between 0 and 1, got {components!r}"
        )
    root = np.sqrt(values[:k])
    return z @ vectors[:, :k] / root, vectors[:, :k] * root, share


def _best(
    white: np.ndarray, contrasts: Sequence[str], starts: int, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """The rotation of all starts with the largest sum of negentropies, and its contrast."""
    few = white[:: max(1, -(-len(white) // MOST))]
    found = []
    for contrast in contrasts:
        for _ in range(starts):
            turn = _turned(few, contrast, _random(white.shape[1], rng))
            found.append((negentropy(few @ turn.T)[0].sum(), turn, contrast))
    _, turn, contrast = max(found, key=lambda one: one[0])
    return (turn if len(few) == len(white) else _turned(white, contrast, turn)), contrast


def _turned(white: np.ndarray, contrast: str, start: np.ndarray) -> np.ndarray:
    """The rotation `(k, k)` that FastICA ends in."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    one = FastICA(whiten=False, fun=contrast, w_init=start, max_iter=LIMIT, tol=1e-5)
    with warnings.catch_warnings():
        # of Gaussians it never converges; what comes of that is measured
        warnings.simplefilter("ignore", ConvergenceWarning)
        one.fit(white)
    return one.components_


def _halved(
    white: np.ndarray,
    sources: np.ndarray,
    method: str,
    contrast: str,
    rng: np.random.Generator,
    frames: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether components are Gaussian, on particles not fitted to, and how well halves agree."""
    k = white.shape[1]
    p, alike = [], []
    for split in range(SPLITS):
        parts = halves(len(white), frames, seed + split)
        both = []
        for fitted, other in (parts, parts[::-1]):
            near = _whitened(white[fitted] - white[fitted].mean(axis=0), k)
            there, turn = near[0], np.eye(k)
            if method == "fastica" and k > 1:
                turn, _ = _best(there, [contrast], HALF_STARTS, rng)
            found = white @ np.linalg.pinv(near[1] @ turn.T).T
            both.append(_standard(found[:, _match(sources, found)]))
            if split == 0:
                p.append(gaussian_p(both[-1][other], len(other) // frames))
        alike.append(np.abs((both[0] * both[1]).mean(axis=0)))
    return np.minimum(1.0, 2 * np.min(p, axis=0)), np.mean(alike, axis=0)


def _match(sources: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Which of those found is the match of each source."""
    _, rows, columns = matched(sources, found)
    return columns[np.argsort(rows)]


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=0)) / x.std(axis=0)


def _random(k: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((k, k)))[0]
