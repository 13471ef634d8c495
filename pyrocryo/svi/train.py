"""``fit``: one optimiser, one loop, several seeds one after another."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import checkpoints
from pyrocryo.svi.plan import prepare
from pyrocryo.svi.progress import Progress
from pyrocryo.svi.settings import Settings
from pyrocryo.svi.weights import Weights

__all__ = ["Fit", "fit"]

log = logging.getLogger("pyrocryo")
TRACKED = ("loss", "grad_norm", "lr", "beta")
EXAMPLE = 64


@dataclass
class Fit:
    """What training gives: one trained pair for each seed.

    Attributes:
        pairs: The trained pairs, in the order of ``seeds``.
        seeds: Their seeds.
        history: ``loss`` (negative ELBO a particle, in nats; weighted where β or γ differ from 1),
            ``grad_norm``, ``lr`` and ``beta``, each `(seeds, steps)`.
        settings: How they were trained.
        seconds: Wall time.
        exact_kl: Whether the KL was taken in closed form (else by Monte Carlo).
        example: A batch of training particles, for checks of the prior in their contexts.
        key: What a checkpoint must agree with to be resumed: settings, seeds, data and model.
    """

    pairs: list[Pair]
    seeds: tuple[int, ...]
    history: dict[str, np.ndarray]
    settings: Settings
    seconds: float
    exact_kl: bool
    example: Any
    key: dict[str, Any]


def fit(
    pair: Pair,
    particles: Particles,
    *,
    seeds: int | Sequence[int] = 1,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Fit:
    """Trains copies of ``pair`` on ``particles.train``, one for each seed.

    Each seed draws its own initial weights, order of particles and noise. The pair given is left
    as it was. Distributions are validated on the first step only.

    Args:
        pair: Model and guide.
        particles: The data; what is held out is not looked at.
        seeds: How many seeds (0, 1, ...), or which.
        device: Where to train.
        progress: Progress bar; by default on a terminal, log lines elsewhere.
        checkpoint: File to save the state to as training goes on.
        resume: Go on from ``checkpoint``, to the same result as an uninterrupted run.
        **settings: See :class:`Settings`: ``steps``, ``batch_size``, ``lr``, ...

    Raises:
        InputError: If pair, particles and settings do not go together.
        FloatingPointError: If the loss or a gradient stops being finite; says step and site.
    """
    plan = prepare(pair, particles, seeds, settings)
    train, chosen = plan.train, plan.settings
    path = Path(checkpoint) if checkpoint else None
    state = checkpoints.State(path, plan.key, resume)
    _warn_if_not_reset(pair)
    if not plan.exact_kl:
        log.info("no closed-form KL for %s: Monte Carlo", pair.prior_name)
    log.info("%d seeds on %r", len(plan.seeds), train)
    started = time.perf_counter()
    pairs, histories = [], []
    with Progress(pair.prior_name, len(plan.seeds) * chosen.steps, progress) as bar:
        for seed in plan.seeds:
            trained, history = _fit_one(
                pair, train, chosen, seed, torch.device(device), bar, state
            )
            pairs.append(trained)
            histories.append(history)
    history = {name: np.stack([h[:, i] for h in histories]) for i, name in enumerate(TRACKED)}
    seconds = time.perf_counter() - started
    example = train.batch(np.arange(min(EXAMPLE, len(train))))
    return Fit(pairs, plan.seeds, history, chosen, seconds, plan.exact_kl, example, plan.key)


def _fit_one(
    pair: Pair,
    train: Particles,
    settings: Settings,
    seed: int,
    device: torch.device,
    bar: Progress,
    state: checkpoints.State,
) -> tuple[Pair, np.ndarray]:
    pair = copy.deepcopy(pair).train()
    pair.frame = None  # of other weights, where a trained pair is fitted again
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for module in pair.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        pair.to(device)
        parameters = [p for p in pair.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(parameters, lr=settings.lr, fused=True)
        elbo = TraceMeanField_ELBO()
        history = np.zeros((settings.steps, len(TRACKED)))
        first = state.restore(seed, pair, optimiser, history)
        bar.restore(first)
        for step in range(first, settings.steps):
            rows = _rows(len(train), settings.batch_size, step, seed)
            batch = pair.moved(train.batch(rows))
            beta, lr = settings.beta_at(step), settings.lr_at(step)
            optimiser.param_groups[0]["lr"] = lr
            weights = Weights(beta, settings.gamma, rigid=step < settings.rigid_steps)
            with pyro.validation_enabled(step == first), weights:
                loss = elbo.differentiable_loss(pair.model, pair.guide, batch) / len(rows)
            optimiser.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, settings.clip)
            history[step] = loss.item(), norm.item(), lr, beta
            if not np.isfinite(history[step, :2]).all():
                raise FloatingPointError(
                    f"seed {seed}, step {step}: the loss is {loss.item():g} and its gradient "
                    f"{norm.item():g}; {_culprit(pair, batch)}"
                )
            optimiser.step()
            bar.update(seed=seed, step=step, elbo=-history[step, 0])
            state.save(seed, step + 1, pair, optimiser, history, last=step + 1 == settings.steps)
    return pair.eval(), history


def _warn_if_not_reset(pair: Pair) -> None:
    for name, module in pair.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not hasattr(module, "reset_parameters"):
            log.warning(
                "%s (%s) has parameters but no reset_parameters(): every seed starts from the "
                "same values there",
                name,
                type(module).__name__,
            )


def _rows(n: int, size: int, step: int, seed: int) -> np.ndarray:
    """Particles of a step: each epoch is a permutation drawn from (seed, epoch)."""
    a_pass = n // size
    epoch, place = divmod(step, a_pass)
    return _order(n, epoch, seed)[place * size : (place + 1) * size]


@lru_cache(maxsize=2)
def _order(n: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def _culprit(pair: Pair, batch: Any) -> str:
    """Names the sites and parameters that are not finite."""
    broken = [name for name, p in pair.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        return f"parameter {broken[0]} is not finite"
    with torch.no_grad(), pyro.validation_enabled(False):
        guide = pyro.poutine.trace(pair.guide).get_trace(batch)
        model = pyro.poutine.trace(pyro.poutine.replay(pair.model, guide)).get_trace(batch)
        for label, trace in (("guide", guide), ("model", model)):
            trace.compute_log_prob()
            for name, site in trace.nodes.items():
                if "log_prob" in site and not (
                    _finite(site["value"]) and _finite(site["log_prob"])
                ):
                    return f"site {name!r} of the {label} is not finite"
    gradients = [
        n for n, p in pair.named_parameters() if p.grad is not None and not _finite(p.grad)
    ]
    return f"the gradient of {gradients[0]} is not finite" if gradients else "no site stands out"


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())
