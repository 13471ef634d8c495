"""``pyrocryo fit``: train a model file and write a run folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import tyro

from pyrocryo.cli.device import there
from pyrocryo.cli.parse import unset
from pyrocryo.errors import InputError

__all__ = ["Fit", "command"]

log = logging.getLogger("pyrocryo")


@dataclass
class Fit:
    """Train a model file on simulated particles or on yours, and write a run folder.

    A model file (see models/) adds its own options: `pyrocryo fit models/slowvae.py --help`.
    Where steps, rates and weights are not given, they are those that it sets, or pc.fit's.
    """

    model: tyro.conf.Positional[Path]
    """Model file."""
    out: Path | None = None
    """Run folder to make (default: runs/ and the name of the model file)."""
    data: Path | None = None
    """Particles: a RELION .star file, a cryoSPARC .cs file or an .mrcs stack (default: the model
    simulates its own)."""
    passthrough: Path | None = None
    """The passthrough .cs file that goes with --data PARTICLES.cs."""
    poses: Path | None = None
    """Poses in cryoDRGN's form (.pkl), for particles that come without."""
    pixel_size: float | None = None
    """Å per pixel, for particles that do not say."""
    folder: Path | None = None
    """Where the image paths in --data start (default: looked for around the file)."""
    downsample: int | None = None
    """Box (even) to Fourier-crop the particles of --data to; their pixels get wider."""
    invert: bool = False
    """The particles of --data are darker than their background: change the sign."""
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
    focus: Path | None = None
    """Soft mask .mrc, as wide as the particles' box: nothing outside of it moves with z."""
    halves: bool = False
    """Also train the first seed on each half of the particles, and compare maps along z."""
    order: Literal["own", "shared"] | None = None
    """Seeds see the particles in an order of their own, or in one and the same."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""
    devices: int = 1
    """How many of them, each with a process and its share of every batch."""
    precision: Literal["float32", "tf32", "bf16"] | None = None
    """Of matrix products (tf32) or networks (bf16) while training; all else is float32."""
    capture: bool | Literal["compile"] | None = None
    """Trace the training step into one graph, or compile it as well (default: where it pays)."""
    resume: bool = False
    """Go on from the checkpoint in the run folder, if there is one."""

    def run(self) -> None:
        """Trains the model, and writes and reports what came of it."""
        from pyrocryo import draws, frames, io, metrics, report, svi
        from pyrocryo.halves import check_halves, half_maps
        from pyrocryo.io.model_file import FOCUS, SIMULATED, keep_model

        model, config = self._model_and_config()
        shown = {"draws": 50, "held_out": 800} | getattr(model, "posterior", {})
        shown |= {name: getattr(self, name) for name in shown if getattr(self, name) is not None}
        for name, value in shown.items():
            if value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")
        particles = self._particles(model, config)
        pair = model.pair(config, particles)
        mask = self._focused(pair, particles)
        settings = model.training(config) if hasattr(model, "training") else {}
        for name in svi.Settings.__dataclass_fields__:
            if getattr(self, name, None) is not None:
                settings[name] = getattr(self, name)
        device = there(self.device)
        body = io.read_map(self.body)[0] if isinstance(self.body, Path) else None
        if self.body is not None:
            frames.check_body(pair, particles.train, body)
        if body is not None and self.seeds > 1:
            raise InputError(
                f"body: each seed has an angle of its own, so {self.body} cannot go with "
                f"{self.seeds} of them; use --seeds 1, or --body auto"
            )
        half = self._half_sets() if self.halves else None
        if self.halves:
            check_halves(pair)
        where = {"device": device, "devices": self.devices, "together": self.together}
        svi.prepare(pair, particles, self.seeds, settings, **where)  # before there is a folder
        out = self.out or Path("runs") / self.model.stem
        if svi.first_process(self.devices):
            out = io.new_folder(out, resume=self.resume)
            if self.resume and not (out / "checkpoint.pt").exists():
                log.info("no checkpoint in %s yet: training starts from the beginning", out)
            if mask is not None:
                io.write_map(out / FOCUS, *mask)
        else:
            log.setLevel(logging.WARNING)
        fit = svi.fit(
            pair,
            particles,
            seeds=self.seeds,
            **where,
            capture=self.capture,
            checkpoint=out / "checkpoint.pt",
            resume=self.resume and (out / "checkpoint.pt").exists(),
            **settings,
        )
        if not svi.first_process(self.devices):
            return
        if self.body is not None:
            fit = frames.reference_body(fit, particles.train, body)
        scored = particles.test if particles.has_test else particles
        if not particles.has_test:
            log.warning("too few particles to hold any out: scored on those it was trained on")
        scored = scored.spread(shown["held_out"])
        post = draws.posterior(fit, scored, draws=shown["draws"])
        about = {
            "name": self.model.stem,
            "model": str(self.model),
            "options": dataclasses.asdict(config),
            "source": str(self.data.resolve()) if self.data else SIMULATED,
            "passthrough": str(self.passthrough.resolve()) if self.passthrough else None,
            "poses": str(self.poses.resolve()) if self.poses else None,
            "pixel_size": self.pixel_size,
            "folder": str(self.folder.resolve()) if self.folder else None,
            "downsample": self.downsample,
            "invert": self.invert,
            "body": None if self.body is None else str(self.body),
            "body_residual_deg": [p.frame.residual_deg for p in fit.pairs if p.frame],
            "focus": None if mask is None else str(self.focus),
            "device": self.device,
            "scored": {"particles": len(scored), "held_out": particles.has_test, **shown},
        }
        keep_model(self.model, out)
        verdict = io.export(fit, post, out, particles=particles, config=about)
        if extra := self.further(model, config, fit, scored, out):
            verdict["metrics"] |= {name: metrics.row(values) for name, values in extra.items()}
            io.write_metrics(out, verdict["metrics"])
        if self.halves:
            found = half_maps(
                pair,
                particles,
                halves=half,
                folder=out,
                device=device,
                capture=self.capture,
                **settings,
            )
            rows = io.write_halves(out, found)
            verdict["metrics"] |= {name: metrics.row(values) for name, values in rows.items()}
            io.write_metrics(out, verdict["metrics"])
            mean = rows["half_fsc143_angstroms"][0]
            print(f"half maps, aligned by {found.transfer.kind}: {mean:.3g} Å at FSC .143")
        page = report.write(out)
        print(report.compare([out]))
        print(verdict["identify"]["sentence"])
        print(f"report: {page}")

    def _half_sets(self) -> Any:
        """Which half each particle is in, where their file says so."""
        from pyrocryo import io

        if self.data is None:
            return None
        return io.read_halves(self.data, passthrough=self.passthrough)

    def _focused(self, pair: Any, particles: Any) -> tuple[Any, float] | None:
        """Confines what moves to the mask, if there is one; returns it and its voxel size."""
        from pyrocryo import io

        if self.focus is None:
            return None
        mask, voxel = io.read_map(self.focus)
        wide, box = len(mask) * voxel, particles.box * particles.pixel_size
        if voxel > 0 and abs(wide / box - 1) > 0.01:
            raise InputError(
                f"focus: {self.focus} is {wide:.4g} Å wide, the particles' box {box:.4g} Å"
            )
        if not hasattr(pair.volume, "focus_on"):
            raise InputError(
                f"focus: {type(pair.volume).__name__} cannot be confined to a mask, only grids "
                "and Gaussians can"
            )
        pair.volume.focus_on(mask)
        return mask, box / len(mask)

    def further(self, model: Any, config: Any, fit: Any, scored: Any, out: Path) -> dict[str, Any]:
        """What a model file scores beyond the metrics that all fits have."""
        return model.scores(config, fit, scored, out) if hasattr(model, "scores") else {}

    def _model_and_config(self) -> tuple[ModuleType, Any]:
        """What the parser loaded for the options' sake; it loads only files that end in .py."""
        if hasattr(self, "loaded"):
            return self.loaded, self.config
        model = loaded(self.model)
        return model, model.Config()

    def _particles(self, model: ModuleType, config: Any) -> Any:
        from pyrocryo import inspection, io

        if self.data is not None:
            given = {"passthrough": self.passthrough, "poses": self.poses}
            if self.folder is not None:
                given["folder"] = self.folder
            read = io.load(self.data, pixel_size=self.pixel_size, **given)
            read = read.prepared(self.downsample, invert=self.invert)
            if inspection.looks_dark(read):
                log.warning(
                    "%s: particles look darker than their background%s",
                    self.data,
                    " once inverted; was --invert meant?" if self.invert else "; see --invert",
                )
            return read.standardised()
        if not hasattr(model, "particles"):
            raise InputError(
                f"data: {self.model} simulates nothing; give it --data PARTICLES.star"
            )
        told = (
            self.poses, self.pixel_size, self.passthrough, self.folder, self.downsample,
        )  # fmt: skip
        if self.invert or any(value is not None for value in told):
            raise InputError(
                "poses, pixel-size, passthrough, folder, downsample and invert go with --data; "
                "the model simulates its own"
            )
        return model.particles(config)


def command(words: Sequence[str]) -> type[Fit]:
    """The command, with the options of the model file that ``words`` name."""
    files = [word for word in words if word.endswith(".py")]
    if not files:
        return Fit
    model = loaded(Path(files[0]))
    config = unset(model.Config)
    default = dataclasses.field(default_factory=config)
    option = ("config", tyro.conf.OmitArgPrefixes[config], default)
    known = {"loaded": model, "__doc__": Fit.__doc__}
    return dataclasses.make_dataclass("Fit", [option], bases=(Fit,), namespace=known)


def loaded(path: Path) -> ModuleType:
    """A model file as a module, none of whose options is one of the command's own."""
    from pyrocryo.io.model_file import load_model

    model = load_model(path)
    taken = {field.name for field in dataclasses.fields(Fit)}
    if both := sorted(taken & {field.name for field in dataclasses.fields(model.Config)}):
        raise InputError(f"model: {path} has an option {both[0]}, which is one of pyrocryo fit's")
    return model
