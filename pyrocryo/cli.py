"""The command line: ``pyrocryo fit | simulate | report | compare | bench``."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro

from pyrocryo.errors import InputError

__all__ = ["main"]

log = logging.getLogger("pyrocryo")


@dataclass
class Fit:
    """Train a model file on simulated particles or on yours, and write a run folder.

    A model file (see models/) adds its own options: `pyrocryo fit models/slowvae.py --help`.
    """

    model: tyro.conf.Positional[Path]
    """Model file."""
    out: Path | None = None
    """Run folder to make (default: runs/ and the name of the model file)."""
    data: Path | None = None
    """Particles: a RELION .star file or an .mrcs stack (default: the model simulates its own)."""
    poses: Path | None = None
    """Poses in cryoDRGN's form (.pkl), for particles that come without."""
    pixel_size: float | None = None
    """Å per pixel, for particles that do not say."""
    seeds: int = 1
    """How many seeds to train."""
    together: int | None = None
    """Most seeds to train at once (default: what fits on a GPU, and what pays on a CPU)."""
    steps: int | None = None
    """Optimiser steps."""
    batch_size: int | None = None
    """Particles a step."""
    lr: float | None = None
    """Peak learning rate."""
    beta: float | None = None
    """Weight of the KL; 1 is the ELBO."""
    gamma: float | None = None
    """Further weight of transition terms; 1 is the ELBO."""
    kl_warmup: int | None = None
    """Steps over which the KL comes in."""
    rigid_steps: int | None = None
    """Steps at first in which the molecule is kept rigid, so that poses are found first."""
    draws: int | None = None
    """Posterior draws a held-out particle (default: 50, or what the model file says)."""
    held_out: int | None = None
    """Most held-out particles in the posterior (default: 800, or what the model file says)."""
    body: Literal["auto"] | Path | None = None
    """Unknown in-plane poses: report them in the frame of what moves least (auto), or of a mask
    .mrc drawn on the median map of an earlier run of one seed (then with --resume)."""
    order: Literal["own", "shared"] | None = None
    """Seeds see the particles in an order of their own, or in one and the same."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""
    devices: int = 1
    """How many of them, each with a process and its share of every batch."""
    precision: Literal["float32", "tf32", "bf16"] | None = None
    """Of matrix products (tf32) or networks (bf16) while training; all else is float32."""
    capture: bool | None = None
    """Trace the training step into one graph (default: where there are steps enough to pay)."""
    resume: bool = False
    """Go on from the checkpoint in the run folder."""

    def run(self) -> None:
        from pyrocryo import draws, frames, io, metrics, report, svi

        model, config = self._model_and_config()
        shown = {"draws": 50, "held_out": 800} | getattr(model, "posterior", {})
        shown |= {name: getattr(self, name) for name in shown if getattr(self, name) is not None}
        for name, value in shown.items():
            if value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")
        particles = self._particles(model, config)
        pair = model.pair(config, particles)
        settings = model.training(config) if hasattr(model, "training") else {}
        for name in svi.Settings.__dataclass_fields__:
            if getattr(self, name, None) is not None:
                settings[name] = getattr(self, name)
        device = _device(self.device)
        body = io.read_map(self.body)[0] if isinstance(self.body, Path) else None
        if self.body is not None:
            frames.check_body(pair, particles.train, body)
        if body is not None and self.seeds > 1:
            raise InputError(
                f"body: each seed has an angle of its own, so {self.body} cannot go with "
                f"{self.seeds} of them; use --seeds 1, or --body auto"
            )
        where = {"device": device, "devices": self.devices, "together": self.together}
        svi.prepare(pair, particles, self.seeds, settings, **where)  # before there is a folder
        out = self.out or Path("runs") / self.model.stem
        if svi.first_process(self.devices):
            out = io.new_folder(out, resume=self.resume)
        else:
            log.setLevel(logging.WARNING)
        fit = svi.fit(
            pair,
            particles,
            seeds=self.seeds,
            **where,
            capture=self.capture,
            checkpoint=out / "checkpoint.pt",
            resume=self.resume,
            **settings,
        )
        if not svi.first_process(self.devices):
            return
        if self.body is not None:
            fit = frames.reference_body(fit, particles.train, body)
        scored = particles.test if particles.has_test else particles
        if not particles.has_test:
            log.warning("too few particles to hold any out: scored on those it was trained on")
        scored = scored.take(range(min(shown["held_out"], len(scored))))
        post = draws.posterior(fit, scored, draws=shown["draws"])
        about = {
            "name": self.model.stem,
            "model": str(self.model),
            "options": dataclasses.asdict(config),
            "source": str(self.data) if self.data else "simulated by the model file",
            "poses": str(self.poses) if self.poses else None,
            "body": None if self.body is None else str(self.body),
            "body_residual_deg": [p.frame.residual_deg for p in fit.pairs if p.frame],
            "device": self.device,
            "scored": {"particles": len(scored), "held_out": particles.has_test, **shown},
        }
        verdict = io.export(fit, post, out, particles=particles, config=about)
        if hasattr(model, "scores"):
            extra = model.scores(config, fit, scored, out)
            verdict["metrics"] |= {name: metrics.row(values) for name, values in extra.items()}
            io.write_metrics(out, verdict["metrics"])
        page = report.write(out)
        print(report.compare([out]))
        print(verdict["identify"]["sentence"])
        print(f"report: {page}")

    def _model_and_config(self) -> tuple[ModuleType, Any]:
        """What the parser loaded for the options' sake; it loads only files that end in .py."""
        if hasattr(self, "loaded"):
            return self.loaded, self.config
        model = _load_model(self.model)
        return model, model.Config()

    def _particles(self, model: ModuleType, config: Any) -> Any:
        from pyrocryo import io

        if self.data is not None:
            return io.load(self.data, poses=self.poses, pixel_size=self.pixel_size).standardised()
        if not hasattr(model, "particles"):
            raise InputError(
                f"data: {self.model} simulates nothing; give it --data PARTICLES.star"
            )
        if self.poses is not None or self.pixel_size is not None:
            raise InputError("poses and pixel-size go with --data; the model simulates its own")
        return model.particles(config)


