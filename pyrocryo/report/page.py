"""``report.html``: one self-contained page made from the files of a run folder."""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import read_json, replacing, understood
from pyrocryo.io.foreign import no_run
from pyrocryo.report import further, trust, verdicts
from pyrocryo.report.blocks import EXPLORER, MOTION, SOLID
from pyrocryo.report.motions import motions
from pyrocryo.report.points import points, read_arrays
from pyrocryo.report.scores import scores
from pyrocryo.report.training import agreement, history

__all__ = ["read_run", "write"]

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
OTHERS = ("diagnose", "landscape", "halves")  # .json, of commands that look at a run afterwards
PROGRAM = ("shared.js", "particles.js", "solid.js", "motions.js", "page.js")
MARKS = {"good": "✓", "care": "!", "bad": "✗", "open": "?"}
NAMES = {
    "explore": "Particles",
    "motion": "Motions",
    "training": "Training",
    "seeds": "Seeds",
    "diagnose": "Posterior",
    "landscape": "Landscape",
    "halves": "Half-set maps",
    "metrics": "Metrics",
    "axes": "Axes",
    "figures": "Figures",
    "settings": "Settings",
}
ROOM = 1_000_000  # bytes of figures within the page
STYLE = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")


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
            raise no_run(folder, path.name)
        content[name] = read_json(path)
        missing = [key for key in NEEDED[name] if key not in content[name]]
        if missing:
            raise InputError(f"{path}: not from a run of pyrocryo, it has no {missing[0]!r}")
    return content


def write(folder: str | Path) -> Path:
    """Writes ``report.html`` into a run folder, from what else is in it; returns its path.

    One file that needs no network: style, program, data and pictures are within. What cannot be
    had from the folder (no posterior, no maps) is left out; without JavaScript figures, tables and
    verdicts are there all the same.

    Raises:
        InputError: If it is not a run folder, or a file in it is broken.
    """
    folder = Path(folder)
    run = read_run(folder)
    with understood(folder):
        page = _page(folder, run)
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text("\n".join(page) + "\n", encoding="utf-8")
    return path


def _page(folder: Path, run: Mapping[str, Any]) -> list[str]:
    """The lines of the page."""
    others = {name: _optional(folder / f"{name}.json") for name in OTHERS}
    data = _data(folder, run, others["diagnose"])
    title = html.escape(str(run["config"].get("name", folder.name)))
    sections = [
        *_explorer(data),
        "<div class=duo>",
        *history(folder / "history.csv"),
        *agreement(data["points"], data["seeds"]),
        "</div>",
        *further.parts(others, folder),
        "<section id=metrics><h2>Metrics</h2>",
        scores(run["metrics"]),
        "</section><section id=axes>",
        *verdicts.parts(run["identify"]),
        "</section>",
        *_figures(folder),
        *_settings(run["config"]),
    ]
    return [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body>",
        *_head(title, run, others["diagnose"]),
        _contents(sections),
        "<main>",
        *sections,
        "</main>",
        f"<script type=application/json id=run>{_embedded(data)}</script>",
        f"<script>{_program()}</script></body></html>",
    ]


def _optional(path: Path) -> dict[str, Any] | None:
    """What another command left beside the run, if it is an object."""
    return read_json(path) if path.exists() else None


