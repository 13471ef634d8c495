"""One step of SVI: ELBO, gradients, clipping and Adam, for one seed or several at once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrocryo.svi.graph import Draw, Graph
from pyrocryo.svi.objective import Objective
from pyrocryo.svi.settings import Settings
from pyrocryo.svi.stack import Stack

__all__ = ["Phase", "Step"]

log = logging.getLogger("pyrocryo")


class Step:
    """Trains a stack of seeds, a step at a time.

    On a CUDA device the whole step is one CUDA graph, and nothing waits for the device: what
    :meth:`now` returns must be asked for to be known. A seed whose loss or gradient is not finite
    is not moved by it.

    Args:
        stack: The seeds.
        settings: Learning rate and the largest norm of the gradient.
        generators: One for each seed, or none where torch's own is used.
        world: Number of processes, each with its share of the particles, to average over.

    Attributes:
        raw: Gradients `(S, P)` as they were before the last that was clipped or not finite.
    """

    def __init__(
        self,
        stack: Stack,
        settings: Settings,
        generators: Sequence[torch.Generator] = (),
        world: int = 1,
    ) -> None:
        self.stack = stack
        self.generators = list(generators)
        self.device = stack.theta.device
        self._clip, self._world = settings.clip, world
        self._on_gpu = self.device.type == "cuda"
        self._lr = torch.tensor(settings.lr, device=self.device) if self._on_gpu else settings.lr
        self.optimiser = torch.optim.Adam(
            [stack.theta], lr=self._lr, fused=True, capturable=self._on_gpu
        )
        self._now = torch.zeros(2, len(stack), device=self.device)
        self.raw: Tensor | None = None
        self._replay: _Replay | None = None
        self._refused: Phase | None = None  # what no CUDA graph can be made of

    def __call__(
        self, phase: Phase, batch: Any, beta: float, lr: float, weights: Sequence[float] = ()
    ) -> None:
        """Takes one step; ``weights`` are those of the further terms, where there are any."""
        if self._on_gpu:
            self._lr.fill_(lr)
        else:
            self.optimiser.param_groups[0]["lr"] = lr
        if not (self._on_gpu and phase.captured) or phase is self._refused:
            self._run(phase, phase.inputs(self.stack, batch, beta, weights))
            return
        if self._replay is None or self._replay.phase is not phase:
            self._replay = None  # an earlier phase's memory goes first; it does not come back
            try:
                self._replay = _Replay(self, phase, batch, beta, weights)
            except _NotCaptured as error:
                log.warning("steps run without a CUDA graph: %s", error)
                self._refused = phase
                self._run(phase, phase.inputs(self.stack, batch, beta, weights))
                return
        self._replay(batch, beta, weights)

    def now(self) -> Tensor:
        """Loss and norm of the gradient of each seed, `(2, S)`, before the step was taken."""
        return self._now

    def moments(self) -> dict[str, Tensor]:
        """Adam's state, on the CPU."""
        return {
            name: value.cpu() for name, value in self.optimiser.state[self.stack.theta].items()
        }

    def set_moments(self, saved: dict[str, Tensor]) -> None:
        """Goes on with Adam's state from there."""
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": {0: saved}, "param_groups": groups})
        self.optimiser.param_groups[0]["lr"] = self._lr  # loading has made a copy

    def chance(self) -> list[Tensor]:
        """Where each seed's random numbers stand (torch's own, where there are no generators)."""
        if self.generators:
            return [generator.get_state() for generator in self.generators]
        if self._on_gpu:
            return [torch.cuda.get_rng_state(self.device)]
        return [torch.get_rng_state()]

    def set_chance(self, states: Sequence[Tensor]) -> None:
        """Goes on with the random numbers from there."""
        for generator, state in zip(self.generators, states, strict=False):
            generator.set_state(state)
        if not self.generators:
            if self._on_gpu:
                torch.cuda.set_rng_state(states[0], self.device)
            else:
                torch.set_rng_state(states[0])

    def _run(self, phase: Phase, inputs: Sequence[Tensor]) -> None:
        theta = self.stack.theta
        loss, gradient = phase.call(*inputs, *phase.noise(self.generators))
        loss, theta.grad = loss.reshape(-1), gradient.view_as(theta)
        if self._world > 1:
            for values in (loss, theta.grad):
                torch.distributed.all_reduce(values)
                values /= self._world
        norm = torch.linalg.vector_norm(theta.grad, dim=1)
        torch.stack([loss, norm], out=self._now)
        good = torch.isfinite(loss) & torch.isfinite(norm)
        factor = (self._clip / (norm + 1e-6)).clamp_max(1.0)
        # only where it costs nothing to know: on a GPU the host would have to wait
        if self._on_gpu or not bool((good & (factor == 1.0)).all()):
            self.raw = theta.grad
            theta.grad = torch.where(good[:, None], theta.grad * factor[:, None], 0.0)
        self.optimiser.step()


