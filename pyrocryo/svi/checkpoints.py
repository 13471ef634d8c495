"""Training state on disk: written whole or not at all, resumed to the same numbers."""

from __future__ import annotations

import io
import logging
import os
import pickletools
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.files import regular, replacing
from pyrocryo.pair import Pair

if TYPE_CHECKING:
    from pyrocryo.svi.devices import Machine
    from pyrocryo.svi.step import Step
    from pyrocryo.svi.train import Fit

__all__ = ["State", "agree", "put", "read", "write"]

log = logging.getLogger("pyrocryo")

EVERY = 200  # steps between two checkpoints
FORMAT = 2
COLUMNS = 4  # of a history
GLOBALS = (
    "torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch FloatStorage",
    "torch DoubleStorage", "torch HalfStorage", "torch BFloat16Storage", "torch LongStorage",
    "torch IntStorage", "torch ShortStorage", "torch CharStorage", "torch ByteStorage",
    "torch BoolStorage",
)  # fmt: skip


class State:
    """The checkpoint of a fit: trained seeds, and those in training.

    The file holds tensors, numbers and strings only, so that ``torch.load(weights_only=True)``
    reads it, and it can be resumed on any kind and number of devices (the random numbers go on
    where the kind is the same).

    Args:
        path: The file, or None for a fit that leaves none.
        key: What must agree for a checkpoint to be resumed: settings, seeds, data, model.
        resume: Start from the file.
        there: This process among those that train together; the first one writes.
    """

    def __init__(
        self, path: Path | None, key: dict[str, Any], resume: bool, there: Machine
    ) -> None:
        self.path = path
        self.there = there
        self.content: dict[str, Any] = {"format": FORMAT, "key": key, "done": {}, "current": None}
        if not resume:
            return
        content = read(path)
        agree(content, key, path)
        self.content = content
        if there.rank == 0:
            for half in path.parent.glob(f".{path.stem}.????????{path.suffix}"):
                half.unlink(missing_ok=True)  # of a process that was killed while it wrote

    @property
    def done(self) -> list[int]:
        """The seeds that are trained."""
        return list(self.content["done"])

    def trained(self, seed: int, pair: Pair) -> np.ndarray:
        """Puts the parameters of a seed that is done in place; returns its history."""
        saved = self.content["done"][seed]
        put(pair, saved["pair"], self.path)
        return saved["history"].numpy()

    @property
    def current(self) -> list[int]:
        """The seeds that were in training."""
        current = self.content["current"]
        return [] if current is None else list(current["seeds"])

    def restore(self, step: Step, history: np.ndarray) -> int:
        """Puts the state of the seeds in training in place; returns how many steps they had."""
        current = self.content["current"]
        if current is None:
            return 0
        for pair, saved in zip(step.stack.pairs, current["pairs"], strict=True):
            put(pair, saved, self.path)
        theta, moments = step.stack.theta, current["moments"]
        for name, value in moments.items():  # the fused optimiser writes past the end of others
            shape = () if name == "step" else theta.shape
            if value.shape != shape or (name != "step" and value.dtype != theta.dtype):
                raise InputError(
                    f"resume: {self.path} holds another model's {name} {tuple(value.shape)}, "
                    f"expected {tuple(shape)}"
                )
        try:
            step.set_moments(moments)
            if current["device"] != step.device.type:
                log.info("random numbers start afresh: the checkpoint is of another device")
            elif self.there.rank < len(current["chance"]):
                step.set_chance(current["chance"][self.there.rank])
        except (RuntimeError, ValueError, TypeError) as error:
            what = f"resume: {self.path} holds no state to go on with ({error})"
            raise InputError(what) from None
        steps = current["steps"]
        history[:steps] = current["history"].numpy()
        return steps

    def save(
        self,
        seeds: list[int],
        steps: int,
        step: Step,
        history: np.ndarray,
        *,
        last: bool,
        now: bool = False,
    ) -> None:
        """Saves after every :data:`EVERY` steps, after the last, and where there is no time."""
        if not (last or now or steps % EVERY == 0):
            return
        chance = [] if last else self.there.of_all(step.chance())  # every process takes part
        if self.path is None or self.there.rank:
            return
        pairs = [_weights(pair) for pair in step.stack.pairs]
        if last:
            for n, seed in enumerate(seeds):
                self.content["done"][seed] = _trained(pairs[n], history[:, n])
            self.content["current"] = None
        else:
            self.content["current"] = {
                "seeds": seeds,
                "steps": steps,
                "pairs": pairs,
                "history": torch.from_numpy(history[:steps].copy()),
                "moments": step.moments(),
                "chance": chance,
                "device": step.device.type,
            }
        _write(self.content, self.path)


