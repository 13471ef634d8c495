"""What the README tells people to type works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrocryo.bench import cryodrgn, feed, splat, step, timing
from pyrocryo.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = {"n=8_000": "n=60", "steps=1_200": "steps=3", "seeds=3": "seeds=2"}


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(_blocks("python"))
    for long, short in SHORT.items():
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, "README.md", "exec"), {})
    assert "Not identified" in capsys.readouterr().out
    assert (tmp_path / "runs" / "hello" / "posterior.nc").exists()


@pytest.mark.usefixtures("brisk")
def test_shell_commands_run(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    lines = [
        shlex.split(line, comments=True)[1:]
        for line in "\n".join(_blocks("sh")).splitlines()
        if line.startswith("pyrocryo ")
    ]
    commands = ["simulate", "fit", "compare", "identify", "diagnose", "landscape", "ica", "fit"]
    commands += ["movie", "rehearse", "fit", "inspect", "fit", "fit", "export", "audit"]
    commands += [*["fit"] * 4, "bench"]
    assert [words[0] for words in lines] == commands
    for part in (step, splat, feed, cryodrgn):  # two minutes, else
        rows = [timing.row("it", [1.0], [2.0])]
        monkeypatch.setattr(part, "rows", lambda device, quick, rows=rows: iter(rows))
    for n, words in enumerate(lines):
        words = [str(ROOT / word) if word.startswith("models/") else word for word in words]
        if {"yours.star", "yours.cs", "stack.mrcs"} & set(words):
            assert main(words) == 2  # the reader's own files, which are not here
            continue
        if words[0] == "simulate":
            words += ["--n", "2100"]  # linear ICA wants 200 held out
        if words[0] == "audit":  # latents of other programs, one a row of the star file
            for name in ("z_a", "z_b"):
                np.save(f"runs/{name}.npy", rng.standard_normal((4200, 2)))
        words = ["z1 > -9" if word == "z1 > 1" else word for word in words]
        if words[0] == "diagnose":
            words += ["--n", "60", "--images", "60", "--most", "40", "--draws", "50"]
        if words[0] == "landscape":
            words += ["--most", "100"]
        if words[0] == "rehearse":
            words += ["--steps", "3", "--n", "60", "--seeds", "1", "--anyway"]
        if words[0] == "fit":
            words += ["--steps", "3", "--draws", "20"]
            words += ["--rigid-steps", "1"] if "in-plane" in words else []
            words += [] if "--data" in words else ["--n", "400"]
            words += [] if "--out" in words else ["--out", f"runs/{n}"]
        if "cuda" in words and not torch.cuda.is_available():
            assert main(words) == 2
        elif "--devices" in words:  # runs its whole command line again
            command = [sys.executable, "-m", "pyrocryo.cli", *words]
            assert subprocess.run(command, timeout=300).returncode == 0
        else:
            assert main(words) == 0


def test_the_makefile_has_both_commands():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(_blocks("sh")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_every_model_is_in_the_table():
    for path in (ROOT / "models").glob("*.py"):
        assert f"(models/{path.name})" in README


def test_links_lead_somewhere():
    titles = re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    sections = {"#" + title.lower().replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert target in sections or (ROOT / target).exists(), target