class Phase:
    """What is computed in the steps of one part of the training: rigid, or not.

    Args:
        objective: Loss and gradients.
        call: The same, traced; by default as it is.
        draws: The random numbers that each seed draws for itself, to go with ``call``.
    """

    def __init__(
        self,
        objective: Objective,
        call: Callable[..., Sequence[Tensor]] | None = None,
        draws: Sequence[Draw] = (),
    ) -> None:
        self.objective = objective
        self.call = call or objective
        self.draws = list(draws)
        self._buffers: list[Tensor] = []

    @property
    def captured(self) -> bool:
        """Whether it runs without Python."""
        return isinstance(self.call, Graph)

    def inputs(
        self, stack: Stack, batch: Any, beta: float | Tensor, weights: Sequence[float] | Tensor
    ) -> list[Tensor]:
        """The arguments of ``call``."""
        tensors = [*stack.tensors(), *batch]
        if self.objective.beta is None:
            tensors.append(torch.as_tensor(beta, device=stack.theta.device))
        if self.objective.terms:
            weights = torch.as_tensor(weights, dtype=stack.theta.dtype)
            tensors.append(weights.to(stack.theta.device))
        return tensors

    def noise(self, generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Fresh random numbers, `(S, ...)` each, each seed's from its own generator."""
        if self.draws and not self._buffers:
            device = generators[0].device
            self._buffers = [
                torch.empty(len(generators), *draw.shape, dtype=draw.dtype, device=device)
                for draw in self.draws
            ]
        for s, generator in enumerate(generators):
            for draw, buffer in zip(self.draws, self._buffers, strict=True):
                draw(generator, buffer[s])
        return self._buffers


class _NotCaptured(Exception):
    """Why a step cannot be one CUDA graph."""


class _Replay:
    """A step as one CUDA graph: one launch for all of its kernels."""

    def __init__(
        self, step: Step, phase: Phase, batch: Any, beta: float, weights: Sequence[float]
    ) -> None:
        self.phase = phase
        self._batch = [field.clone() for field in batch]
        self._beta = torch.tensor(float(beta), device=step.device)
        self._weights = torch.tensor(list(weights), device=step.device)
        given = phase.inputs(step.stack, self._batch, self._beta, self._weights)
        self._graph = torch.cuda.CUDAGraph()
        for generator in step.generators:
            self._graph.register_generator_state(generator)
        with _undone(step):  # a first run outside, as capture asks for, must leave no trace
            side = torch.cuda.Stream(step.device)
            side.wait_stream(torch.cuda.current_stream(step.device))
            with torch.cuda.stream(side):
                step._run(phase, given)
            torch.cuda.current_stream(step.device).wait_stream(side)
        here = step.device.index or 0
        chance = [*step.generators, *torch.cuda.default_generators[here : here + 1]]
        chance = [generator for generator in chance if generator.device.type == "cuda"]
        states = [generator.get_state() for generator in chance]
        # other threads read ahead meanwhile, and may
        try:
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                step._run(phase, given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # all that CUDA may refuse to record
            for generator, state in zip(chance, states, strict=True):
                fresh = torch.Generator(step.device)  # they still believe to be recorded
                fresh.set_state(state)
                generator.graphsafe_set_state(fresh)
            raise _NotCaptured(str(error).splitlines()[0]) from None

    def __call__(self, batch: Any, beta: float, weights: Sequence[float]) -> None:
        for there, field in zip(self._batch, batch, strict=True):
            there.copy_(field, non_blocking=True)
        self._beta.fill_(beta)
        for there, weight in zip(self._weights, weights, strict=True):
            there.fill_(weight)
        self._graph.replay()


@contextlib.contextmanager
def _undone(step: Step) -> Iterator[None]:
    """Puts parameters, moments and generators back to what they were."""
    theta, state = step.stack.theta, step.optimiser.state
    before = theta.clone()
    moments = {name: value.clone() for name, value in state[theta].items()}
    chance = step.chance()
    yield
    theta.copy_(before)
    for name, value in state[theta].items():
        value.copy_(moments[name]) if name in moments else value.zero_()
    step.set_chance(chance)
