"""What can be said of the latents that another program gave to particles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyrocryo.diagnose.dependence import ALPHA, Dependence
from pyrocryo.diagnose.dimensions import Dimensions, dimensions
from pyrocryo.diagnose.leak import PoseLeak, against, leak
from pyrocryo.diagnose.reencoded import Reencoded
from pyrocryo.errors import InputError
from pyrocryo.identify import Consistency, LinearICA, consistency, linear_ica
from pyrocryo.metrics.r2 import halves, held_out

__all__ = ["Audit", "Audited", "audit"]

MOST_ICA = 10_000  # particles, which are plenty for its tests and take seconds
MOST_COMPARED = 10_000
CAUSES = (
    "A z that depends on the pose is an encoder that reads the pose for a conformation, or poses "
    "that follow the conformation (one that prefers an orientation, a consensus alignment that "
    "turns with a domain, poses that are wrong from some sides): these numbers cannot tell which. "
    "Turning images by 90°, with pose, shift and astigmatism, and encoding them again can, for "
    "turns in the plane"
)
NOT_TURNED = (
    "it needs the program's encoder, its weights and the images (of run "
    "folders of cryoDRGN's: --rotate)"
)


@dataclass
class Audited:
    """One run.

    Attributes:
        name: What it is called.
        z: `(N, K)`.
        sd: `(N, K)`, or None.
        rotation: `(N, 3, 3)`, or None.
        dims: Active latents, and widths.
        leak: What the pose explains; None without poses.
        ica: Linear ICA of the latents that vary, or None.
        others: What columns explain.
        turned: What became of z when images were turned and encoded again, or None.
        skipped: What was not done, and why.
    """

    name: str
    z: np.ndarray
    sd: np.ndarray | None
    rotation: np.ndarray | None
    dims: Dimensions | None = None
    leak: PoseLeak | None = None
    ica: LinearICA | None = None
    others: list[Dependence] = field(default_factory=list)
    turned: Reencoded | None = None
    skipped: list[str] = field(default_factory=list)

    def sure(self, other: Dependence) -> bool:
        """Whether a column counts: of several one or the other would pass by chance."""
        return len(self.others) * other.p <= ALPHA

    def chance(self, other: Dependence) -> str:
        """What is to be said of a column that passes by itself alone."""
        if other.p > ALPHA or self.sure(other):
            return ""
        return f"; by chance, one of {len(self.others)} columns may well reach this p"

    def causes(self) -> str:
        """What a dependence on the pose may come from, and what is known of that."""
        if self.turned is None:
            return f"{CAUSES}; it was not done here: {NOT_TURNED}."
        if self.leak is None or self.leak.verdict == "none seen":
            return f"{CAUSES}."
        if self.turned.verdict == "reads the pose":
            return f"{CAUSES}: here it is the encoder, at least in part."
        if self.turned.verdict == "by heart":
            return (
                f"{CAUSES}. Here the encoder knows its images by heart, so that z is what the "
                "decoder needs to explain each image in the pose it is given: look at the poses."
            )
        return f"{CAUSES}. Here z does not go with turns: look at the poses."


@dataclass
class Audit:
    """All runs, and their agreement (None for one run alone)."""

    runs: list[Audited]
    agreement: Consistency | None = None
    skipped: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What it comes to, a sentence a line."""
        told = []
        for run in self.runs:
            of = f"{run.name}: " if len(self.runs) > 1 else ""
            if run.leak is not None:
                told.append(f"{of}pose: {run.leak.sentence}.")
            if run.turned is not None:
                told.append(f"{of}turned: {run.turned.sentence}.")
            if run.dims is not None:
                told.append(f"{of}dimensions: {run.dims.sentence}.")
            if run.ica is not None:
                some = _told_some(len(run.ica.sources), len(run.z))
                told.append(f"{of}axes: {run.ica.sentence}{some}")
            for other in run.others:
                told.append(f"{of}{other.what}: {other.sentence}{run.chance(other)}.")
            told += [f"{of}not done: {text}." for text in run.skipped]
        if self.agreement is not None:
            told.append(f"runs: {self.agreement.sentence}.")
        return told + [f"not done: {text}." for text in self.skipped]

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON; particles' own are left out."""
        from pyrocryo.identify import plain

        def numbers(run: Audited) -> dict[str, Any]:
            ica = None if run.ica is None else plain(replace(run.ica, sources=None))
            return {
                "name": run.name, "particles": len(run.z), "latents": run.z.shape[1],
                "pose": plain(run.leak), "turned": plain(run.turned),
                "dimensions": plain(run.dims), "ica": ica,
                "others": plain(run.others), "not_done": run.skipped,
            }  # fmt: skip

        return {
            "sentences": self.lines(),
            "runs": [numbers(run) for run in self.runs],
            "agreement": plain(self.agreement),
            "not_done": self.skipped,
            "caution": f"{CAUSES}.",
        }


