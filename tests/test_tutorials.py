"""Every tutorial runs in its short form, from its source."""

import os
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("[0-9]*.py"))


def _text(cell):
    return "".join(o.get("text", "") for o in cell.get("outputs", ()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook tools, not ours
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_short_form(path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYROCRYO_SHORT", "1")
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    monkeypatch.setenv("OMP_NUM_THREADS", str(max(1, os.cpu_count() // beside)))
    notebook = jupytext.read(path)
    cells = notebook.cells
    assert len(cells) <= 25
    assert "What can go wrong" in "".join(c.source for c in cells if c.cell_type == "markdown")
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    pictures = [
        output for cell in cells for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]  # fmt: skip
    assert pictures
    assert "Not identified" in "".join(map(_text, cells))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_the_notebook_for_reading_is_of_this_source(path):
    notebook = jupytext.read(path.with_suffix(".ipynb"))
    source = jupytext.read(path)
    assert [c.source for c in notebook.cells] == [c.source for c in source.cells]
    executed = [c.get("execution_count") for c in notebook.cells if c.cell_type == "code"]
    assert executed == list(range(1, len(executed) + 1))
