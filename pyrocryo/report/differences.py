"""Runs against one another, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pyrocryo.metrics.ranks import LOWER, PairedDifference, paired_differences, rank_groups

__all__ = ["DISENTANGLEMENT", "aligned", "differences", "told"]

LEVEL = 0.05
FEWEST = 2  # seeds
# what says whether latents are the factors; more is better
DISENTANGLEMENT = {
    "betavae": "BetaVAE",
    "factorvae": "FactorVAE",
    "mig": "MIG",
    "dci_disentanglement": "DCI-D",
    "dci_completeness": "DCI-C",
    "modularity": "Modularity",
    "explicitness": "Explicitness (blind to rotations)",
    "sap": "SAP",
    "irs": "IRS",
    "mcc_pearson": "MCC",
    "mcc_spearman": "MCC ranks",
}
OTHERS = {
    "elbo": "ELBO",
    "r2_linear": "R² linear",
    "r2_knn": "R² kNN",
    "angle_deg": "angle left °",
    "map_correlation": "map r",
    "pose_error_deg": "pose error °",
    "pose_error_frame_deg": "after α(z) °",
    "pose_within_10_deg": "within 10°",
    "pose_leak": "pose leak",
    "shift_error_angstroms": "shift error Å",
}
ON_THE_SAME_DATA = ("elbo",)


def differences(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every run against the first, paired by seed, and the ranks of all.

    Args:
        runs: Name → what :func:`pyrocryo.report.page.read_run` reads.

    Returns:
        ``seeds`` (those that all runs have), ``same_data``, ``against`` (run → metric →
        :class:`pyrocryo.metrics.ranks.PairedDifference` as a dictionary), ``favour`` (run → how
        many metrics of disentanglement favour it over the first, how many the first, and how many
        of each significantly, uncorrected) and, where the seeds are enough for runs to differ,
        ``mean_rank`` over these metrics. Only ``seeds`` where fewer than two are shared.
    """
    names = list(runs)
    shared = sorted(set.intersection(*(set(run["config"]["seeds"]) for run in runs.values())))
    if len(names) < 2 or len(shared) < FEWEST:
        return {"seeds": shared}
    hashes = {run["config"].get("data", {}).get("sha256") for run in runs.values()}
    same = len(hashes) == 1 and None not in hashes
    values = {name: _values(run, shared) for name, run in runs.items()}
    first, favour, against = names[0], {}, {}
    for name in names[1:]:
        rows = {}
        for metric in (*DISENTANGLEMENT, *OTHERS):
            pair = values[name].get(metric), values[first].get(metric)
            skipped = metric in ON_THE_SAME_DATA and not same
            if skipped or any(v is None for v in pair):
                continue
            if np.isfinite(pair[0] - pair[1]).sum() >= FEWEST:
                rows[metric] = paired_differences(*pair)
        against[name] = {metric: asdict(row) for metric, row in rows.items()}
        favour[name] = _favour({m: row for m, row in rows.items() if m in DISENTANGLEMENT})
    found = {"seeds": shared, "same_data": same, "against": against, "favour": favour}
    common = [m for m in DISENTANGLEMENT if all(_scored(of.get(m)) for of in values.values())]
    if common and _least_p(len(shared), math.comb(len(names), 2)) < LEVEL:
        scored = {name: {m: of[m] for m in common} for name, of in values.items()}
        found["mean_rank"] = rank_groups(scored).mean_rank
    return found


def _scored(values: np.ndarray | None) -> bool:
    return values is not None and bool(np.isfinite(values).all())


def _least_p(seeds: int, comparisons: int = 1) -> float:
    """The smallest p of Wilcoxon's signed-rank test, corrected for so many comparisons."""
    return comparisons * 2.0 ** (1 - seeds)


def _values(run: Mapping[str, Any], seeds: list[int]) -> dict[str, np.ndarray]:
    """Metric → values of these seeds; null is NaN."""
    where = [run["config"]["seeds"].index(seed) for seed in seeds]
    every = len(run["config"]["seeds"])
    return {
        name: np.array(row["per_seed"], dtype=np.float64)[where]
        for name, row in run["metrics"].items()
        if len(row.get("per_seed", ())) == every
    }


def _favour(rows: Mapping[str, PairedDifference]) -> dict[str, int]:
    sure = [row for row in rows.values() if row.p < LEVEL]
    return {
        "metrics": len(rows),
        "more": sum(row.mean > 0 for row in rows.values()),
        "less": sum(row.mean < 0 for row in rows.values()),
        "significantly_more": sum(row.mean > 0 for row in sure),
        "significantly_less": sum(row.mean < 0 for row in sure),
    }


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, columns below one another."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def told(found: Mapping[str, Any], first: str) -> list[str]:
    """:func:`differences` as lines of text."""
    seeds = found["seeds"]
    if "against" not in found:
        return [f"no differences: the runs share {len(seeds)} seeds, and pairs need two"]
    lines = []
    for name, rows in found["against"].items():
        few = "; too few for p < .05" if _least_p(len(seeds)) >= LEVEL else ""
        lines += [f"{name} - {first}, seed by seed ({len(seeds)} seeds{few})"]
        cells = [["metric", "mean", "95 % interval", "higher : lower", "p (uncorrected)", ""]]
        for metric, row in rows.items():
            label = DISENTANGLEMENT.get(metric) or OTHERS[metric]
            low, high = row["interval"]
            better = row["mean"] < 0 if metric in LOWER else row["mean"] > 0
            cells.append(
                [
                    label,
                    f"{row['mean']:+.3f}",
                    f"{low:+.3f} to {high:+.3f}",
                    f"{row['wins_a']} : {row['wins_b']}",
                    f"{row['p']:.2g}",
                    ("better" if better else "worse") if row["p"] < LEVEL else "",
                ]
            )
        lines += [f"  {line}" for line in aligned(cells)]
        count = found["favour"][name]
        if count["metrics"]:
            lines.append(
                f"  {count['more']} of {count['metrics']} metrics of disentanglement favour "
                f"{name} ({count['significantly_more']} at p < {LEVEL:g}), "
                f"{count['less']} favour {first} ({count['significantly_less']})"
            )
        lines.append("")
    if "mean_rank" in found:
        ranks = sorted(found["mean_rank"].items(), key=lambda item: item[1])
        lines.append(
            "mean rank over these metrics (1 = best; runs that do not differ share a rank): "
            + ", ".join(f"{name} {rank:.1f}" for name, rank in ranks)
        )
    if not found["same_data"]:
        lines.append("the runs saw different particles: seeds are paired by number alone")
    return lines
