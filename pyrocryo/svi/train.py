"""``fit``: one optimiser, one loop, several seeds one after another."""

from __future__ import annotations

import copy
import logging
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import checkpoints
from pyrocryo.svi.weights import Weights

__all__ = ["Fit", "Settings", "fit"]

log = logging.getLogger("pyrocryo")
TRACKED = ("loss", "grad_norm", "lr", "beta")
EXAMPLE = 64


@dataclass(frozen=True)
class Settings:
    """How a pair is trained.

    Attributes:
        steps: Optimiser steps.
        batch_size: Particles (or molecules, when they have frames) a step.
        lr: Peak learning rate of Adam: 10 % linear warm-up, then a cosine down to 2 %.
        beta: Weight of the KL; 1 is the ELBO.
        gamma: Further weight of a prior's transition terms; 1 is the ELBO.
        kl_warmup: Steps over which β rises linearly from 0; helps where pose is unknown, hurts
            Boltzmann priors.
        clip: Largest norm of the gradient (of the loss per particle).
    """

    steps: int = 1500
    batch_size: int = 64
    lr: float = 4e-3
    beta: float = 1.0
    gamma: float = 1.0
    kl_warmup: int = 0
    clip: float = 50.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("beta", "gamma", "kl_warmup"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        warmup = max(1, self.steps // 10)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def beta_at(self, step: int) -> float:
        """Weight of the KL at step 0, 1, ..."""
        return self.beta * min(1.0, (step + 1) / self.kl_warmup) if self.kl_warmup else self.beta


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
        trained_on: Number of training particles.
    """

    pairs: list[Pair]
    seeds: tuple[int, ...]
    history: dict[str, np.ndarray]
    settings: Settings
    seconds: float
    exact_kl: bool
    example: Any
    trained_on: int

    @property
    def key(self) -> dict[str, Any]:
        """What a checkpoint of this fit must agree with."""
        return _key(self.settings, self.seeds, self.trained_on)


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
    try:
        chosen = Settings(**settings)
    except TypeError:
        known = ", ".join(Settings.__dataclass_fields__)
        odd = sorted(set(settings) - set(Settings.__dataclass_fields__))
        raise InputError(f"unknown setting {', '.join(odd)}; fit knows {known}") from None
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds: expected at least one, each different, got {seeds}")
    pair.check(particles)
    particles.statistics()  # finds pixels that are no numbers before anything is trained
    train = particles.train
    chosen = replace(chosen, batch_size=min(chosen.batch_size, len(train)))
    exact = _exact_kl(pair, train)
    if chosen.gamma != 1.0 and not (exact and hasattr(pair.prior, "with_transition_weight")):
        raise InputError(
            f"gamma: {chosen.gamma:g} weighs transition terms, but the prior "
            f"{type(pair.prior).__name__} has none in closed form"
        )
    _warn_if_not_reset(pair)
    state = checkpoints.State(
        path=Path(checkpoint) if checkpoint else None,
        key=_key(chosen, seeds, len(train)),
        resume=resume,
    )
    log.info("%d seeds on %r", len(seeds), train)
    started = time.perf_counter()
    pairs, histories = [], []
    with _Progress(len(seeds) * chosen.steps, progress) as bar:
        for seed in seeds:
            trained, history = _fit_one(
                pair, train, chosen, seed, torch.device(device), bar, state
            )
            pairs.append(trained)
            histories.append(history)
    history = {name: np.stack([h[:, i] for h in histories]) for i, name in enumerate(TRACKED)}
    seconds = time.perf_counter() - started
    example = train.batch(np.arange(min(EXAMPLE, len(train))))
    return Fit(pairs, seeds, history, chosen, seconds, exact, example, len(train))


def _key(settings: Settings, seeds: Sequence[int], particles: int) -> dict[str, Any]:
    return {"settings": asdict(settings), "seeds": list(seeds), "particles": particles}


def _fit_one(
    pair: Pair,
    train: Particles,
    settings: Settings,
    seed: int,
    device: torch.device,
    bar: _Progress,
    state: checkpoints.State,
) -> tuple[Pair, np.ndarray]:
    pair = copy.deepcopy(pair)
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
        bar.update(first)
        for step in range(first, settings.steps):
            rows = _rows(len(train), settings.batch_size, step, seed)
            batch = pair.moved(train.batch(rows))
            beta, lr = settings.beta_at(step), settings.lr_at(step)
            optimiser.param_groups[0]["lr"] = lr
            with pyro.validation_enabled(step == first), Weights(beta, settings.gamma):
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
            bar.update(1, seed=seed, step=step, elbo=-history[step, 0])
            state.save(seed, step + 1, pair, optimiser, history, last=step + 1 == settings.steps)
    return pair.eval(), history


def _rows(n: int, size: int, step: int, seed: int) -> np.ndarray:
    """Particles of a step: each epoch is a permutation drawn from (seed, epoch)."""
    a_pass = n // size
    epoch, place = divmod(step, a_pass)
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return order[place * size : (place + 1) * size]


def _exact_kl(pair: Pair, particles: Particles) -> bool:
    """Whether the KL of guide from prior is known in closed form."""
    batch = particles.batch(np.arange(min(2, len(particles))))
    with torch.no_grad():
        try:
            kl_divergence(pair.posterior_of(batch), pair.prior_of(batch))
        except NotImplementedError:
            log.info("no closed-form KL for %s: Monte Carlo", type(pair.prior).__name__)
            return False
    return True


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
            for name, site in _sample_sites(trace.nodes.items()):
                if not (_finite(site["value"]) and _finite(site["log_prob"])):
                    return f"site {name!r} of the {label} is not finite"
    gradients = [
        n for n, p in pair.named_parameters() if p.grad is not None and not _finite(p.grad)
    ]
    return f"the gradient of {gradients[0]} is not finite" if gradients else "no site stands out"


def _sample_sites(nodes: Iterable[tuple[str, dict]]) -> Iterable[tuple[str, dict]]:
    return ((name, site) for name, site in nodes if "log_prob" in site)


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


class _Progress:
    """A bar on a terminal, ten log lines elsewhere; both with the ELBO and the time left."""

    def __init__(self, total: int, bar: bool | None) -> None:
        self.total = total
        self.done = 0
        self.use_bar = sys.stderr.isatty() if bar is None else bar
        self.started = time.perf_counter()

    def __enter__(self) -> _Progress:
        from tqdm import tqdm

        self.bar = tqdm(total=self.total, disable=not self.use_bar, unit="step", leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, n: int, **state: float) -> None:
        before, self.done = self.done, self.done + n
        self.bar.update(n)
        if not state:
            return
        if self.use_bar:
            if self.done % 10 == 0:
                self.bar.set_postfix_str(f"seed {state['seed']}, ELBO {state['elbo']:.2f}")
        elif before * 10 // self.total != self.done * 10 // self.total:
            left = (time.perf_counter() - self.started) * (self.total / self.done - 1)
            log.info(
                "seed %d, step %d: ELBO %.2f nats a particle, %.0f s left",
                state["seed"], state["step"] + 1, state["elbo"], left,
            )  # fmt: skip
