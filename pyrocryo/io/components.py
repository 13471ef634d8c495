"""Independent components of a fit as maps one can look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import replacing
from pyrocryo.identify import LinearICA
from pyrocryo.io.motion import checked_pair, checked_structure, write_along
from pyrocryo.io.run_folder import write_json
from pyrocryo.io.structure import Structure
from pyrocryo.pair import Pair
from pyrocryo.svi import Fit

__all__ = ["summary", "write_components"]

LISTED = (
    "explained", "negentropy", "negentropy_se", "pca_negentropy", "pca_negentropy_se",
    "gaussian_p", "stability", "dependence", "mixing", "mean",
)  # fmt: skip


def write_components(
    out: str | Path,
    fit: Fit | Pair | None,
    ica: LinearICA,
    *,
    count: int = 10,
    edges: tuple[float, float] | None = None,
    seed: int | None = None,
    pixel_size: float | None = None,
    structure: Structure | None = None,
    rows: np.ndarray | None = None,
) -> list[Path]:
    r"""Writes what each component does: maps from its first bin to its last, and who is in those.

    For component `k` (from 1): ``ic{k}_01_first.mrc``, ``ic{k}_02.mrc``, ... and
    ``ic{k}_10_last.mrc``, the decoded :meth:`~pyrocryo.identify.LinearICA.path` (as Fig. 2 F, G
    of Klindt et al. 2024 after Gao et al. 2020), with ``ic{k}.pdb`` where the volume has atoms and
    ``ic{k}.cxc``, a script for ChimeraX (:func:`~pyrocryo.io.write_motion`); in the plane the
    first and last, and the path as one stack ``ic{k}.mrcs``. ``ic{k}_first.txt`` and
    ``ic{k}_last.txt`` list the particles in the outer bins, to reconstruct maps from;
    ``ica.json`` holds the numbers and the sentence, ``sources.npy`` the components.

    Args:
        out: The folder; files of these names are replaced.
        fit: What decodes latents; None to write no maps.
        ica: Of its latents, ``pair.dim`` of them.
        count: How many bins.
        edges: As for :meth:`LinearICA.bins <pyrocryo.identify.LinearICA.bins>`.
        seed: Which seed of a fit of several the latents are of.
        pixel_size: Å per pixel of the images; needed with a pair alone.
        structure: Names of the volume's atoms; by default Cα of alanines.
        rows: `(N,)`, what to list the particles by; by default their rows in the latents, from 0.

    Returns:
        Files of maps, structures and scripts.

    Raises:
        InputError: If the latents are not those of the pair, or it is not clear which pair.
    """
    out = Path(out)
    k = ica.sources.shape[1]
    pair = None
    if fit is not None:
        pair, pixel_size = checked_pair(fit, seed, pixel_size)
        if len(ica.mean) != pair.dim:
            raise InputError(
                f"ica: expected one of the {pair.dim} latents of the pair, got one of "
                f"{len(ica.mean)} numbers a particle"
            )
        checked_structure(pair, structure)
    paths = [ica.path(n, count=count, edges=edges) for n in range(k)]
    inner = [ica.bins(n, count=count, edges=edges) for n in range(k)]
    rows = np.arange(len(ica.sources)) if rows is None else np.asarray(rows)
    if rows.shape != (len(ica.sources),):
        raise InputError(f"rows: expected ({len(ica.sources)},), got {rows.shape}")
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for n, (path, inside) in enumerate(zip(paths, inner, strict=True), start=1):
        for name, which in (("first", inside[0]), ("last", inside[-1])):
            with replacing(out / f"ic{n}_{name}.txt") as temporary:
                np.savetxt(temporary, rows[which], fmt="%d" if rows.dtype.kind in "iu" else "%s")
        if pair is not None:
            written += write_along(out, f"ic{n}", pair, path, pixel_size, structure)
    with replacing(out / "sources.npy") as temporary:
        np.save(temporary, ica.sources)
    write_json(out / "ica.json", summary(ica) | {"path": [path.tolist() for path in paths]})
    return written


def summary(ica: LinearICA) -> dict:
    """A linear ICA as JSON has it, without the components themselves."""
    told = {"sentence": ica.sentence, "method": ica.method, "separated": list(ica.separated)}
    told |= {"gaussian": list(ica.gaussian), "subspaces": [list(group) for group in ica.subspaces]}
    return told | {name: getattr(ica, name).tolist() for name in LISTED}
