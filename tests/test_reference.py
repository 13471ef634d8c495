"""Public names say what they are, what they take, and where to look; the reference builds."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyrocryo

ROOT = Path(__file__).parents[1]
PLAIN = {"self", "args", "kwargs", "options", "validate_args"}  # told of where they lead to
FEW = 2  # parameters that a sentence and its shapes tell of
ROLE = re.compile(r":(?:func|class|mod|meth|attr|data|exc):`(?:[^`<]*<)?~?(pyrocryo[\w.]*)>?`")


def public():
    """Functions and classes that modules of the API offer, by name, each once."""
    found = {}
    for module in [pyrocryo, *(getattr(pyrocryo, name) for name in pyrocryo._MODULES)]:
        for name in module.__all__:
            value = getattr(module, name)
            ours = getattr(value, "__module__", "").startswith("pyrocryo")
            if ours and (inspect.isfunction(value) or inspect.isclass(value)):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())


PUBLIC = public()


def test_the_api_is_found():
    assert len(PUBLIC) > 200
    assert {"pyrocryo.Pair", "pyrocryo.metrics.mcc", "pyrocryo.io.write_motion"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_is_and_takes(name):
    value = PUBLIC[name]
    text = value.__doc__ or ""
    assert text.strip().partition("\n\n")[0].endswith((".", ":", "?")), "a first sentence"
    if not inspect.isfunction(value):
        return
    taken = [p for p in inspect.signature(value).parameters if p not in PLAIN]
    if len(taken) > FEW:
        untold = [p for p in taken if not re.search(rf"\b{p}\b", text)]
        assert not untold


@pytest.mark.parametrize("name", [n for n, v in PUBLIC.items() if inspect.isclass(v)])
def test_methods_are_documented(name):
    bare = [
        method
        for method, value in vars(PUBLIC[name]).items()
        if not method.startswith("_")
        and inspect.isfunction(value)
        and not (inspect.getdoc(getattr(PUBLIC[name], method)) or "").strip()
    ]
    overrides = [m for m in bare if any(hasattr(base, m) for base in PUBLIC[name].__mro__[1:])]
    assert not set(bare) - set(overrides)


def references():
    for path in sorted((ROOT / "pyrocryo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            kinds = ast.Module | ast.ClassDef | ast.FunctionDef
            if isinstance(node, kinds) and (text := ast.get_docstring(node, clean=False)):
                for target in ROLE.findall(text):
                    yield path.name, target


def resolves(target):
    parts = target.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            named = getattr(value, "__annotations__", {})
            if not hasattr(value, part) and part not in named:
                return False
            value = getattr(value, part, None)
        return True
    return False


def test_references_lead_somewhere():
    found = list(references())
    assert len(found) > 100
    assert not resolves("pyrocryo.metrics.mmc")
    assert not sorted({(path, target) for path, target in found if not resolves(target)})


def test_the_reference_builds_without_warnings(tmp_path):
    pytest.importorskip("pdoc", reason="make docs installs it")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, ROOT / "docs" / "api.py", tmp_path / "api"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "api" / "pyrocryo" / "metrics.html").read_text(encoding="utf-8")
    assert "mean correlation" in page.lower()
    assert 'id="mcc"' in page
    assert "<li><strong>factors:</strong>" in page
