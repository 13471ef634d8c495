"""Figures as files."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pyrocryo.files import replacing

__all__ = ["png", "write_figure"]

DPI = 110


def png(figure: Figure, to: Path | IO[bytes]) -> None:
    """Draws a figure into a file.

    Its canvas is asked directly: ``savefig`` draws every figure twice.
    """
    figure.dpi = DPI
    FigureCanvasAgg(figure).print_png(to)


def write_figure(path: Path, figure: Figure, *, drawing: bool = False) -> None:
    """Writes a figure to a .png, whole or not at all.

    Args:
        path: The file.
        figure: What to draw; its layout is found here, which takes most of the time.
        drawing: Whether to write an .svg beside it, in the same layout.
    """
    with replacing(path) as temporary:
        png(figure, temporary)
    if not drawing:
        return
    figure.set_layout_engine("none")
    with replacing(path.with_suffix(".svg")) as temporary:
        FigureCanvasSVG(figure).print_svg(temporary, metadata={"Date": None})
