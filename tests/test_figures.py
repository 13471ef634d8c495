"""Figures on disk."""

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

from pyrocryo.io.figures import png, write_figure


def _figure():
    figure = Figure(figsize=(3, 2), layout="constrained")
    figure.subplots().plot([0, 1], [1, 0])
    return figure


def test_a_picture_is_what_savefig_draws(tmp_path):
    write_figure(tmp_path / "a.png", _figure())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    _figure().savefig(other := io.BytesIO(), format="png", dpi=110)
    other.seek(0)
    found, expected = imread(tmp_path / "a.png"), imread(other)
    assert found.shape == expected.shape == (220, 330, 4)
    np.testing.assert_array_equal(found, expected)


def test_a_figure_is_drawn_once(monkeypatch):
    """Layout is found at each drawing, and takes most of the time."""
    drawn = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, *of: (drawn.append(1), draw(self, *of)))
    png(_figure(), io.BytesIO())
    assert len(drawn) == 1


def test_a_drawing_lies_beside(tmp_path):
    write_figure(tmp_path / "a.png", _figure(), drawing=True)
    assert "<svg" in (tmp_path / "a.svg").read_text()
