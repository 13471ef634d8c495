"""A run folder opened again: its fit, and the particles that were fitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from pyrocryo import frames
from pyrocryo.errors import InputError
from pyrocryo.files import read_json
from pyrocryo.io import load, read_map
from pyrocryo.io.foreign import no_run
from pyrocryo.io.model_file import FOCUS, KEPT, SIMULATED, load_model
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit, reopen

__all__ = ["load_fit"]

PLAIN = (bool, int, float, str, tuple)
ENTRIES = {  # of config.json, and what each may be
    "source": (str,),
    "model": (str,),
    "seconds": (float, int),
    "options": (dict, NoneType),
    "poses": (str, NoneType),
    "pixel_size": (float, int, NoneType),
    "folder": (str, NoneType),
    "body": (str, NoneType),
    "focus": (str, NoneType),
}


def load_fit(
    folder: str | Path, *, model: str | Path | None = None, particles: Particles | None = None
) -> tuple[Fit, Particles]:
    """The fit in a run folder of ``pyrocryo fit``, and its particles.

    Runs the model file: the copy in the folder, or the one named. Open folders of
    people whose code you would run.

    Args:
        folder: The run folder.
        model: Another copy of the model file.
        particles: The particles that were fitted; by default they are read or simulated again, as
            ``config.json`` says. Either way they must be the same to the last digit.

    Raises:
        InputError: If the folder is not that of a finished run, or model or particles are others.
    """
    folder = Path(folder)
    config = _config(folder / "config.json")
    module = load_model(_model(folder, model, config))
    options = _options(module.Config, config.get("options") or {})
    if particles is None:
        particles = _particles(module, options, config)
    pair = module.pair(options, particles)
    if config.get("focus") is not None:
        if not hasattr(pair.volume, "focus_on"):
            raise InputError(f"{folder / 'config.json'}: its volume takes no focus mask")
        pair.volume.focus_on(read_map(folder / FOCUS)[0])
    fit = reopen(pair, particles, folder / "checkpoint.pt")
    fit.seconds = float(config["seconds"])
    if config.get("body") is not None:
        own = config["body"] != "auto"
        body = read_map(config["body"])[0] if own else None
        fit = frames.reference_body(fit, particles.train, body)
    return fit, particles


def _config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except InputError:
        if path.exists():
            raise
        raise no_run(path.parent, path.name) from None
    missing = [name for name in ("source", "model", "seconds") if name not in config]
    if missing:
        raise InputError(
            f"{path}: not from pyrocryo fit, it has no {missing[0]!r}; "
            "pyrocryo.svi.reopen opens a checkpoint with a pair of your own"
        )
    for name, kinds in ENTRIES.items():
        value = config.get(name)
        if type(value) not in kinds or value != value or isinstance(value, str) and "\0" in value:
            what = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            raise InputError(f"{path}: {name} is {value!r}, expected {what}")
    return config


def _model(folder: Path, model: str | Path | None, config: Mapping[str, Any]) -> Path:
    if model is not None:
        return Path(model)
    kept = folder / KEPT
    return kept if kept.is_file() else Path(config["model"])  # of folders without a copy


def _options(kind: type, saved: Mapping[str, Any]) -> Any:
    """The options of a model file, as JSON kept them."""
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(saved) - names):
        raise InputError(f"model: the run had an option {unknown[0]}, which this model has not")
    saved = {n: tuple(v) if isinstance(v, list) else v for n, v in saved.items()}
    default = vars(kind())
    for name, value in saved.items():
        like = default[name]
        plain = type(like) in PLAIN and value is not None
        numbers = isinstance(value, int | float) and isinstance(like, int | float)
        if plain and not numbers and type(value) is not type(like):
            raise InputError(
                f"config.json: option {name} is {value!r}, expected something like {like!r}"
            )
    return kind(**saved)


def _particles(module: Any, options: Any, config: Mapping[str, Any]) -> Particles:
    if config["source"] == SIMULATED:
        return module.particles(options)
    given = {name: config.get(name) for name in ("passthrough", "poses", "pixel_size")}
    if config.get("folder") is not None:
        given["folder"] = config["folder"]
    read = load(config["source"], **given)
    invert = bool(config.get("invert"))
    return read.prepared(config.get("downsample"), invert=invert).standardised()
