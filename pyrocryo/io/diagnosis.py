"""The checks of a posterior on disk, beside the run they are of."""

from __future__ import annotations

from pathlib import Path

from pyrocryo.diagnose import Checked
from pyrocryo.diagnose.figures import figures
from pyrocryo.io.figures import write_figure
from pyrocryo.io.run_folder import write_json

__all__ = ["write_diagnosis"]


def write_diagnosis(out: str | Path, checked: Checked) -> list[Path]:
    """Writes ``diagnose.json`` and ``figures/diagnose_*.png``; each whole or not at all.

    Args:
        out: A run folder, or any other.
        checked: What :func:`pyrocryo.diagnose.check` found.

    Returns:
        The paths written.
    """
    out = Path(out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures(checked).items():
        paths.append(out / "figures" / f"{name}.png")
        write_figure(paths[-1], figure)
    write_json(out / "diagnose.json", checked.as_dict())
    return [out / "diagnose.json", *paths]