def audit(
    latents: Mapping[str, np.ndarray],
    *,
    sds: Mapping[str, np.ndarray] | None = None,
    rotations: Mapping[str, np.ndarray] | None = None,
    columns: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    images: Mapping[str, np.ndarray] | None = None,
    turned: Mapping[str, Reencoded] | None = None,
    skipped: Mapping[str, Sequence[str]] | None = None,
    permutations: int = 499,
    most: int = 20_000,
    seed: int = 0,
) -> Audit:
    """Audits latents of one or several runs; what cannot be done is said in ``skipped``.

    Example::

        audit({"mine": z}, rotations={"mine": rotation}).lines()

    Args:
        latents: Name → `(N, K)` posterior means.
        sds: Name → `(N, K)` posterior standard deviations.
        rotations: Name → `(N, 3, 3)` poses.
        columns: Name → column → `(N,)` or `(N, F)`: what else `z` is tested against.
        images: Name → `(N,)` numbers, the same for rows that are copies of one particle (symmetry
            expansion). Copies are not independent: one of each is tested.
        turned: Name → what turning images and encoding them again has shown.
        skipped: Name → what is known already not to be possible.
        permutations: Behind each p-value.
        most: Particles compared in each test.
        seed: Draws permutations, particles, halves and starts.

    Raises:
        InputError: If there are no latents, or any hold NaN or are not `(N, K)`.
    """
    if not latents:
        raise InputError("latents: expected one run or more, got none")
    options = {"permutations": permutations, "most": most, "seed": seed}
    runs = []
    for name, z in latents.items():
        z = _checked(name, z)
        run = Audited(name, z, (sds or {}).get(name), (rotations or {}).get(name))
        run.turned = (turned or {}).get(name)
        run.skipped += (skipped or {}).get(name, ())
        runs.append(run)
        run.dims = _tried(run, "dimensions", dimensions, z, run.sd)
        rows = _one_each(run, (images or {}).get(name), seed)
        if run.rotation is None:
            run.skipped.append("pose: no poses are known")
        else:
            some = _part(run.rotation, rows, len(z))
            run.leak = _tried(run, "pose", leak, z[rows], some, **options)
        for what, values in (columns or {}).get(name, {}).items():
            some = _part(values, rows, len(z))
            other = _tried(run, what, against, z[rows], some, what=what, **options)
            run.others += [] if other is None else [other]
        run.ica = _tried(run, "axes", _ica, run, rows, seed)
    found = Audit(runs)
    if len(runs) < 2:
        found.skipped.append("agreement of runs: there is one run alone")
    else:
        try:
            found.agreement = _agreement(runs, seed)
        except InputError as error:
            found.skipped.append(f"agreement of runs: {error}")
    if turned is None:  # else each run says why not
        found.skipped.append(f"rotation of images by 90°: {NOT_TURNED}")
    return found


def _checked(name: str, z: np.ndarray) -> np.ndarray:
    z = np.asarray(z)
    if z.ndim != 2 or not z.size or z.dtype.kind not in "iuf":
        raise InputError(f"{name}: expected latents (N, K), got {z.dtype} {z.shape}")
    z = z.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
    if bad.size:
        raise InputError(
            f"{name}: z is not finite for {bad.size} of {len(z)} particles, the first in row "
            f"{bad[0] + 1}"
        )
    return z


def _tried(run: Audited, part: str, call: Any, *args: Any, **options: Any) -> Any:
    """One part; where it cannot be done the others still are."""
    try:
        return call(*args, **options)
    except InputError as error:
        run.skipped.append(f"{part}: {error}")
        return None


def _one_each(run: Audited, images: np.ndarray | None, seed: int) -> np.ndarray:
    """One row of each particle; what is left out is noted."""
    n = len(run.z)
    if images is None:
        return np.arange(n)
    order = np.random.default_rng(seed).permutation(n)
    rows = np.sort(order[np.unique(images[order], return_index=True)[1]])
    if len(rows) < n:
        run.skipped.append(
            f"tests of {n - len(rows)} rows that show an image again (symmetry expansion?): one "
            "row of each image was compared, as copies are not independent"
        )
    return rows


def _part(values: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Those of the rows; what is of another length is left for the tests to refuse."""
    values = np.asarray(values)
    return values[rows] if len(values) == n else values


def _ica(run: Audited, rows: np.ndarray, seed: int) -> LinearICA:
    active = np.arange(run.z.shape[1]) if run.dims is None else np.flatnonzero(run.dims.active)
    if not len(active):
        raise InputError("no latent varies")
    rows = rows[_some(len(rows), MOST_ICA, seed)]
    return linear_ica(run.z[np.ix_(rows, active)], seed=seed)


def _agreement(runs: Sequence[Audited], seed: int) -> Consistency:
    if len({len(run.z) for run in runs}) > 1:
        told = ", ".join(f"{run.name} {len(run.z)}" for run in runs)
        raise InputError(f"the runs are of different numbers of particles ({told})")
    active = [
        np.arange(run.z.shape[1]) if run.dims is None else np.flatnonzero(run.dims.active)
        for run in runs
    ]
    if not all(map(len, active)):
        raise InputError("in one of them no latent varies")
    rows = _some(len(runs[0].z), MOST_COMPARED, seed)
    latents = [run.z[np.ix_(rows, which)] for run, which in zip(runs, active, strict=True)]
    if len({z.shape[1] for z in latents}) > 1:  # a dead one agrees with nothing
        least = min(range(len(runs)), key=lambda n: latents[n].shape[1])
        parts = halves(len(rows), 1, seed)
        others = [z for n, z in enumerate(latents) if n != least]
        share = max(0.0, min(held_out(latents[least], z, parts, "linear") for z in others))
        told = ", ".join(f"{run.name} {len(w)}" for run, w in zip(runs, active, strict=True))
        raise InputError(
            f"the runs have different numbers of latents that vary ({told}); a linear map of "
            f"another's explains {100 * share:.0f} % of those of {runs[least].name}, or more"
        )
    found = consistency(latents, seed=seed)
    some = _told_some(len(rows), len(runs[0].z))
    return replace(found, sentence=found.sentence.replace("seed", "run") + some)


def _told_some(compared: int, n: int) -> str:
    """Where not all particles were looked at."""
    return f" ({compared} of {n} particles, drawn at random)" if compared < n else ""


def _some(n: int, most: int, seed: int) -> np.ndarray:
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
