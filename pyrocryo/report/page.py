"""``report.html``: one self-contained page made from the files of a run folder."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyrocryo.errors import InputError
from pyrocryo.files import read_json, replacing, understood
from pyrocryo.report import verdicts

__all__ = ["read_run", "write"]

MEANING = {
    "elbo": "evidence lower bound, nats a particle",
    "image_correlation": "of images with what is decoded for them",
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
CAPTIONS = {
    "loss": "Training: negative ELBO by step.",
    "metrics": "Metrics beside their floors.",
    "latents": "Inferred latents against true motions; readable axes follow one motion each.",
    "increments": "Steps between frames, as inferred: a tent is sparse, a parabola Gaussian.",
    "poses": "Inferred poses against true ones; a line of slope 1, anywhere, is right.",
    "traversal": "What moving along each axis does to the molecule.",
    "images": "Images of the posterior and what the model makes of them.",
}
NEEDED = {
    "config": ("seeds", "settings", "prior", "volume", "latents", "seconds"),
    "metrics": ("elbo",),
    "identify": ("prior", "seeds", "sentence"),
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } th, td { padding: .25rem .8rem .25rem 0; text-align: left;
  border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
.verdict { background: #f3f1ea; border-left: 4px solid #b08d3c; padding: .7rem 1rem }
img { max-width: 100% } figure { margin: 1rem 0 } .small { color: #666; font-size: .9em }
"""


def read_run(folder: str | Path) -> dict[str, Any]:
    """``config``, ``metrics`` and ``identify`` of a run folder.

    Raises:
        InputError: If it is not a run folder; names the file that is missing or broken.
    """
    folder = Path(folder)
    content = {}
    for name in ("config", "metrics", "identify"):
        path = folder / f"{name}.json"
        if not path.exists():
            raise InputError(f"{folder} is not a finished run folder: it has no {path.name}")
        content[name] = read_json(path)
        missing = [key for key in NEEDED[name] if key not in content[name]]
        if missing:
            raise InputError(f"{path}: not from a run of pyrocryo, it has no {missing[0]!r}")
    return content


def write(folder: str | Path) -> Path:
    """Writes ``report.html`` into a run folder, from what else is in it; returns its path."""
    folder = Path(folder)
    run = read_run(folder)
    with understood(folder):
        page = _page(folder, run)
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _page(folder: Path, run: Mapping[str, Any]) -> str:
    config = run["config"]
    title = config.get("name", folder.name)
    data = config.get("data", {})
    described = [
        f"{config['prior']} prior, {config['volume']} volume, {config['latents']} latents",
        f"{len(config['seeds'])} seeds, {config['settings']['steps']} steps of "
        f"{config['settings']['batch_size']}, {config['seconds']:.0f} s",
    ]
    if data:
        described.append(
            f"{data['particles']} particles, box {data['box']}, "
            f"{data['pixel_size_in_angstroms']:g} Å/px"
        )
    parts = [
        f"<h1>{html.escape(str(title))}</h1>",
        f"<p class=small>{html.escape('; '.join(described))}</p>",
        f"<p class=verdict>{html.escape(run['identify']['sentence'])}</p>",
        "<h2>Metrics</h2>",
        _table(run["metrics"]),
        *verdicts.parts(run["identify"]),
        *_figures(folder / "figures"),
        "<h2>Settings</h2>",
        f"<pre class=small>{html.escape(json.dumps(config, indent=1, ensure_ascii=False))}</pre>",
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{html.escape(str(title))}</title><style>{STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    header = "<tr><th>metric<th>mean ± sd over seeds<th>floor<th>random rotation<th></tr>"
    rows = [
        f"<tr><td>{name}<td>{_number(row['mean'])} ± {_number(row['sd'])}"
        f"<td>{_number(row['floor'])}<td>{_number(row.get('rotation_floor'))}"
        f"<td class=small>{MEANING.get(name, '')}</tr>"
        for name, row in metrics.items()
    ]
    return f"<table>{header}{''.join(rows)}</table>"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _figures(folder: Path) -> list[str]:
    parts = []
    for name, caption in CAPTIONS.items():
        for n, path in enumerate(sorted(folder.glob(f"{name}*.png"))):
            if n == 0:
                parts.append(f"<h2>{html.escape(caption)}</h2>")
            code = base64.b64encode(path.read_bytes()).decode()
            parts.append(
                f'<figure><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{code}">'
                "</figure>"
            )
    return parts
