"""What pages of Markdown tell people to type, and where their links lead."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(text, *languages):
    """Language and content of fenced blocks, in their order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [(kind, code) for kind, code in found if kind in languages]


def commands(code):
    """Words of each line that calls pyrocryo, without its name."""
    lines = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "pyrocryo"]


def anchors(path):
    """The sections of a page, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dangling(path):
    """Links of a page that lead nowhere: to no file, or to no section."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, section = target.partition("#")
        there = path.parent / name if name else path
        if not there.exists() or (section and section not in anchors(there)):
            wrong.append(target)
    return wrong
