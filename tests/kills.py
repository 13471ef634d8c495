"""Runs that are killed (SIGKILL) at random moments of training and of writing, and resumed.

``python tests/kills.py 10`` kills ten runs; ``python tests/kills.py 10 1`` others. After each,
the folder must be readable: every file whole or absent, every reader a result or one line. Then
``--resume`` must reach the history, metrics, weights and posterior of a run that nobody killed, to
the last bit. Files of ``pyrocryo simulate`` and ``export`` must be whole or absent, too.
"""

import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import pyrocryo as pc
from pyrocryo import draws, frames, io, metrics, plots, report, svi  # noqa: F401  (before forks)
from pyrocryo.cli import main
from pyrocryo.cli.latents import posterior
from pyrocryo.io import mrc, star
from pyrocryo.svi import checkpoints

MODEL = '''
from dataclasses import dataclass
import pyrocryo as pc
from pyrocryo.svi import checkpoints
checkpoints.EVERY = 10

@dataclass
class Config:
    """None."""

def pair(config, particles):
    return pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(hidden=(8,)), 16)
'''
WORDS = ["--steps", "150", "--batch-size", "8", "--seeds", "2", "--together", "1"]
WORDS += ["--draws", "2", "--held-out", "4"]


class Runs:
    """Runs of one small model, in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tiny.py").write_text(MODEL)
        pc.io.save(pc.simulate.poses(pc.molecules.TwoArms(), n=40, seed=0, box=16), self.data)
        child = self.start(*self.fit("whole"))
        self.begins("whole", "checkpoint.pt", child)
        begun = time.monotonic()
        self.begins("whole", "config.json", child)
        self.training = time.monotonic() - begun
        if code := _code(child):
            raise SystemExit(f"a run that nobody killed ended with {code}: see {folder}/log")
        self.writing = time.monotonic() - begun - self.training
        self.whole = self.result("whole")

    @property
    def data(self) -> Path:
        return self.folder / "particles.star"

    def fit(self, out: str) -> list[str]:
        model, data = str(self.folder / "tiny.py"), str(self.data)
        return ["fit", model, "--data", data, *WORDS, "--out", str(self.folder / out)]

    def start(self, *words: str) -> int:
        """Forks, so that what takes seconds to import is there."""
        child = os.fork()
        if child:
            return child
        log = os.open(self.folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 99
        try:
            code = main(list(words))
        finally:
            os._exit(code)

    def result(self, out: str) -> dict:
        """What must agree between two runs, to the last bit."""
        folder = self.folder / out
        done = checkpoints.read(folder / "checkpoint.pt")["done"]
        rows, z = posterior(folder)
        return {
            "history.csv": (folder / "history.csv").read_bytes(),
            "metrics.json": (folder / "metrics.json").read_bytes(),
            "weights": {
                (seed, name): value.numpy().tobytes()
                for seed, saved in done.items()
                for name, value in saved["pair"].items()
            },
            "posterior": (rows.tobytes(), z.tobytes()),
        }

    def begins(self, out: str, mark: str, child: int) -> None:
        """Waits for a file."""
        while not (self.folder / out / mark).exists():
            if os.waitpid(child, os.WNOHANG)[0]:
                raise SystemExit(f"{out} ended without {mark}: see {self.folder}/log")
            time.sleep(0.001)

    def killed(self, n: int, rng: random.Random) -> str:
        """Kills a run in training or, every second time, in writing; says what was left."""
        name, late = f"k{n}", n % 2 == 1
        folder = self.folder / name
        child = self.start(*self.fit(name))
        self.begins(name, "config.json" if late else ".", child)
        wait = rng.uniform(0, self.writing if late else self.training)
        time.sleep(wait)
        told = _kill(child)
        files = check_folder(folder)
        left = "none"
        if (folder / "checkpoint.pt").exists():
            content = checkpoints.read(folder / "checkpoint.pt")
            current = content["current"]
            left = f"seeds {list(content['done'])} done"
            left += f", step {current['steps']} of another" if current else ""
        if code := _code(self.start(*self.fit(name), "--resume")):
            raise SystemExit(f"resumed, {name} ended with {code}: see {self.folder}/log")
        found = self.result(name)
        for key, value in self.whole.items():
            if found[key] != value:
                raise SystemExit(f"resumed, {name} has another {key}")
        when = "writing" if late else "training"
        return f"{when}, {wait:.2f} s in: {told}; {files} files, checkpoint {left}; same numbers"

    def killed_writer(self, n: int, rng: random.Random) -> str:
        """Kills what writes particles; what has its name is whole."""
        out = self.folder / f"w{n}.star"
        kind = rng.choice(("simulate", "export"))
        words = ["simulate", "poses", str(out), "--n", "3000"]
        if kind == "export":
            words = ["export", str(self.folder / "whole"), "--seed", "0", "--out", str(out)]
        child = self.start(*words)
        wait = rng.uniform(0, 1.5)
        time.sleep(wait)
        told = _kill(child)
        stack = out.with_suffix(".mrcs")
        if kind == "simulate" and stack.exists():
            assert mrc.read_header(stack).shape[0] == 3000
        if out.exists():
            rows = len(star.read(out)["particles"]["rlnImageName"])
            assert rows == (3000 if kind == "simulate" else 40)
            assert kind == "export" or stack.exists()
        return f"{kind}, {wait:.2f} s in: {told}; {'file whole' if out.exists() else 'no file'}"


def check_folder(folder: Path) -> int:
    """Reads all that a killed run left; returns how many files with names of their own."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name[0] != "."]
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".mrc", ".mrcs"):
            np.asarray(mrc.read_header(path).shape)
        elif path.suffix == ".pt":
            checkpoints.read(path)
        elif path.suffix == ".png":
            assert path.read_bytes()[-8:-4] == b"IEND"
        elif path.suffix == ".csv":
            assert path.read_text().endswith("\n")
        elif path.suffix == ".nc":
            posterior(folder)
    for read in (report.write, lambda f: report.compare([f]), io.load_fit, posterior):
        try:
            read(folder)
        except pc.InputError as error:
            if str(folder) not in str(error):
                raise
    return len(files)


def _code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kill(child: int) -> str:
    try:
        os.kill(child, signal.SIGKILL)
        code = _code(child)
    except (ProcessLookupError, ChildProcessError):
        return "already done"
    return "killed" if code == -signal.SIGKILL else "already done"


if __name__ == "__main__":
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    place = Path(tempfile.mkdtemp())
    runs = Runs(place)
    print(f"trains {runs.training:.1f} s, writes {runs.writing:.1f} s", flush=True)
    for n in range(int(sys.argv[1])):
        print(n, runs.killed(n, rng), flush=True)
        print(n, runs.killed_writer(n, rng), flush=True)
    shutil.rmtree(place)
