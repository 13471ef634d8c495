"""Fits that are killed, asked to stop, or fail: what is left can be gone on with, to the digit."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.errors import Interrupted
from pyrocryo.svi import checkpoints
from pyrocryo.svi.interrupts import held_back
from pyrocryo.svi.step import Step

OPTIONS = {"steps": 10, "batch_size": 8, "seeds": 2, "together": 1}

KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
import pyrocryo as pc
from pyrocryo import files
from pyrocryo.svi import checkpoints
from pyrocryo.svi.step import Step

checkpoints.EVERY = 3
particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=40, seed=0, box=16)
pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(hidden=(8,)), 16)

def fit(path, **options):
    options |= {"steps": 10, "batch_size": 8, "seeds": 2, "together": 1}
    return pc.fit(pair, particles, checkpoint=path, **options)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(original, when, dies):
    calls = iter(range(1000))
    def call(*args, **kwargs):
        return dies(original, *args) if next(calls) == when else original(*args, **kwargs)
    return call

def in_a_step(original, *args):
    kill()

def half_written(original, content, path):
    whole = checkpoints.io.BytesIO()
    torch.save(content, whole)
    with files.replacing(path) as temporary:
        temporary.write_bytes(whole.getvalue()[:5000])
        kill()

def before_its_name(original, *args):
    kill()

MOMENTS = {
    "in a step": lambda: setattr(Step, "__call__", counted(Step.__call__, 14, in_a_step)),
    "half a checkpoint": lambda: setattr(
        checkpoints, "_write", counted(checkpoints._write, 5, half_written)
    ),
    "before its name": lambda: setattr(os, "replace", counted(os.replace, 2, before_its_name)),
}
whole = fit(sys.argv[1] + "/whole.pt")
for n, (name, arrange) in enumerate(MOMENTS.items()):
    path = f"{sys.argv[1]}/{n}.pt"
    child = os.fork()
    if not child:
        arrange()
        fit(path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, name
    left = checkpoints.read(checkpoints.Path(path))
    again = fit(path, resume=True)
    assert (again.history["loss"] == whole.history["loss"]).all(), name
    for a, b in zip(again.pairs, whole.pairs):
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key]), (name, key)
    current = left["current"]
    print(name, list(left["done"]), current and current["steps"])
print(sorted(os.listdir(sys.argv[1])))
"""


def test_killed_fits_go_on_to_the_same_numbers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "in a step [0] 3",
        "half a checkpoint [0] 3",
        "before its name [] 6",
        "['0.pt', '1.pt', '2.pt', 'whole.pt']",  # and no half file
    ]


@pytest.fixture(autouse=True)
def heard():
    """A process begun in the background of a shell ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 3)
    particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=40, seed=0, box=16)
    return pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(hidden=(8,)), 16
    ), particles


def _at(monkeypatch, when, act):
    """Has ``act`` called once, in step ``when``."""
    original, calls = Step.__call__, iter(range(10**6))

    def call(*args):
        if next(calls) == when:
            act()
        return original(*args)

    monkeypatch.setattr(Step, "__call__", call)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_after_the_step_and_what_was_done_is_saved(
    small, tmp_path, monkeypatch, number
):
    path = tmp_path / "c.pt"
    whole = pc.fit(*small, **OPTIONS)
    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        _at(patched, 13, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=rf"by {number.name} after step 4 of 10 of seed 1"):
            pc.fit(*small, checkpoint=path, **OPTIONS)
    assert signal.getsignal(number) is before
    left = checkpoints.read(path)
    assert (list(left["done"]), left["current"]["steps"]) == ([0], 4)
    again = pc.fit(*small, checkpoint=path, resume=True, **OPTIONS)
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])


def test_a_second_ctrl_c_does_not_wait(small, tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    _at(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt) as stopped:
        pc.fit(*small, checkpoint=tmp_path / "c.pt", **OPTIONS)
    assert not isinstance(stopped.value, Interrupted)
    assert checkpoints.read(tmp_path / "c.pt")["current"]["steps"] == 3


def test_without_a_checkpoint_signals_do_what_they_did(small, monkeypatch):
    _at(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as stopped:
        pc.fit(*small, **OPTIONS)
    assert not isinstance(stopped.value, Interrupted)


def test_a_signal_after_the_last_step_is_not_lost():
    alone = SimpleNamespace(world=1)
    with pytest.raises(KeyboardInterrupt), held_back(alone, on=True):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_was_heard_is_not_given_again():
    with held_back(SimpleNamespace(world=1), on=True) as asked:
        assert asked(0) == 0
    with pytest.raises(Interrupted):
        _interrupted()


def _interrupted():
    with held_back(SimpleNamespace(world=1), on=True) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        raise Interrupted(asked(0), "here")


def test_signals_that_are_ignored_stay_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a shell's background, nohup
    with held_back(SimpleNamespace(world=1), on=True) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked(0) == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


MODEL = """
from dataclasses import dataclass
import pyrocryo as pc

@dataclass
class Config:
    '''None.'''

def particles(config):
    return pc.simulate.time_resolved(pc.molecules.TwoArms(), n=40, seed=0, box=16)

