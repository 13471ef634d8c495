"""What the README tells people to type works."""

import re
import runpy

import pages
import pytest

from pyrocryo.cli import main

README = (pages.ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {"n=8_000": "n=60", "steps=1_200": "steps=3", "seeds=3": "seeds=2"}


def test_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ((_, code),) = pages.blocks(README, "python")
    for long, short in SHORT.items():
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, "README.md", "exec"), {})
    assert "Not identified" in capsys.readouterr().out
    assert (tmp_path / "runs" / "hello" / "posterior.nc").exists()


@pytest.mark.usefixtures("brisk")
def test_shell_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [words for _, code in pages.blocks(README, "sh") for words in pages.commands(code)]
    names = ["simulate", "inspect", "fit", "identify", "diagnose", "fit", "compare", "export"]
    assert [words[0] for words in found] == [*names, "fit", "audit"]
    further = {
        "simulate": ["--n", "300"],
        "fit": ["--steps", "3", "--draws", "20", "--seeds", "2"],  # the last word counts
        "diagnose": ["--n", "60", "--images", "60", "--most", "40", "--draws", "50"],
    }
    for words in found:
        words = [f"{pages.ROOT}/{w}" if w.startswith("models/") else w for w in words]
        words = ["z1 > -9" if word == "z1 > 1" else word for word in words]
        if "yours.star" in words:
            assert main(words) == 2  # the reader's own files, which are not here
            continue
        assert main([*words, *further.get(words[0], [])]) == 0
    picture = runpy.run_path(str(pages.ROOT / "docs" / "picture.py"))
    picture["draw"]("runs", "axes.png")
    assert (tmp_path / "axes.png").read_bytes()[:4] == b"\x89PNG"


def test_the_makefile_has_both_commands():
    makefile = (pages.ROOT / "Makefile").read_text()
    ((_, first), *_) = pages.blocks(README, "sh")
    targets = re.findall(r"^make (\w+)", first, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_links_lead_somewhere():
    assert not pages.dangling(pages.ROOT / "README.md")


def test_counts_are_right():
    """Of experiments and tutorials."""
    assert len(list((pages.ROOT / "models").glob("*.py"))) == 11
    assert "eleven experiments" in README
    written = {path.name for path in (pages.ROOT / "tutorials").glob("*.ipynb")}
    assert set(re.findall(r"tutorials/(\w+\.ipynb)", README)) == written
