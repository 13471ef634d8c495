"""What other commands found out about a run, shown as it is: verdicts, numbers and figures."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["parts"]

HEADS = {
    "diagnose": "Can the posterior be trusted?",
    "landscape": "Populations and landscape",
    "halves": "Half-set maps",
}
TOLD = ("sentence", "verdict", "reading")  # keys of sentences
MOST = 8  # numbers of a list that are shown one by one
ROOM = 1_200_000  # bytes of pictures in all


def parts(others: Mapping[str, Mapping[str, Any] | None], folder: Path) -> list[str]:
    """HTML of ``diagnose.json`` and ``landscape.json``, as far as they are there.

    Any object will do. Sentences (under ``sentence``, ``verdict``, ``reading``) are told, with a
    mark where there is a ``passed`` beside them; numbers and short lists of them are tabled by
    name; pictures are those that ``figures`` names, and all in the folder's ``figures/`` whose
    name begins with that of the file.
    """
    told = []
    for name, content in others.items():
        if not content:
            continue
        told.append(f"<section id={name}><h2>{HEADS.get(name, html.escape(name))}</h2>")
        told += _verdicts(content)
        if isinstance(content.get("caveat"), str) and content["caveat"]:
            told.append(f"<p class=note>{html.escape(content['caveat'])}</p>")
        told += _pictures(name, content, folder)
        rows = "".join(
            f"<tr><td>{html.escape(key)}<td class=number>{html.escape(value)}</tr>"
            for key, value in _numbers(content)
        )
        if rows:
            told.append(
                f"<details><summary>All numbers of {html.escape(name)}.json</summary>"
                f"<div class=wide><table>{rows}</table></div></details>"
            )
        told.append("</section>")
    return told


def _verdicts(content: Mapping[str, Any]) -> list[str]:
    told = []
    main = next((content[key] for key in TOLD if isinstance(content.get(key), str)), None)
    if main:
        told.append(f"<p class='verdict {_state(content.get('passed'))}'>{html.escape(main)}</p>")
    items, seeds = {}, content.get("seeds")
    for name, part in content.items():
        listed = part if isinstance(part, list) else [part]
        each = isinstance(seeds, list) and len(listed) == len(seeds) > 1
        for n, one in enumerate(listed):
            if not isinstance(one, Mapping):
                continue
            says = next((one[key] for key in TOLD if isinstance(one.get(key), str)), None)
            if says:
                state = _state(one.get("passed"))
                own = one.get("name", one.get("axis"))
                own = f"z{own}" if type(own) is int else own  # an axis, counted from 1
                if own is None and each:
                    own = f"{name}, seed {seeds[n]}"
                head = _words(own if isinstance(own, str) else name)
                items.setdefault(  # what all seeds have in common is told once
                    (head, says),
                    f"<li class={state}><b>{_mark(state)}{html.escape(head)}</b> "
                    f"{html.escape(says)}</li>",
                )
    return told + ([f"<ul class=trust>{''.join(items.values())}</ul>"] if items else [])


def _state(passed: Any) -> str:
    return {True: "good", False: "bad"}.get(passed, "open") if isinstance(passed, bool) else "open"


def _mark(state: str) -> str:
    return {"good": "✓ ", "bad": "✗ "}.get(state, "")


def _numbers(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}.")
        elif _number(value):
            yield name, _short(value)
        elif isinstance(value, str) and key not in TOLD and value:
            yield name, value
        elif isinstance(value, list) and 0 < len(value) <= MOST:
            if all(_number(v) or v is None for v in value):
                yield name, ", ".join("–" if v is None else _short(v) for v in value)
            elif all(isinstance(v, str) for v in value):
                yield name, ", ".join(value)
            elif all(isinstance(v, Mapping) for v in value):
                for n, one in enumerate(value, start=1):
                    yield from _numbers(one, f"{name}.{n}.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _pictures(name: str, content: Mapping[str, Any], folder: Path) -> list[str]:
    named = content.get("figures")
    named = [n for n in named if isinstance(n, str)] if isinstance(named, list) else []
    inside = folder.resolve()
    paths = [p for n in named for p in (folder / n, folder / "figures" / n) if p.is_file()]
    paths = [p for p in paths if inside in p.resolve().parents and p.suffix == ".png"]
    paths += sorted((folder / "figures").glob(f"{name}*.png"))
    told, room = [], ROOM
    for path in dict.fromkeys(p.resolve() for p in paths):
        size = path.stat().st_size
        if size > room:
            continue
        room -= size
        code = base64.b64encode(path.read_bytes()).decode()
        words = html.escape(_words(path.stem.removeprefix(f"{name}_")))
        told.append(
            f'<figure><img alt="{words}" src="data:image/png;base64,{code}">'
            f"<figcaption>{words}</figcaption></figure>"
        )
    return [f"<div class=row>{''.join(told)}</div>"] if told else []


def _words(name: str) -> str:
    return name.replace("_", " ")
