"""Executes tutorials and writes the notebooks for reading: python tutorials/execute.py [NAME ...].

What is printed to stderr (notices of other packages) is left out.
"""

import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient

HERE = Path(__file__).parent

for source in sorted(HERE.glob("[0-9]*.py")):
    if sys.argv[1:] and source.stem not in sys.argv[1:]:
        continue
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    jupytext.write(notebook, source.with_suffix(".ipynb"))
    print(source.with_suffix(".ipynb"))
