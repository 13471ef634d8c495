"""``fit``: one loop for all seeds, several at once where that pays."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrocryo.errors import InputError, Interrupted
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import checkpoints, grouping
from pyrocryo.svi.devices import Machine, company, machine, matrix_products
from pyrocryo.svi.feed import Feed
from pyrocryo.svi.interrupts import held_back
from pyrocryo.svi.memory import free_memory
from pyrocryo.svi.plan import Plan, prepare
from pyrocryo.svi.program import Capture, Program
from pyrocryo.svi.progress import Progress
from pyrocryo.svi.settings import Settings
from pyrocryo.svi.stack import Stack
from pyrocryo.svi.step import Step

__all__ = ["Fit", "fit"]

log = logging.getLogger("pyrocryo")
TRACKED = ("loss", "grad_norm", "lr", "beta")
EXAMPLE = 64
WORTH_COMPILING = 20_000  # steps on a GPU
WORTH_TRACING = 500  # steps on a CPU; tracing takes about a second
GLANCE = 0.5  # seconds between two looks at a GPU's losses


@dataclass
class Fit:
    """What training gives: one trained pair for each seed.

    Attributes:
        pairs: The trained pairs, in the order of ``seeds``.
        seeds: Their seeds.
        history: ``loss`` (negative ELBO a particle, in nats; weighted where β or γ differ from 1,
            and with its further terms, where there are any), ``grad_norm``, ``lr`` and
            ``beta``, each `(seeds, steps)`.
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

    def __repr__(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"Fit({self.pairs[0].prior_name}, {type(self.pairs[0].volume).__name__}, seeds "
            f"{seeds}: {self.settings.steps} steps, loss {self.history['loss'][:, -1].mean():.5g})"
        )


