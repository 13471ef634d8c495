"""Who may import whom: downwards only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyrocryo"
FLOORS = [
    {"errors"},
    {
        "files",
        "to_arviz",
        "rotations",
        "directions",
        "precision",
        "quaternions",
        "registered",
        "perceptron",
        "windows",
        "chain",
        "cholesky",
        "jacobians",
        "agreement",
    },
    {"fields", "rotation_laws", "turned", "unit_vectors", "preprocess", "ramp"},
    {"particles", "metrics", "rotated_normal", "joint_normal", "plots", "context"},
    {"imaging", "inspection", "natural_gradient"},
    {"volumes", "poses", "priors", "optics", "noise"},
    {"molecules"},
    {"guides", "simulate"},
    {"compatible", "charts"},
    {"pair"},
    {"interventions", "penalties", "whitened"},
    {"svi", "testing"},
    {"draws", "frames", "peaks", "semi_amortised"},
    {"sampling"},
    {"diagnose"},
    {"identify"},
    {"evidence", "halves"},
    {"io"},
    {"report", "bench"},
    {"cli"},
]
FLOOR = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}


def _imports(path):
    """Rooms of the package that a file imports, type-checking blocks aside."""
    tree = ast.parse(path.read_text())
    hidden = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in hidden:
            continue
        assert not getattr(node, "level", 0), f"{path} imports relatively"
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "pyrocryo":
                yield from parts[1:2] or (alias.name for alias in node.names)
            elif parts[0] == "models":
                yield "models"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] in ("pyrocryo", "models"):
                    yield parts[1] if len(parts) > 1 else parts[0]


def _room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_downwards(path):
    room = _room(path)
    assert room in FLOOR, f"{room} is a new room: give it a floor"
    for other in _imports(path):
        if other not in (room, "__version__"):
            assert FLOOR[other] < FLOOR[room], f"{room} must not import {other}"


def test_only_the_pair_samples():
    sampling = [p.name for p in FILES if "pyro.sample(" in p.read_text()]
    assert sampling == ["pair.py"]


def test_metrics_and_bridge_are_leaves():
    for path in FILES:
        if _room(path) in ("metrics", "to_arviz"):
            assert set(_imports(path)) <= {"errors", "metrics", "rotations"}


def test_files_are_short():
    long = {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long