def _data(
    folder: Path, run: Mapping[str, Any], checked: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the page's program is given."""
    seeds = run["config"]["seeds"]
    elbo = [-np.inf if v is None else v for v in run["metrics"]["elbo"].get("per_seed") or []]
    best = int(np.argmax(elbo)) if len(elbo) == len(seeds) else 0
    data: dict[str, Any] = {"seeds": seeds, "best": best, "points": None, "motions": []}
    path = folder / "posterior.nc"
    if path.exists():
        found = read_arrays(path)
        data["points"] = points(found, seeds, best, checked)
        data["motions"] = motions(folder, found, seeds, best)
    return data


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that no HTML parser takes for the end of the script."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _program() -> str:
    """The files of the program in one scope, so that the page has no names of its own."""
    files = resources.files(__package__)
    parts = [files.joinpath(name).read_text(encoding="utf-8") for name in PROGRAM]
    return "\n".join(['(() => {\n"use strict";', *parts, "})();"])


def _head(title: str, run: Mapping[str, Any], checked: Mapping[str, Any] | None) -> list[str]:
    config, sentence = run["config"], str(run["identify"]["sentence"])
    described = [
        f"{config['prior']} prior",
        f"{config['volume']} volume",
        _several(config["latents"], "latent"),
        _several(len(config["seeds"]), "seed"),
        f"{config['settings']['steps']} steps of {config['settings']['batch_size']} particles",
        f"trained in {config['seconds']:.0f} s",
    ]
    if data := config.get("data"):
        described.append(
            f"{data['particles']} particles, box {data['box']}, "
            f"{data['pixel_size_in_angstroms']:g} Å/px"
        )
    cards = "".join(
        f"<li class={line.state}><b>{MARKS[line.state]} {html.escape(line.what)}</b> "
        f"{html.escape(line.says[:1].upper() + line.says[1:])}</li>"
        for line in trust.lines(run, checked)
    )
    state = trust.state(sentence)
    head, _, rest = sentence.partition(": ")
    told = (
        f"<strong>{html.escape(head)}</strong>: {html.escape(rest)}"
        if rest
        else html.escape(sentence)
    )
    return [
        f"<header><h1>{title}</h1>",
        f"<p class=small>{html.escape(' · '.join(described))}</p>",
        f"<p class='verdict {state}'>{told}</p>",
        f"<ul class=trust>{cards}</ul></header>",
    ]


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _contents(sections: Sequence[str]) -> str:
    """Links to the sections that are there."""
    there = re.findall(r"<section id=(\w+)", "".join(sections))
    links = "".join(f'<a href="#{name}">{NAMES[name]}</a>' for name in there)
    return f'<nav aria-label="sections">{links}</nav>'


def _explorer(data: Mapping[str, Any]) -> list[str]:
    """Places for the program to draw in; those without data are not there."""
    parts = []
    if data["points"] is not None:
        parts.append(EXPLORER)
    if data["motions"]:
        solid = any(m["maps"] or any(m["atoms"]) for m in data["motions"])
        parts.append(MOTION.replace("<!--solid-->", SOLID if solid else ""))
    if parts:
        parts.append(
            "<noscript><p class=note>Scatter plot, motions and sorting need JavaScript, which is "
            "off. The same as pictures is under Figures.</p></noscript>"
        )
    return parts


def _figures(folder: Path) -> list[str]:
    """Figures on file, within the page as far as there is room; the others by name."""
    found = {c: sorted((folder / "figures").glob(f"{n}*.png")) for n, c in CAPTIONS.items()}
    room, within = ROOM, set()
    for paths in itertools.zip_longest(*found.values()):  # one of each kind, then the next
        for path in filter(None, paths):
            if (size := path.stat().st_size) <= room:
                room -= size
                within.add(path)
    parts = []
    for caption, paths in found.items():
        for n, path in enumerate(paths):
            if n == 0:
                parts.append(f"<h3>{html.escape(caption)}</h3>")
            if path not in within:
                link = html.escape(f"figures/{path.name}")
                parts.append(f'<p class=small><a href="{link}">{link}</a></p>')
                continue
            alt = html.escape(f"{caption} {path.stem.replace('_', ' ')}")
            code = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<figure><img alt="{alt}" src="data:image/png;base64,{code}"></figure>')
    if not parts:
        return []
    return [
        "<section id=figures><h2>Figures</h2><details open class=figures><summary>All figures; "
        "also as files, PNG and SVG, in figures/</summary>",
        *parts,
        "</details></section>",
    ]


def _settings(config: Mapping[str, Any]) -> list[str]:
    text = html.escape(json.dumps(config, indent=1, ensure_ascii=False))
    return [
        "<section id=settings><h2>Settings</h2><details><summary>config.json</summary>"
        f"<pre class=small>{text}</pre></details></section>"
    ]