def pair(config, particles):
    return pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(hidden=(8,)), 16)
"""


def test_the_command_says_how_to_go_on(tmp_path, monkeypatch, capsys, caplog):
    model = tmp_path / "tiny.py"
    model.write_text(MODEL)

    def run(out, *more):
        words = ["--steps", "6", "--batch-size", "8", "--draws", "2", "--out", str(tmp_path / out)]
        return main(["fit", str(model), *words, *more])

    assert run("whole") == 0
    with monkeypatch.context() as patched:
        _at(patched, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        capsys.readouterr()
        assert run("stopped") == 143
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pyrocryo: stopped by SIGTERM after step 3 of 6 of seed 0; ")
    assert "stopped/checkpoint.pt holds it, --resume goes on from there" in last
    assert run("stopped", "--resume") == 0
    for name in ("history.csv", "metrics.json"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()
    # killed before there was a checkpoint
    (tmp_path / "early").mkdir()
    with monkeypatch.context() as patched:
        _at(patched, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run("early", "--resume") == 143
    assert "early yet: training starts from the beginning" in caplog.text
    assert "after step 1 of 6" in capsys.readouterr().err


def _intact(path, *steps):
    left = checkpoints.read(path)
    assert left["current"]["steps"] in steps
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".pt"] == [path.name]


def test_a_full_disk_leaves_the_last_checkpoint(small, tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    _at(monkeypatch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))
    try:
        with pytest.raises(OSError, match="the last one stays as it was") as stopped:
            pc.fit(*small, checkpoint=path, **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in str(stopped.value)
    _intact(path, 3)


def test_a_stack_cut_short_under_a_fit(small, tmp_path, monkeypatch):
    pair, particles = small
    pc.io.save(particles, tmp_path / "p.star")
    monkeypatch.setattr("pyrocryo.svi.feed._fits", lambda *_: False)  # too large for memory
    read = pc.io.load(tmp_path / "p.star")
    _at(monkeypatch, 4, lambda: os.truncate(tmp_path / "p.mrcs", 3000))
    with pytest.raises(pc.InputError, match=r"p\.mrcs: changed since it was opened"):
        pc.fit(pair, read, checkpoint=tmp_path / "c.pt", **OPTIONS)
    _intact(tmp_path / "c.pt", 3, 6)  # some batches were read ahead


def test_numbers_that_are_none_leave_the_last_checkpoint(small, tmp_path, monkeypatch):
    pair, particles = small
    original = Step.__call__

    def spoil(step, *args):
        with torch.no_grad():
            step.stack.theta[:] = torch.nan
        return original(step, *args)

    calls = iter(range(100))
    monkeypatch.setattr(
        Step, "__call__", lambda *args: (spoil if next(calls) == 5 else original)(*args)
    )
    with pytest.raises(FloatingPointError, match="seed 0, step 5"):
        pc.fit(pair, particles, checkpoint=tmp_path / "c.pt", **OPTIONS)
    _intact(tmp_path / "c.pt", 3)


def test_a_full_gpu_leaves_the_last_checkpoint(small, tmp_path, monkeypatch):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    whole = pc.fit(*small, **OPTIONS)
    with monkeypatch.context() as patched:
        _at(patched, 14, full)
        with pytest.raises(pc.InputError, match="batch_size: 8 particles do not fit into the mem"):
            pc.fit(*small, checkpoint=tmp_path / "c.pt", **OPTIONS)
    _intact(tmp_path / "c.pt", 3)
    again = pc.fit(*small, checkpoint=tmp_path / "c.pt", resume=True, **OPTIONS)
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])


def test_an_image_that_is_no_number_is_named(small, tmp_path, capsys):
    """Before there is a folder."""
    _, particles = small
    pc.io.save(particles, tmp_path / "p.star")
    images = np.memmap(tmp_path / "p.mrcs", np.float32, "r+", 1024, (80, 16, 16))
    images[17, 3, 4] = np.nan
    images.flush()
    (tmp_path / "tiny.py").write_text(MODEL)
    words = ["--data", str(tmp_path / "p.star"), "--out", str(tmp_path / "run"), "--steps", "3"]
    assert main(["fit", str(tmp_path / "tiny.py"), *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pyrocryo: images: particle 8 has pixels that are not finite numbers")
    assert not (tmp_path / "run").exists()


WORKER = """
import os, signal
from pyrocryo.svi import checkpoints
from pyrocryo.svi.step import Step
checkpoints.EVERY = 3
if os.environ.get("LOCAL_RANK") == "1":  # the second of two processes
    original, calls = Step.__call__, iter(range(1000))
    def call(*args):
        if next(calls) == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    Step.__call__ = call
"""


def test_a_killed_worker_is_told_and_leaves_the_last_checkpoint(tmp_path):
    (tmp_path / "tiny.py").write_text(WORKER + MODEL)
    words = ["--steps", "12", "--batch-size", "8", "--devices", "2", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "pyrocryo.cli", "fit", "tiny.py", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pyrocryo: devices: another of 2 processes that train together is gone")
    assert "run/checkpoint.pt stays, --resume goes on from there" in last
    _intact(tmp_path / "run" / "checkpoint.pt", 6)