@dataclass
class Simulate:
    """Simulate particles of the paper's molecule with arms, and write them as .star and .mrcs.

    The truth goes into extra columns of the star file.
    """

    kind: tyro.conf.Positional[
        Literal["poses", "time-resolved", "temperature", "single-shot", "tilt-pairs"]
    ]
    """Independent particles, frames in time, samples at three temperatures, particles seen once at
    a known time after mixing, or one conformation in several poses."""
    out: tyro.conf.Positional[Path]
    """Star file to write; the images go beside it as .mrcs."""
    n: int = 8000
    """Number of particles (molecules, where they have frames)."""
    arms: int = 2
    """Arms of the molecule: the number of its motions."""
    seed: int = 0
    """Seed of everything drawn."""
    snr: float = 1.0
    """Variance of the clean images over that of the noise."""
    box: int = 32
    """Pixels along an edge."""
    pixel_size: float = 3.0
    """Å per pixel."""
    scale: float = 0.5
    """Laplace scale of the steps of time-resolved particles, in standard deviations of z."""
    frames: int = 2
    """Frames of each molecule of time-resolved particles and tilt pairs."""
    steps: Literal["laplace", "student", "jump", "gaussian"] = "laplace"
    """Shape of the steps of time-resolved particles, all of the same variance."""
    boundary: Literal["reflected", "ar", "free"] = "reflected"
    """What keeps time-resolved particles near 0: folding at 3 standard deviations, a pull, or
    nothing."""
    correlation: float = 0.0
    """Of the components of time-resolved particles, at the start and in each step."""
    ctf: bool = False
    """Images are seen through CTFs of a 300 kV microscope, defocus .8 to 2.5 µm."""

    def run(self) -> None:
        from pyrocryo import io, molecules, simulate

        imaging = {"snr": self.snr, "box": self.box, "pixel_size": self.pixel_size}
        imaging["ctf"] = self.ctf
        own = {"tilt-pairs": ("frames",)}
        own["time-resolved"] = ("frames", "scale", "steps", "boundary", "correlation")
        for name in own["time-resolved"]:
            value = getattr(self, name)
            if name in own.get(self.kind, ()):
                imaging[name] = value
            elif value != getattr(Simulate, name):
                raise InputError(f"{name}: {self.kind} particles take no {name}, got {value}")
        draw = getattr(simulate, self.kind.replace("-", "_"))
        particles = draw(molecules.Arms(self.arms), self.n, self.seed, **imaging)
        io.save(particles, self.out)
        print(f"{particles!r} written to {self.out}")


@dataclass
class Report:
    """Write report.html again, from the files of a run folder."""

    run_folder: tyro.conf.Positional[Path]
    """Run folder."""

    def run(self) -> None:
        from pyrocryo import report

        print(report.write(self.run_folder))


