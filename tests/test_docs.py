"""Every command and all code of the pages in docs/ runs, and ends as the page says."""

import re
import shlex

import numpy as np
import pages
import project
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.io import star

ROOT = pages.ROOT
DOCS = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
PAGE = DOCS["from_relion_to_a_verdict"]
ELSEWHERE = {"calibrate_and_trust": "test_trust.py"}
CHANGES = {  # as the page's last section says
    "--steps 600": "--steps 4",
    "--downsample 64": "--downsample 16",
    "z1 > 1": "z1 > -99",
    "sd1 < 0.5": "sd1 < 99",
    "$PYROCRYO": str(ROOT),
}

FEWER = {
    "diagnose": ["--n", "60", "--images", "60", "--most", "40", "--draws", "50"],
    "landscape": ["--most", "60"],
}


def _words(line):
    for long, short in CHANGES.items():
        line = re.sub(rf"{re.escape(long)}(?!\d)", lambda _, to=short: to, line)
    name, *words = shlex.split(line)
    assert name == "pyrocryo"
    return words + FEWER.get(words[0], [])


def _failing():
    """Commands and the lines they must end with."""
    blocks = re.findall(r"```console\n\$ (.*)\n(.*)\n```", PAGE)
    assert len(blocks) == PAGE.count("```console")
    return blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The project of somebody who has made some mistakes."""
    path = tmp_path_factory.mktemp("project")
    project.make(path)
    (path / "moved").mkdir()
    text = (path / project.STAR).read_text().replace("Extract/job012", "Extract/job011")
    (path / "moved/run_data.star").write_text(text)
    (path / "J40").mkdir()
    table = np.load(path / project.PASSTHROUGH)
    table["uid"] += 1
    with (path / "J40/J40_passthrough_particles.cs").open("wb") as file:
        np.save(file, table)
    rows = star.read(path / project.STAR)
    for name in ("truncated", "broken"):
        (path / name).mkdir()
        stack = pc.io.load(path / project.STAR)
        images = stack.raw(np.arange(40))
        if name == "broken":
            images[17, 3, 3] = np.nan
        pc.io.mrc.write_stack(path / name / "stack.mrcs", images, 2.0)
        table = {k: v[:40] for k, v in rows["particles"].items()}
        table["rlnImageName"] = [f"{n}@{name}/stack.mrcs" for n in range(1, 41)]
        star.write(path / name / "run_data.star", rows | {"particles": table})
    with (path / "truncated/stack.mrcs").open("r+b") as file:
        file.truncate(50_000)
    (path / "runs/unfinished").mkdir(parents=True)
    return path


def test_the_page_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in "".join(blocks).splitlines():
        code = main(_words(line))
        said = capsys.readouterr()
        assert code == 0, f"{line}: {said.err}"
    for path in (
        "looks/relion/montage.png", "runs/relion/report.html", "runs/cs/report.html",
        "movie/z1/z1.cxc", "runs/relion/landscape.json", "runs/relion/diagnose.json",
        "clusters/clusters.cxc", "audit/z8/audit.html",
    ):  # fmt: skip
        assert (folder / path).stat().st_size > 100, path
    for name in ("run_data_z.star", "one_end.star"):
        read = pc.io.load(folder / name)
        assert (len(read), read.box) == (240, 32)
        assert "pyrocryoZMean2" in star.read(folder / name)["particles"]
    assert len(pc.io.load(folder / "one_end.cs")) == 240
    # the second of cryoDRGN's runs was made of poses, and the audit says so
    text = (folder / "audit/z8/audit.html").read_text()
    assert re.search(r"no sign that z depends on the pose", text)
    assert re.search(r"z depends on the direction of view", text)


@pytest.mark.parametrize(("line", "message"), _failing())
def test_mistakes_end_as_the_page_says(line, message, folder, monkeypatch, capsys):
    """After the page has run, so that there is a run."""
    if not (folder / "runs/relion/report.html").exists():
        test_the_page_runs(folder, monkeypatch, capsys)
    monkeypatch.chdir(folder)
    assert main(_words(line)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert re.fullmatch(pattern, last), last


def test_what_the_page_says_of_its_test_is_so():
    last = PAGE[PAGE.index("## How this page is tested") :]
    for long in CHANGES:
        assert long in PAGE
        assert long in last or long == "$PYROCRYO"
    for name in re.findall(r"`(models/\w+\.py)`", PAGE):
        assert (ROOT / name).exists()


QUICKER = {"n=8_000": "n=60", "steps=1_200": "steps=3", "n=2_000": "n=240", "steps=300": "steps=8"}
SMALL = ["--n", "240", "--steps", "3", "--draws", "20", "--held-out", "40"]


def _python(code, names):
    for long, short in QUICKER.items():
        code = code.replace(long, short)
    exec(compile(code, "page", "exec"), names)


def _shell(code):
    """Commands, in little time; those of a GPU end in one line where there is none."""
    for line in code.splitlines():
        words = _words(line)
        words += SMALL if words[0] == "fit" else []
        assert main(words) == (2 if "cuda" in words and not torch.cuda.is_available() else 0), line


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ 0.23 on pandas 3.1
@pytest.mark.filterwarnings("ignore::RuntimeWarning:arviz")  # its weights of fits of three steps
def test_how_tos_run(folder, monkeypatch, capsys):
    if not (folder / "runs/relion/report.html").exists():
        test_the_page_runs(folder, monkeypatch, capsys)
    monkeypatch.chdir(folder)
    names = {}
    for language, code in pages.blocks(DOCS["how_to"], "python", "sh"):
        if language == "python":
            _python(code, names)
        else:
            _shell(code)
    said = capsys.readouterr().out
    assert "elpd_diff" in said
    assert '"kilojoules_a_mole": [' in (folder / "runs/relion/landscape.json").read_text()
    assert (folder / "movie/z2/z2.cxc").exists()


def test_the_page_on_audits_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for _, code in pages.blocks(DOCS["audit"], "sh"):
        _shell(code)
    assert (folder / "audit/both/audit.html").exists()


@pytest.mark.parametrize("page", ["identified", "structures"])
def test_python_of_pages_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for _, code in pages.blocks(DOCS[page], "python"):
        _python(code, names)
    assert {"identified": "identified", "structures": "of"}[page] in capsys.readouterr().out


def test_no_page_has_code_that_is_not_run():
    run = {"from_relion_to_a_verdict", "how_to", "audit", "identified", "structures", *ELSEWHERE}
    assert {page for page, text in DOCS.items() if pages.blocks(text, "python", "sh")} == run


@pytest.mark.parametrize("page", DOCS)
def test_links_lead_somewhere(page):
    assert not pages.dangling(ROOT / "docs" / f"{page}.md")


def test_the_index_has_all_pages():
    linked = set(re.findall(r"\]\((\w+)\.md\)", DOCS["README"]))
    assert linked == set(DOCS) - {"README"}
    assert "](docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_model_is_in_the_table():
    for path in (ROOT / "models").glob("*.py"):
        assert f"(../models/{path.name})" in DOCS["results"]
