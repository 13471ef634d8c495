"""One table over several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrocryo.errors import InputError
from pyrocryo.files import understood
from pyrocryo.report.differences import aligned, differences, told
from pyrocryo.report.page import read_run
from pyrocryo.report.verdicts import DIFFERENT

__all__ = ["compare"]

COLUMNS = {
    "elbo": "ELBO",
    "image_correlation": "images r",
    "map_correlation": "map r",
    "r2_linear": "R² linear",
    "r2_knn": "R² kNN",
    "mcc_pearson": "MCC",
    "angle_deg": "angle left °",
    "pose_error_deg": "pose error °",
    "pose_error_frame_deg": "after α(z) °",
}
ONE_DIGIT = ("elbo", "angle_deg", "pose_error_deg", "pose_error_frame_deg")


def compare(folders: Sequence[str | Path], *, out: str | Path | None = None) -> str:
    """A table of runs: metrics as mean ± sd over seeds, their floors, agreement between seeds.

    Several runs are also compared with the first, seed by seed, on every metric of
    disentanglement (:mod:`pyrocryo.report.differences`).

    Args:
        folders: Run folders.
        out: A JSON file for the numbers behind the differences.

    Returns:
        Plain text, one line a run and two for the floors. Floors are means over the runs:
        "permuted" for latents whose columns are shuffled, "rotated" for perfect latents after a
        random rotation. Then the differences, where there are several runs with shared seeds.
    """
    names = [Path(folder).name for folder in folders]
    if not names:
        raise InputError("run folders: name at least one")
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len({Path(folder).resolve() for folder in folders}) < len(names):
        raise InputError(f"run folders: {', '.join(names)} names one of them twice")
    runs = [read_run(folder) for folder in folders]
    with understood(", ".join(map(str, folders))):
        found = differences(dict(zip(names, runs, strict=True)))
        text = _table(names, runs)
        if len(runs) > 1:
            text = "\n".join([text, "", *told(found, names[0])])
    if out is not None:
        from pyrocryo import io  # with torch and all, which a table does without

        io.write_json(Path(out), found)
    return text


def _table(names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> str:
    shown = [key for key in COLUMNS if any(key in run["metrics"] for run in runs)]
    lines = [["run", "seeds", *(COLUMNS[key] for key in shown), "seeds agree on the axes"]]
    for name, run in zip(names, runs, strict=True):
        seeds = run["identify"]["seeds"]
        agree = "cannot tell" if seeds is None else _agreement(seeds)
        cells = [_cell(run["metrics"].get(key), key) for key in shown]
        lines.append([name, str(len(run["config"]["seeds"])), *cells, agree])
    for label, entry in (("floor: permuted", "floor"), ("floor: rotated", "rotation_floor")):
        cells = [_mean_cell([run["metrics"].get(key, {}) for run in runs], entry, key)
                 for key in shown]  # fmt: skip
        if any(cells):
            lines.append([label, "", *cells, ""])
    text = aligned(lines)
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)


def _agreement(seeds: dict[str, Any]) -> str:
    word = "yes" if seeds["agree"] else "no"
    if seeds["sentence"].startswith(DIFFERENT):  # of which no turn makes one the other
        return f"{word} (correlation {seeds['permutation']:.3f}, found different things)"
    return (
        f"{word} (correlation {seeds['permutation']:.3f}, turned ≤ {seeds['worst_turn_deg']:.0f}°)"
    )


def _cell(row: dict[str, Any] | None, key: str) -> str:
    if row is None or row["mean"] is None:
        return "–"
    digits = 1 if key in ONE_DIGIT else 3
    return f"{row['mean']:.{digits}f} ± {row['sd']:.{digits}f}"


def _mean_cell(rows: list[dict[str, Any]], entry: str, key: str) -> str:
    values = [row[entry] for row in rows if row.get(entry) is not None]
    if not values:
        return ""
    return f"{sum(values) / len(values):.{1 if key in ONE_DIGIT else 3}f}"
