"""``models/README.md``: the cards of model files, which are their docstrings, on one page.

python -m pyrocryo.report.cards models
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from pyrocryo.errors import InputError
from pyrocryo.files import replacing

__all__ = ["cards", "write_cards"]

HEAD = """# Models

Made from the model files' docstrings by `make models/README.md`; do not edit.

Each file is one experiment, and an example to copy: `pyrocryo fit models/FILE.py --help`.

| file | what it is |
|---|---|
"""


def cards(folder: str | Path) -> str:
    """The page for all model files in ``folder``, Markdown.

    Raises:
        InputError: If a file has no docstring, or its first line is not of the form "Name: what.".
    """
    rows, sections = [], []
    for path in sorted(Path(folder).glob("*.py")):
        card = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        title, _, body = card.partition("\n")
        name, colon, what = title.partition(": ")
        if not (colon and what.endswith(".")):
            raise InputError(f"{path}: expected a docstring that begins with 'Name: what it is.'")
        rows.append(f"| [{path.name}]({path.name}) | {name}: {what} |\n")
        sections.append(f"\n## {name}\n\n`{path.name}`: {what}\n{body}\n")
    return HEAD + "".join(rows) + "".join(sections)


def write_cards(folder: str | Path) -> Path:
    """Writes the page to ``README.md`` in the folder."""
    path = Path(folder) / "README.md"
    page = cards(folder)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write_cards(sys.argv[1]))
