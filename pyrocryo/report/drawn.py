"""Drawings that need no program to be seen: SVG within the page, in the page's own colours."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["bar", "curves", "matrix"]

WIDTH, HEIGHT = 620, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 40
MOST = 400  # points of a curve
SEVERAL = 8  # colours of the page


def curves(x: np.ndarray, rows: np.ndarray, names: Sequence[str], across: str, up: str) -> str:
    """Curves `(n, steps)` over `x` `(steps,)`, the first tenth cut off at the top.

    Args:
        x: Where.
        rows: Values; what is not finite leaves a gap.
        names: Of the curves.
        across: Label of the x axis.
        up: Label of the y axis.
    """
    late = rows[:, rows.shape[1] // 10 :]
    late = late[np.isfinite(late)]
    if not late.size:
        return "<p>Nothing finite to draw.</p>"
    low, high = float(late.min()), float(np.quantile(late, 0.98))
    pad = max(high - low, 1e-6 * max(abs(high), 1.0))
    low, high = low - 0.05 * pad, high + 0.25 * pad
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def px(v: float) -> float:
        return LEFT + (v - x[0]) / max(x[-1] - x[0], 1e-12) * (right - LEFT)

    def py(v: float) -> float:
        return bottom - (v - low) / (high - low) * (bottom - TOP)

    parts = []
    for value in _ticks(low, high, 5):
        parts.append(
            f"<line class=grid x1={LEFT} x2={right} y1={py(value):.1f} y2={py(value):.1f} />"
            f"<text x={LEFT - 6} y={py(value) + 4:.1f} class=end>{_short(value)}</text>"
        )
    for value in _ticks(float(x[0]), float(x[-1]), 6):
        parts.append(f"<text x={px(value):.1f} y={bottom + 16} class=mid>{_short(value)}</text>")
    every = max(1, rows.shape[1] // MOST)
    for n, row in enumerate(rows):
        path, pen = [], "M"
        for at, value in zip(x[::every], row[::every], strict=True):
            if not math.isfinite(value):
                pen = "M"
                continue
            path.append(f"{pen}{px(at):.1f} {py(min(value, high)):.1f}")
            pen = "L"
        parts.append(
            f'<path class="line s{n % SEVERAL}" d="{"".join(path)}">'
            f"<title>{html.escape(names[n])}</title></path>"
        )
    parts.append(f"<text x={(LEFT + right) / 2} y={HEIGHT - 6} class=mid>{across}</text>")
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(14 {middle}) rotate(-90)" class=mid>{html.escape(up)}</text>'
    )
    legend = "".join(
        f'<span class=key><i class="s{n % SEVERAL}"></i>{html.escape(name)}</span>'
        for n, name in enumerate(names)
    )
    label = html.escape(f"{up} by {across}: {', '.join(names)}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{label}">{"".join(parts)}</svg>'
        f"<div class=legend>{legend}</div>"
    )


def matrix(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str) -> str:
    """Numbers in [0, 1] as a grid of squares, each with its number in it."""
    cell, left, top = (44 if len(columns) <= 8 else 30), 58, 22
    width, height = left + cell * len(columns), top + cell * len(rows)
    parts = [
        f"<text x={left + cell * (k + 0.5)} y={top - 7} class=mid>{html.escape(name)}</text>"
        for k, name in enumerate(columns)
    ]
    for n, name in enumerate(rows):
        y = top + cell * n
        parts.append(
            f"<text x={left - 7} y={y + cell / 2 + 4} class=end>{html.escape(name)}</text>"
        )
        for k in range(len(columns)):
            value = float(values[n, k])
            told = f"{value:.2f}".replace("0.", ".", 1) if value < 0.995 else "1"
            share = min(max(value, 0.0), 1.0)
            dark = " dark" if share > 0.55 else ""
            parts.append(
                f"<rect x={left + cell * k + 1} y={y + 1} width={cell - 2} height={cell - 2} "
                f'rx=4 class=cell style="fill-opacity:{share:.3f}" />'
                f'<text x={left + cell * (k + 0.5)} y={y + cell / 2 + 4} class="mid on{dark}">'
                f"{told}</text>"
            )
    return (
        f'<svg class=matrix viewBox="0 0 {width} {height}" style="max-width:{width}px" role=img '
        f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
    )


def bar(row: Mapping[str, Any]) -> str:
    """A metric on its scale from 0 to 1: seeds as dots, the mean as a line, floors as ticks."""
    values = [v for v in row["per_seed"] if v is not None and math.isfinite(v)]
    if not values:
        return ""

    def px(value: float) -> float:
        return 4 + 132 * min(max(value, 0.0), 1.0)

    parts = ["<line class=grid x1=4 x2=136 y1=9 y2=9 />"]
    for name, kind in (("floor", "floor"), ("rotation_floor", "turned")):
        if row.get(name) is not None:
            parts.append(
                f"<line class={kind} x1={px(row[name]):.1f} x2={px(row[name]):.1f} y1=2 y2=16 />"
            )
    parts += [f"<circle class=dot cx={px(v):.1f} cy=9 r=3.2 />" for v in values]
    mean = px(sum(values) / len(values))
    parts.append(f"<line class=mean x1={mean:.1f} x2={mean:.1f} y1=3 y2=15 />")
    return f'<svg class=bar viewBox="0 0 140 18" aria-hidden=true>{"".join(parts)}</svg>'


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers in a range."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
    first = math.ceil(low / step) * step
    return [first + n * step for n in range(int((high - first) / step) + 1)]


def _short(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