def read(path: Path | None) -> dict[str, Any]:
    """What a checkpoint holds: ``key``, seeds that are ``done``, and the ``current`` ones.

    Raises:
        InputError: If there is none, or it is of another kind.
    """
    if path is None or not path.exists():
        raise InputError(f"resume: there is no checkpoint at {path}")
    regular(path)
    try:
        room = _room(path)
        with warnings.catch_warnings():  # of torch, about files that are none of its
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["format"]
        if version == FORMAT:
            _check(content, room)
    except Exception as error:  # what is no checkpoint fails in any way it likes
        raise InputError(f"resume: {path} is not a checkpoint of pyrocryo ({error})") from None
    if version != FORMAT:
        raise InputError(f"resume: {path} was written by another version of pyrocryo")
    return content


def _room(path: Path) -> int:
    """Bytes that the tensors of a file may take, once it is seen that nothing of it unpacks."""
    with zipfile.ZipFile(path) as file:
        parts = file.infolist()
        room = sum(part.file_size for part in parts)
        if room > path.stat().st_size or any(part.compress_type for part in parts):
            raise ValueError("it holds compressed parts")
        if damaged := file.testzip():  # torch does not look at checksums
            raise ValueError(f"{damaged} is damaged")
        (program,) = (part for part in parts if part.filename.endswith("data.pkl"))
        for code, word, _ in pickletools.genops(file.read(program)):
            if code.name == "GLOBAL" and word not in GLOBALS:
                raise ValueError(f"it asks for {word}")
    return room


def _check(content: dict[str, Any], room: int) -> None:
    """Raises an error unless a checkpoint has what it must have, in tensors of its size."""
    key, done, current = content["key"], content["done"], content["current"]
    if not all(type(seed) is int for seed in [*key["seeds"], *done]):
        raise ValueError("its seeds are no numbers")
    if not isinstance(key["settings"], dict):
        raise ValueError("it has no settings")
    for saved in done.values():
        room -= _size(saved["pair"].values()) + _size([saved["history"]])
    steps = key["settings"]["steps"]
    shapes = [(saved["history"], (steps, COLUMNS)) for saved in done.values()]
    if current is not None:
        seeds, steps = current["seeds"], current["steps"]
        shapes.append((current["history"], (steps, len(seeds), COLUMNS)))
        for weights in current["pairs"]:
            room -= _size(weights.values())
        chance = [state for states in current["chance"] for state in states]
        room -= _size([current["history"], *current["moments"].values(), *chance])
        if not 0 <= steps <= key["settings"]["steps"] or not set(seeds) <= set(key["seeds"]):
            raise ValueError("its seeds or steps are not those of its settings")
    for history, shape in shapes:
        if tuple(history.shape) != shape or history.dtype != torch.float64:
            raise ValueError(f"a history of {tuple(history.shape)}, expected {shape}")
    if room < 0:
        raise ValueError("its tensors are larger than the file")


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of plain tensors; an expanded one would be more than what is stored."""
    size = 0
    for one in tensors:
        if not (type(one) is Tensor and one.device.type == "cpu" and one.layout == torch.strided):
            raise TypeError(f"expected tensors, got {type(one).__name__}")
        size += one.nbytes
    return size


def agree(content: dict[str, Any], key: dict[str, Any], path: Path) -> None:
    """Raises InputError where a checkpoint was made with other settings, seeds, data or model."""
    for name, value in key.items():
        if (found := content["key"].get(name)) != value:
            raise InputError(f"resume: {path} was made with other {name}{_differs(found, value)}")


def _differs(found: Any, now: Any) -> str:
    """What was other and is not too long to be read, as digests are."""
    if isinstance(found, dict) and isinstance(now, dict):
        other = [k for k in {**now, **found} if found.get(k) != now.get(k)]
        told = ", ".join(f"{k} {found.get(k)}, now {now.get(k)}" for k in other)
        return f" ({told})"
    return "" if isinstance(now, str) else f" ({found}, now {now})"


def put(pair: Pair, saved: dict[str, Any], path: Path | None) -> None:
    """Puts saved parameters in place; InputError where they are another model's."""
    try:
        pair.load_state_dict(saved)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"resume: {path} holds another model ({first})") from None


def write(fit: Fit, path: Path) -> None:
    """Writes the checkpoint of a finished fit."""
    done = {}
    for n, (seed, pair) in enumerate(zip(fit.seeds, fit.pairs, strict=True)):
        history = np.stack([values[n] for values in fit.history.values()], axis=1)
        done[seed] = _trained(_weights(pair), history)
    _write({"format": FORMAT, "key": fit.key, "done": done, "current": None}, path)


def _weights(pair: Pair) -> dict[str, Any]:
    return {name: value.cpu().clone() for name, value in pair.state_dict().items()}


def _trained(weights: dict[str, Any], history: np.ndarray) -> dict[str, Any]:
    return {"pair": weights, "history": torch.from_numpy(history.copy())}


def _write(content: dict[str, Any], path: Path) -> None:
    data = io.BytesIO()  # torch's own writer aborts the process where a disk is full
    torch.save(content, data)
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(data.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        what = f"{error.strerror}; this checkpoint is not written, the last one stays as it was"
        raise OSError(error.errno, what, str(path)) from None
