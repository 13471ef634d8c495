"""``pyrocryo rehearse``: a trained model as the ground truth of candidates."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from pyrocryo.cli.fit import command
from pyrocryo.cli.parse import options
from pyrocryo.errors import InputError

__all__ = ["Rehearse"]


@dataclass
class Rehearse:
    """Take a trained model for the truth, simulate from it, and see which models find its latents.

    The procedure of section 4.1 of Klindt et al. (2024): verify that the model is invertible, draw
    conformations and poses, decode them, add white noise as strong as it learned, train candidates
    on these particles (as `pyrocryo fit` does) and score them against what was drawn.
    Runs the model file that the run folder keeps.
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder of the trained model, of `pyrocryo fit`."""
    models: tuple[str, ...] = ()
    """Candidates: model files, each in quotes with options of its own if it has any, such as
    models/vae.py "models/slowvae.py --gamma 10"."""
    kind: Literal["time-resolved", "temperature", "poses"] = "time-resolved"
    """What to simulate; see `pyrocryo simulate`."""
    n: int = 8000
    """Particles to simulate (molecules, where they have frames)."""
    data_seed: int = 0
    """Seed of the simulated particles."""
    snr: float | None = None
    """Variance of the clean images over that of the noise (default: as the model learned it)."""
    learned_seed: int | None = None
    """Which seed of the trained model (default: the one with the lowest loss)."""
    seeds: int = 1
    """How many seeds of each candidate to train."""
    steps: int | None = None
    """Optimiser steps of each candidate (default: what its model file says)."""
    anyway: bool = False
    """Go on even if the model is not invertible."""
    out: Path = Path("runs/rehearsal")
    """Folder to make: particles, a run folder for each candidate, rehearsal.json, compare.json."""

    def run(self) -> None:
        """Simulates, trains, and prints the table."""
        from pyrocryo import diagnose, io, report, simulate

        if self.out.is_dir() and any(self.out.iterdir()):
            raise InputError(f"out: {self.out} is not empty; name a new folder")
        candidates = self._candidates()
        draw = getattr(simulate, self.kind.replace("-", "_"))
        fit, particles = io.load_fit(self.run_folder)
        seed = self.learned_seed
        if seed is None:
            ends = fit.history["loss"][:, -max(1, fit.settings.steps // 10) :].mean(axis=1)
            seed = fit.seeds[int(ends.argmin())]
        learned = diagnose.Generator(fit, particles.train, seed=seed)
        imaging = learned.imaging | ({} if self.snr is None else {"snr": self.snr})
        told = diagnose.invertibility(learned, particles.test if particles.has_test else particles)
        print(f"{self.run_folder}, seed {seed}: {told.sentence}")
        if not told.passed and not self.anyway:
            raise InputError(
                f"{self.run_folder}: not invertible, so its latents cannot be asked for again; "
                "train it better, with fewer latents, or go on with --anyway"
            )
        out = io.new_folder(self.out)
        drawn = draw(learned, self.n, self.data_seed, **imaging)
        io.save(drawn, out / "particles.star")
        content = {
            "run": str(self.run_folder),
            "seed": seed,
            "kind": self.kind,
            "imaging": imaging,
            "z_mean": learned.mean.tolist(),
            "z_sd": learned.sd.tolist(),
            "invertibility": {
                name: value.tolist() if hasattr(value, "tolist") else value
                for name, value in dataclasses.asdict(told).items()
            },
            "candidates": candidates,
        }
        io.write_json(out / "rehearsal.json", content)
        for name, words in candidates.items():
            print(f"\n{name}: {words}")
            candidate = self._candidate(words, out / name)
            # scores of the model file's own may take the molecule for one that it simulates
            candidate.further = lambda _, __, fit, scored, ___: _intervened(fit, learned, scored)
            candidate.run()
        print()
        print(report.compare([out / name for name in candidates], out=out / "compare.json"))

    def _candidates(self) -> dict[str, str]:
        """The words of each candidate by the name of its run folder; checks all of them."""
        if not self.models:
            raise InputError("models: name at least one model file to train")
        found: dict[str, str] = {}
        for words in self.models:
            first, *_ = _split(words) or [""]
            stem, n = Path(first).stem, 1
            while (name := stem if n == 1 else f"{stem}-{n}") in found:
                n += 1
            self._candidate(words, self.out / name)
            found[name] = words
        return found

    def _candidate(self, words: str, out: Path) -> Any:
        """The ``fit`` of a candidate."""
        first, *own = _split(words) or [""]
        told = ["--seeds", str(self.seeds)]
        if self.steps is not None:
            told += ["--steps", str(self.steps)]
        files = ["--data", str(self.out / "particles.star"), "--out", str(out)]
        line = [first, *told, *own, *files]  # the last word on an option counts
        return options(command(line), line, f"The candidate {words}.")


def _intervened(fit: Any, learned: Any, scored: Any) -> dict[str, Any]:
    """The two of the paper's eight metrics that intervene, in the learned molecule."""
    from pyrocryo import diagnose, metrics

    if learned.dim < 2:
        return {}
    try:
        world = diagnose.simulator(fit, learned, scored)
    except InputError as error:
        print(f"no BetaVAE, no FactorVAE: {error}")
        return {}
    many = min(4000, max(100, 5 * len(scored)))  # few particles deserve no precise score
    return {
        "betavae": metrics.betavae(*world, pool=many),
        "factorvae": metrics.factorvae(*world, pool=many // 40 + 1),
    }


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError as error:  # a quote that does not end
        raise InputError(f"models: {words}: {error}") from None
