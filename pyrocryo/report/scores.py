"""The table of metrics, each beside its floors."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from pyrocryo.plots import UNIT
from pyrocryo.report import drawn

__all__ = ["scores"]

MEANING = {
    "elbo": "evidence lower bound, nats a particle",
    "image_correlation": "correlation of images with what is decoded for them",
    "map_correlation": "the same with one map, at the median of z, projected at their poses",
    "mcc_pearson": "mean correlation of matched axes; 1 = each axis is one motion",
    "mcc_spearman": "the same for ranks: blind to monotone warps",
    "r2_linear": "what a linear map of z tells of the motions; blind to rotations",
    "r2_cubic": "what cubic polynomials of z tell of them; blind to rotations and mild warps",
    "r2_knn": "what any smooth map of z tells of them",
    "mig": "mutual information gap: how far the best latent of a motion is ahead of the next",
    "modularity": "each latent knows of one motion only; hardly sees small rotations",
    "dci_disentanglement": "each latent matters to one motion only, by boosted trees",
    "dci_completeness": "each motion is read from one latent only",
    "dci_informativeness": "R² of the same trees",
    "explicitness": "how well classes of a motion can be told from z; blind to rotations",
    "sap": "gap in R² between the best latent of a motion and the next",
    "irs": "how little a latent moves when the other motions do; its floor is not 0",
    "betavae": "which motion was held in pairs of images, told from z; 1 at 22.5° still",
    "factorvae": "the same by the latent that varies least",
    "angle_deg": "degrees by which the axes are turned; 0 = none",
    "pose_leak": "share of the variance of z that the pose explains; 0 = none, as it should be",
    "pose_error_deg": "median error of the poses after one global gauge",
    "pose_error_frame_deg": "the same after a frame that may turn with the conformation",
    "pose_within_10_deg": "share of images within 10° then",
    "pose_flips": "share of images more than 90° off after the global gauge",
}


def scores(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """``metrics.json`` as a table that can be sorted, with a picture of each row."""
    header = (
        "<thead><tr><th>metric<th>mean<th>sd over seeds<th>floor<th>random rotation"
        "<th class=nosort>0 to 1<th class=nosort>what it is</tr></thead>"
    )
    rows = [
        f"<tr><td><b>{html.escape(name)}</b>{_cell(row['mean'])}{_cell(row['sd'])}"
        f"{_cell(row['floor'])}{_cell(row.get('rotation_floor'))}"
        f"<td>{drawn.bar(row) if name.startswith(UNIT) else ''}"
        f"<td class=small>{MEANING.get(name, '')}</tr>"
        for name, row in metrics.items()
    ]
    key = (
        "<p class=small>Dots are seeds and the line their mean; grey ticks what permuted latents "
        "score, red ones perfect latents turned at random.</p>"
    )
    return (
        f"<div class=wide><table class=sortable>{header}<tbody>{''.join(rows)}</tbody></table>"
        f"</div>{key}"
    )


def _cell(value: float | None) -> str:
    if value is None:
        return '<td class=number data-value="">–'
    return f'<td class=number data-value="{value:.6g}">{_number(value)}'


def _number(value: float) -> str:
    return (f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}").replace("-", "−")
