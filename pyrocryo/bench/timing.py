"""Two sides of a comparison, timed in turn in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

__all__ = ["compared", "row", "seconds", "table"]

LEAST = 0.05  # seconds of one sample: shorter calls are repeated


def seconds(call: Callable[[], Any], device: str, times: int = 1) -> float:
    """Seconds for one of ``times`` calls, until the device is done with them."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    _wait(device)
    return (time.perf_counter() - started) / times


def compared(
    name: str,
    ours: Callable[[], Any],
    other: Callable[[], Any],
    device: str,
    *,
    repeats: int = 7,
    of: int = 1,
) -> dict[str, Any]:
    """Times both sides in turn, after a first call of each that does not count.

    Args:
        name: What is compared.
        ours: Our side.
        other: The other.
        device: What they run on.
        repeats: Samples of each side.
        of: How many calls of ``other`` one of ``ours`` stands for.
    """
    times = []
    for call in (ours, other):
        call()
        times.append(max(1, round(LEAST / seconds(call, device))))
    samples = [
        (seconds(ours, device, times[0]), of * seconds(other, device, times[1]))
        for _ in range(repeats)
    ]
    return row(name, *zip(*samples, strict=True))


def row(name: str, ours: Iterable[float], other: Iterable[float]) -> dict[str, Any]:
    """Medians of both sides, and the median, lowest and highest of their ratios."""
    a, b = np.array(ours), np.array(other)
    ratios = b / a
    return {
        "name": name,
        "ours": float(np.median(a)),
        "other": float(np.median(b)),
        "ratio": float(np.median(ratios)),
        "spread": [float(ratios.min()), float(ratios.max())],
    }


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows for reading; times in milliseconds."""
    lines = [f"{'':68s}{'ours ms':>10s}{'other ms':>10s}{'ratio':>8s}  lowest to highest"]
    for r in rows:
        low, high = r["spread"]
        lines.append(
            f"{r['name']:68s}{1e3 * r['ours']:10.3f}{1e3 * r['other']:10.3f}{r['ratio']:8.2f}"
            f"  {low:.2f} to {high:.2f}"
        )
    return "\n".join(lines)


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