@dataclass
class Compare:
    """Print one table over run folders, and how they differ from the first, seed by seed."""

    run_folders: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """Also write the differences (means, intervals, wins, p, ranks) to this JSON file."""

    def run(self) -> None:
        from pyrocryo import report

        if not self.run_folders:
            raise InputError("compare: name at least one run folder")
        print(report.compare(self.run_folders, out=self.out))


@dataclass
class Bench:
    """Time what pyrocryo does against how else it could be done, both sides in one run.

    Training steps against Pyro's SVI and against a loop by hand, many seeds at once against one
    after another, streamed against resident particles, projections of Gaussians, and cryoDRGN's
    training step, where it is installed.
    """

    out: Path | None = None
    """Also write the rows to this JSON file."""
    device: str = "cpu"
    """Where to run: cpu, cuda, ..."""
    only: tuple[Literal["step", "splat", "feed", "cryodrgn"], ...] = ()
    """Some of the parts."""
    quick: bool = False
    """Fewer and smaller runs: some four minutes on a CPU."""

    def run(self) -> None:
        import importlib

        from pyrocryo import io
        from pyrocryo.bench.timing import table

        device, found = _device(self.device), []
        if self.out is not None and not self.out.parent.is_dir():
            raise InputError(f"out: there is no folder {self.out.parent}")
        for part in self.only or ("step", "splat", "feed", "cryodrgn"):
            rows = importlib.import_module(f"pyrocryo.bench.{part}").rows(device, self.quick)
            for n, row in enumerate(rows):
                head, line = table([row]).split("\n")
                print(line if n else f"{part}\n{head}\n{line}", flush=True)
                found.append({"part": part, **row})
        if self.out is not None:
            io.write_json(self.out, found)
            print(f"written to {self.out}")


COMMANDS = {
    "fit": Fit,
    "simulate": Simulate,
    "report": Report,
    "compare": Compare,
    "bench": Bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; 2 for bad input, said in one line; 1 where training broke down.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    # ArviZ 0.23 announces 1.0 at each import
    warnings.filterwarnings("ignore", message="\\s*ArviZ is undergoing", category=FutureWarning)
    try:
        _parse(argv).run()
    except (InputError, OSError) as error:
        print(f"pyrocryo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"pyrocryo: training stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pyrocryo: interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(argv: list[str]) -> Any:
    commands = dict(COMMANDS)
    files = [word for word in argv[1:] if word.endswith(".py")]
    if argv[:1] == ["fit"] and files:  # the model file's own options become options of the command
        model = _load_model(Path(files[0]))
        default = dataclasses.field(default_factory=model.Config)
        option = ("config", tyro.conf.OmitArgPrefixes[model.Config], default)
        known = {"loaded": model, "__doc__": Fit.__doc__}
        commands["fit"] = dataclasses.make_dataclass(
            "Fit", [option], bases=(Fit,), namespace=known
        )
    union = Any
    for n, (name, command) in enumerate(commands.items()):
        member = Annotated[command, tyro.conf.subcommand(name, prefix_name=False)]
        union = member if n == 0 else union | member
    said = StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(union, prog="pyrocryo", description=__doc__, args=argv)
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro draws a box around several lines; bad input gets one
        text = " ".join(re.sub("[─│╭╮╰╯]+", " ", said.getvalue()).split())
        raise InputError(text) from None


def _load_model(path: Path) -> ModuleType:
    """Runs a model file and returns it as a module."""
    if not path.is_file():
        raise InputError(f"model: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"pyrocryo_model_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise InputError(f"model: {where}: {error.msg}") from None
    for name, kind in (("pair", inspect.isfunction), ("Config", dataclasses.is_dataclass)):
        if not kind(getattr(module, name, None)):
            raise InputError(
                f"model: {path} defines no {name}; a model file has a dataclass Config and a "
                "function pair(config, particles)"
            )
    taken = {field.name for field in dataclasses.fields(Fit)}
    if both := sorted(taken & {field.name for field in dataclasses.fields(module.Config)}):
        raise InputError(f"model: {path} has an option {both[0]}, which is one of pyrocryo fit's")
    return module


def _device(name: str) -> str:
    import torch

    with contextlib.suppress(RuntimeError, AssertionError):
        torch.empty(0, device=name)
        return name
    raise InputError(f"device: {name!r} is not to be had on this machine")


if __name__ == "__main__":
    sys.exit(main())
