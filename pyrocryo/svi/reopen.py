"""A finished fit again, from its checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo import penalties
from pyrocryo.errors import InputError
from pyrocryo.interventions import Interventions
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import checkpoints
from pyrocryo.svi.plan import prepare
from pyrocryo.svi.settings import Settings
from pyrocryo.svi.train import EXAMPLE, TRACKED, Fit

__all__ = ["reopen"]


def reopen(pair: Pair, particles: Particles, checkpoint: str | Path) -> Fit:
    """The fit whose checkpoint this is; nothing is trained.

    Args:
        pair: As it was given to :func:`pyrocryo.fit`; left as it is.
        particles: What was fitted.
        checkpoint: ``checkpoint.pt`` of a run folder.

    Returns:
        The fit, but for its ``seconds``, which a checkpoint does not know: NaN.

    Raises:
        InputError: If pair or particles are others, or seeds are left to train.
    """
    path = Path(checkpoint)
    content = checkpoints.read(path)
    key, done = content["key"], content["done"]
    left = [seed for seed in key["seeds"] if seed not in done]
    if left:
        raise InputError(f"{path}: seeds {left} are not trained yet; --resume that run first")
    try:
        settings = _settings(key["settings"])
        Settings.of(settings)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: settings that are none of ours ({error})") from None
    plan = prepare(pair, particles, key["seeds"], settings)
    checkpoints.agree(content, plan.key, path)
    pairs, histories = [], []
    for seed in plan.seeds:
        new = copy.deepcopy(pair)
        new.frame = None
        checkpoints.put(new, done[seed]["pair"], path)
        pairs.append(new.eval())
        histories.append(done[seed]["history"].numpy())
    history = {name: np.stack([h[:, n] for h in histories]) for n, name in enumerate(TRACKED)}
    example = plan.train.batch(np.arange(min(EXAMPLE, len(plan.train))))
    return Fit(pairs, plan.seeds, history, plan.settings, np.nan, plan.exact_kl, example, plan.key)


def _settings(saved: dict[str, Any]) -> dict[str, Any]:
    told = saved.get("interventions")
    return saved | {
        "interventions": None if told is None else Interventions(**told),
        "penalties": tuple(penalties.again(one) for one in saved.get("penalties", ())),
    }
