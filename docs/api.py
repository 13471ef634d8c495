"""Builds the API reference from docstrings; what pdoc warns of is an error.

python docs/api.py build/docs/api
"""

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import pyrocryo


def load():
    """Imports all of the package, so that names are there that load when they are asked for."""
    names = [
        found.name
        for found in pkgutil.walk_packages(pyrocryo.__path__, "pyrocryo.")
        if not found.name.endswith("__main__")
    ]
    loaded = [pyrocryo, *map(importlib.import_module, names)]
    for module in loaded:
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            setattr(module, name, value)
            if isinstance(value, type) and hasattr(value, "_fields"):
                value.__new__.__module__ = value.__module__  # where its annotations have a meaning


def build(out):
    """Writes one page a public module, and a search index; returns how many pages there are."""
    warnings.simplefilter("error")
    # ArviZ 0.23 announces 1.0 at each import
    warnings.filterwarnings("ignore", message="\\s*ArviZ is undergoing", category=FutureWarning)
    load()
    footer = f"pyrocryo {pyrocryo.__version__}"
    pdoc.render.configure(docformat="google", math=True, footer_text=footer)
    pdoc.pdoc("pyrocryo", output_directory=Path(out))
    return len(list(Path(out).rglob("*.html")))


if __name__ == "__main__":
    print(f"{build(sys.argv[1])} pages: {sys.argv[1]}/index.html")