def fit(
    pair: Pair,
    particles: Particles,
    *,
    seeds: int | Sequence[int] = 1,
    device: str | torch.device = "cpu",
    devices: int = 1,
    together: int | None = None,
    capture: Capture | None = None,
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Fit:
    """Trains copies of ``pair`` on ``particles.train``, one for each seed.

    Each seed draws its own initial weights, order of particles and noise. The pair given is left
    as it was. Distributions are validated once, before the first step. Then the step is traced:
    ELBO and gradients become one graph of tensor operations that runs without Pyro and autograd
    (on a GPU, with the optimiser, as one CUDA graph), with the same numbers. What cannot be traced
    (control flow that depends on data) trains as Python, and the log says why.

    Args:
        pair: Model and guide.
        particles: The data; what is held out is not looked at.
        seeds: How many seeds (0, 1, ...), or which.
        device: Where to train.
        devices: How many processes to share each batch among, each with a device of this kind.
            Each further one runs the calling script again up to this point.
        together: Most seeds to train at once, with parameters stacked along a leading axis; by
            default as many as fit on a GPU, and on a CPU only of small pairs, where it pays.
        capture: Trace the step, or don't; or "compile" it as well, which takes some ten seconds,
            needs a C compiler, and makes steps on an H100 1.15 to 2 times faster (as measured;
            README). By default each where there are enough steps to pay for it, and nothing is
            compiled on a CPU.
        progress: Progress bar; by default on a terminal, log lines elsewhere.
        checkpoint: File to save the state to as training goes on: every 200 steps, and when
            SIGTERM (of a cluster whose time is up) or SIGINT (Ctrl-C) asks to stop.
        resume: Go on from ``checkpoint``, to the same result as an uninterrupted run.
        **settings: See :class:`Settings`: ``steps``, ``batch_size``, ``lr``, ...

    Raises:
        InputError: If pair, particles and settings do not go together, or do not fit into memory.
        FloatingPointError: If the loss or a gradient stops being finite; says step and site.
        Interrupted: (a KeyboardInterrupt) If a signal asked to stop; the checkpoint holds the
            step that was finished.
        OSError: If a checkpoint cannot be written, or another of several processes is gone; the
            last one stays.
    """
    where = {"device": device, "devices": devices}
    plan = prepare(pair, particles, seeds, settings, together=together, **where)
    there = machine(**where, precision=plan.settings.precision)
    if plan.settings.batch_size % there.world:
        raise InputError(
            f"batch_size: {plan.settings.batch_size} particles cannot be shared evenly among "
            f"{there.world} devices"
        )
    path = Path(checkpoint) if checkpoint else None
    state = checkpoints.State(path, plan.key, resume, there)
    _warn_if_not_reset(pair)
    if plan.settings.interventions is not None:
        plan.settings.interventions.warn()
    if not plan.exact_kl:
        log.info("no closed-form KL for %s: Monte Carlo", pair.prior_name)
    count = len(plan.seeds)
    log.info("%d seed%s on %r", count, "s" if count > 1 else "", plan.train)
    started = time.perf_counter()
    rows = plan.settings.batch_size * (plan.train.frames or 1)
    shown = progress if there.rank == 0 else False
    cuda = [there.device] if there.device.type == "cuda" else []
    with (
        torch.cuda.device(there.device) if cuda else nullcontext(),
        Progress(pair.prior_name, len(plan.seeds) * plan.settings.steps, rows, shown) as bar,
        torch.random.fork_rng(devices=cuda),
        matrix_products(plan.settings.precision),
        held_back(there, on=path is not None) as asked,
        company(there, path),
    ):
        trained = _Training(pair, plan, there, state, bar, asked).run(together, capture)
    pairs, histories = zip(*(trained[seed] for seed in plan.seeds), strict=True)
    history = {name: np.stack([h[:, i] for h in histories]) for i, name in enumerate(TRACKED)}
    seconds = time.perf_counter() - started
    example = plan.train.batch(np.arange(min(EXAMPLE, len(plan.train))))
    return Fit(
        list(pairs), plan.seeds, history, plan.settings, seconds, plan.exact_kl, example, plan.key
    )


class _Training:
    """The seeds of a fit, group after group."""

    def __init__(
        self,
        pair: Pair,
        plan: Plan,
        there: Machine,
        state: checkpoints.State,
        bar: Progress,
        asked: Callable[[int], int],
    ) -> None:
        self.pair, self.plan, self.settings = pair, plan, plan.settings
        self.there, self.state, self.bar, self.asked = there, state, bar, asked
        self.at_once = 1

    def run(
        self, together: int | None, capture: Capture | None
    ) -> dict[int, tuple[Pair, np.ndarray]]:
        """Trained pairs and their histories by seed."""
        result, left = {}, []
        for seed in self.plan.seeds:
            if seed not in self.state.done:
                left.append(seed)
                continue
            pair, _ = self._fresh(seed)
            history = self.state.trained(seed, pair)
            self.bar.restore(len(history))
            pair.autocast = nullcontext
            result[seed] = pair.eval(), history
        if not left:
            return result
        on_gpu, steps = self.there.device.type == "cuda", self.settings.steps
        if capture is None and on_gpu and steps >= WORTH_COMPILING:
            capture = "compile"
        elif len(self.state.current) > 1:
            capture = capture or True  # these seeds began together
        elif capture is None:
            capture = on_gpu or len(left) * steps >= WORTH_TRACING
        pair, _ = self._fresh(left[0])
        example = pair.moved(self.plan.train.batch(self._rows(0, left[0])))
        with grouping.told(pair, self.settings, example, lambda: self.at_once):
            asked = steps * self.settings.batch_size * len(left)
            self.feed = Feed(
                self.plan.train, self.there.device, lambda step: step, range(0), asked=asked
            )
            program = Program(pair, example, self.settings, capture)
            if not all(self.there.of_all(program.captured)):
                program.release()
            for group in self._groups(program, left, together, example):
                self.at_once = len(group)
                for seed, pair, history in self._group(program, group):
                    result[seed] = pair, history
        return result

    def _groups(
        self, program: Program, left: list[int], together: int | None, example: Any
    ) -> list[list[int]]:
        begun = self.state.current
        left = [seed for seed in left if seed not in begun]
        parts = [[seed] for seed in left]
        each = grouping.needed(self.pair, program.peak, sum(field.nbytes for field in example))
        free = min(self.there.of_all(free_memory(self.there.device)))
        each = max(self.there.of_all(each))
        if program.captured and each > grouping.SHARE * free:
            pair, _ = self._fresh((left or begun)[0])
            raise InputError(grouping.too_large(pair, self.settings, example, program.peak))
        if program.captured and together != 1 and len(left) > 1:
            found = grouping.groups(left, each, self.there.device, together, free)
            largest = max(found, key=len)
            if len(largest) > 1 and self._stackable(program, largest):
                parts = found
                log.info("%d seeds at once, %.2g MB each", len(largest), each / 1e6)
        if len(begun) > 1 and not self._stackable(program, begun):
            raise InputError(
                f"resume: the checkpoint has seeds {begun} in training together, which cannot be "
                "done here; fit anew"
            )
        return [*([begun] if begun else []), *parts]

    def _stackable(self, program: Program, seeds: list[int]) -> bool:
        self.at_once = len(seeds)
        pairs = [self._fresh(seed)[0] for seed in seeds]
        return all(self.there.of_all(program.stackable(pairs)))

    def _group(self, program: Program, seeds: list[int]) -> Iterator[tuple[int, Pair, np.ndarray]]:
        settings, there, several = self.settings, self.there, len(seeds) > 1
        pairs, generators = zip(*(self._fresh(seed) for seed in seeds), strict=True)
        stack = Stack(pairs)
        step = Step(stack, settings, generators if several else (), there.world)
        if not several:
            step.set_chance([generators[0].get_state()])
        phases = {
            rigid: program.phase(pairs, rigid) for rigid in {settings.rigid_steps > 0, False}
        }
        history = np.zeros((settings.steps, len(seeds), len(TRACKED)))
        first = self.state.restore(step, history) if seeds == self.state.current else 0
        self.bar.restore(first * len(seeds))
        record = torch.zeros(settings.steps, 2, len(seeds), device=there.device)
        label = f"seed {seeds[0]}" if not several else f"seeds {seeds[0]} to {seeds[-1]}"

        def rows(n: int) -> np.ndarray:
            if not several or settings.order == "shared":
                return self._rows(n, seeds[0])
            return np.stack([self._rows(n, seed) for seed in seeds])

        known, clock = first, time.perf_counter()
        with self.feed.again(rows, range(first, settings.steps)) as feed:
            for n in range(first, settings.steps):
                beta, lr = settings.beta_at(n), settings.lr_at(n)
                step(phases[n < settings.rigid_steps], feed(n), beta, lr, settings.weights_at(n))
                record[n] = step.now()
                history[n, :, 2:] = lr, beta
                last, stop = n + 1 == settings.steps, self.asked(n)
                due = (
                    last or stop or (n + 1) % checkpoints.EVERY == 0 or there.device.type == "cpu"
                )
                # processes that share a batch must look, and stop, at the same step
                if due or (there.world == 1 and time.perf_counter() - clock > GLANCE):
                    values = record[known : n + 1].cpu().numpy()
                    history[known : n + 1, :, :2] = values.transpose(0, 2, 1)
                    self._watch(values, known, seeds, step)
                    elbo = -float(values[-1, 0].mean())
                    self.bar.update((n + 1 - known) * len(seeds), seeds=label, step=n, elbo=elbo)
                    known, clock = n + 1, time.perf_counter()
                self.state.save(seeds, n + 1, step, history, last=last, now=bool(stop))
                if stop:
                    raise Interrupted(
                        stop,
                        f"after step {n + 1} of {settings.steps} of {label}; "
                        f"{self.state.path} holds it, --resume goes on from there "
                        "(in Python, resume=True)",
                    )
        for s, (seed, pair) in enumerate(zip(seeds, stack.release(), strict=True)):
            pair.autocast = nullcontext
            yield seed, pair.eval(), history[:, s]

    def _watch(self, values: np.ndarray, first: int, seeds: list[int], step: Step) -> None:
        """Stops at the first loss or gradient that is not finite."""
        broken = np.argwhere(~np.isfinite(values).all(axis=1))
        if not len(broken):
            return
        n, s = broken[0]
        when, seed, pair = first + int(n), seeds[s], step.stack.pairs[s]
        batch = pair.moved(self.plan.train.batch(self._rows(when, seed)))
        loss, norm = values[n, :, s]
        gradients = {name: g[s] for name, g in step.stack.split(step.raw).items()}
        raise FloatingPointError(
            f"seed {seed}, step {when}: the loss is {loss:g} and its gradient {norm:g}; "
            f"{_culprit(pair, batch, gradients)}"
        )

    def _fresh(self, seed: int) -> tuple[Pair, torch.Generator]:
        """A copy of the pair as this seed starts it, and the random numbers that come next."""
        pair = copy.deepcopy(self.pair).train()
        pair.frame = None  # of other weights, where a trained pair is fitted again
        torch.manual_seed(seed)
        for module in pair.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        pair.to(self.there.device).autocast = self.there.autocast
        generator = torch.Generator(self.there.device).manual_seed(seed)
        if self.there.device.type == "cpu":
            generator.set_state(torch.get_rng_state())
        if self.there.rank:  # other noise for other particles
            sequence = np.random.SeedSequence([seed, self.there.rank])
            generator.manual_seed(int(sequence.generate_state(1)[0]))
        return pair, generator

    def _rows(self, step: int, seed: int) -> np.ndarray:
        """Particles of a step, or this process's share of them."""
        seed = self.plan.seeds[0] if self.settings.order == "shared" else seed
        rows = _rows(len(self.plan.train), self.settings.batch_size, step, seed)
        return rows[self.there.rank :: self.there.world]


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


def _order(n: int, epoch: int, seed: int) -> np.ndarray:
    """Keeps one epoch of each seed: of a million particles that is 8 MB."""
    kept = _kept.get(seed)  # one object, as threads may ask at the same time
    if kept is None or kept[:2] != (n, epoch):
        order = np.random.default_rng([seed, epoch]).permutation(n)
        kept = _kept[seed] = n, epoch, order
    return kept[2]


_kept: dict[int, tuple[int, int, np.ndarray]] = {}


def _culprit(pair: Pair, batch: Any, gradients: Mapping[str, Tensor]) -> str:
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
    broken = [name for name, gradient in gradients.items() if not _finite(gradient)]
    return f"the gradient of {broken[0]} is not finite" if broken else "no site stands out"


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())
