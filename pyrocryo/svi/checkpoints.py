"""Training state on disk: written whole or not at all, resumed to the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrocryo.errors import InputError
from pyrocryo.files import replacing
from pyrocryo.pair import Pair

if TYPE_CHECKING:
    from pyrocryo.svi.train import Fit

__all__ = ["State", "write"]

EVERY = 200  # steps between two checkpoints


class State:
    """The checkpoint of a fit: trained seeds, and the one in training.

    The file holds tensors, numbers and strings only, so that ``torch.load(weights_only=True)``
    reads it.

    Args:
        path: The file, or None for a fit that leaves none.
        key: What must agree for a checkpoint to be resumed: settings, seeds, data, model.
        resume: Start from the file.
    """

    def __init__(self, path: Path | None, key: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.content: dict[str, Any] = {"format": 1, "key": key, "done": {}, "current": None}
        if not resume:
            return
        if path is None or not path.exists():
            raise InputError(f"resume: there is no checkpoint at {path}")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            found = content["key"]
        except Exception as error:
            raise InputError(f"resume: {path} is not a checkpoint of pyrocryo ({error})") from None
        for name, value in key.items():
            if found.get(name) != value:
                raise InputError(
                    f"resume: {path} was made with other {name} ({found.get(name)}, now {value})"
                )
        self.content = content

    def restore(
        self,
        seed: int,
        pair: Pair,
        optimiser: torch.optim.Optimizer,
        history: np.ndarray,
    ) -> int:
        """Puts the saved state of ``seed`` in place; returns the number of steps it has had."""
        saved = self.content["done"].get(seed)
        current = self.content["current"]
        if saved is None and current is not None and current["seed"] == seed:
            saved = current
        if saved is None:
            return 0
        try:
            pair.load_state_dict(saved["pair"])
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise InputError(f"resume: {self.path} holds another model ({first})") from None
        steps = saved["steps"]
        history[:steps] = saved["history"].numpy()
        if saved is current:
            optimiser.load_state_dict(saved["optimiser"])
            torch.set_rng_state(saved["rng"])
            if saved["cuda_rng"] is not None:
                torch.cuda.set_rng_state(saved["cuda_rng"], pair.noise_steps.device)
        return steps

    def save(
        self,
        seed: int,
        steps: int,
        pair: Pair,
        optimiser: torch.optim.Optimizer,
        history: np.ndarray,
        *,
        last: bool,
    ) -> None:
        """Saves after every :data:`EVERY` steps and after the last."""
        if self.path is None or not (last or steps % EVERY == 0):
            return
        saved = _trained(seed, pair, history[:steps])
        if last:
            self.content["done"][seed] = saved
            self.content["current"] = None
        else:
            device = pair.noise_steps.device
            self.content["current"] = {
                **saved,
                "optimiser": optimiser.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            }
        _write(self.content, self.path)


def write(fit: Fit, path: Path) -> None:
    """Writes the checkpoint of a finished fit."""
    done = {}
    for n, (seed, pair) in enumerate(zip(fit.seeds, fit.pairs, strict=True)):
        history = np.stack([values[n] for values in fit.history.values()], axis=1)
        done[seed] = _trained(seed, pair, history)
    _write({"format": 1, "key": fit.key, "done": done, "current": None}, path)


def _trained(seed: int, pair: Pair, history: np.ndarray) -> dict[str, Any]:
    return {
        "seed": seed,
        "steps": len(history),
        "pair": {name: value.cpu() for name, value in pair.state_dict().items()},
        "history": torch.from_numpy(history.copy()),
    }


def _write(content: dict[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        torch.save(content, temporary)
