import json

import numpy as np
import pytest

from pyrocryo.bench import step, timing
from pyrocryo.cli import main


def test_a_row_holds_medians_and_the_spread_of_ratios():
    row = timing.row("it", [1.0, 2.0, 4.0], [3.0, 4.0, 4.0])
    assert row == {"name": "it", "ours": 2.0, "other": 4.0, "ratio": 2.0, "spread": [1.0, 3.0]}
    head, line = timing.table([row]).split("\n")
    assert "ratio" in head
    assert line.split() == ["it", "2000.000", "4000.000", "2.00", "1.00", "to", "3.00"]


def test_sides_are_timed_as_often_as_they_are_said_to_count():
    calls = {"ours": 0, "other": 0}

    def side(name):
        def call():
            calls[name] += 1
            sum(range(20_000))

        return call

    row = timing.compared("it", side("ours"), side("other"), "cpu", repeats=3, of=5)
    assert 2 < row["ratio"] < 12  # five calls against one
    assert min(calls.values()) > 3


def test_the_command_prints_a_table_and_writes_json(monkeypatch, tmp_path, capsys):
    rows = [timing.row("one", [1.0], [2.0]), timing.row("two", [1.0], [3.0])]
    asked = []
    monkeypatch.setattr(step, "rows", lambda *args: asked.append(args) or iter(rows))
    out = tmp_path / "bench.json"
    assert main(["bench", "--only", "step", "--quick", "--out", str(out)]) == 0
    assert asked == [("cpu", True)]
    printed = capsys.readouterr().out
    assert printed.count("lowest to highest") == 1
    assert "one" in printed
    found = json.loads(out.read_text())
    assert [row["ratio"] for row in found] == [2.0, 3.0]
    assert found[0]["part"] == "step"
    assert set(found[0]) == {"part", "name", "ours", "other", "ratio", "spread"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "nowhere/bench.json"], "out: there is no folder nowhere"),
        (["--device", "gpu"], "device: 'gpu' is not to be had"),
        (["--only", "steps"], "steps"),
    ],
)
def test_bad_input_is_told(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.benchmark
def test_steps_of_svi_by_hand_and_ours(capsys):
    found = list(step.rows("cpu", quick=True))
    with capsys.disabled():
        print("\n" + timing.table(found))
    assert all(np.isfinite(row["ratio"]) for row in found)
