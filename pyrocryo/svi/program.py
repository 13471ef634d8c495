"""How the steps of a fit are computed: traced once for all seeds where that can be done."""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrocryo.pair import Pair
from pyrocryo.svi.graph import Draw, Graph
from pyrocryo.svi.objective import Objective
from pyrocryo.svi.settings import Settings
from pyrocryo.svi.stack import trained, used
from pyrocryo.svi.step import Phase

__all__ = ["Program"]

log = logging.getLogger("pyrocryo")

AGREE = 1e-5  # of the largest entry: what a graph may differ from Python by
STACKED = 1e-3  # the same of one of several seeds from one alone, whose sums have another order
OTHER = 0.9  # times the images: data that a graph was not traced on


class _Refused(Exception):
    """Why a pair cannot be traced, or its seeds not be stacked."""


class Program:
    """Loss and gradients of a pair, ready to run: as a graph, or as Python where it has to be.

    A first pass in Python checks the arguments of all distributions. Then the pair is traced, and
    the graph compared with Python on other data: what depends on values of the example (branches,
    numbers taken out of tensors) or on state of its own is found here, and left to Python.

    Args:
        pair: Model and guide, on the device.
        batch: An example of the batches, for one seed.
        settings: Weights and schedules.
        capture: Whether to trace.

    Attributes:
        blocks: Names of the trained parameters: those that the rigid steps train, and the others.
        refused: Why the pair is not traced, if it was tried in vain.
        peak: Bytes a seed needs on the way, where it was traced.
    """

    def __init__(self, pair: Pair, batch: Any, settings: Settings, capture: bool) -> None:
        self._pair, self._batch, self._settings = pair, batch, settings
        self._phases: dict[tuple[int, bool, int], Phase] = {}
        self._draws: dict[bool, list[Draw] | None] = {}
        self.refused: str | None = None
        self.peak = 0
        self.blocks = [list(trained(pair))]
        with _same_chance(batch.images.device):
            self._first_pass()
            self._graphs: dict[bool, Graph] = {}
            if capture:
                try:
                    for rigid in self._parts():
                        self._graphs[rigid] = self._traced(rigid)
                except _Refused as refused:
                    self._graphs = {}
                    self.refused = str(refused)
                    log.warning("this pair is not traced, and trains as Python: %s", refused)
        if self._graphs:
            self.peak = max(graph.peak for graph in self._graphs.values())
            self._draws = {rigid: graph.draws() for rigid, graph in self._graphs.items()}

    @property
    def captured(self) -> bool:
        """Whether it is traced."""
        return bool(self._graphs)

    def phase(self, pairs: Sequence[Pair], rigid: bool) -> Phase:
        """What to run for these seeds, in the rigid steps or after them.

        Raises:
            RuntimeError: If several seeds are given that cannot be stacked (:meth:`stackable`).
        """
        if not self.captured:
            return Phase(self._objective(rigid, pair=pairs[0]))
        key = len(pairs), rigid
        if key not in self._phases:
            self._phases[key] = (
                Phase(self._objective(rigid), self._graphs[rigid])
                if len(pairs) == 1
                else self._stacked(pairs, rigid)
            )
        return self._phases[key]

    def stackable(self, pairs: Sequence[Pair]) -> bool:
        """Whether these seeds can be trained at once; says why not."""
        try:
            if not self.captured:
                raise _Refused("the pair is not traced")
            if None in self._draws.values():
                raise _Refused("its random numbers depend on other numbers")
            for pair in pairs:
                for (name, a), b in zip(self._pair.named_buffers(), pair.buffers(), strict=True):
                    if not torch.equal(a, b):
                        raise _Refused(f"its buffer {name} differs between seeds")
            with _same_chance(self._batch.images.device):
                for rigid in self._parts():
                    self.phase(pairs, rigid)
        except _Refused as refused:
            log.warning("seeds are trained one after another: %s", refused)
            return False
        return True

    def _parts(self) -> list[bool]:
        return [False, True] if self._settings.rigid_steps else [False]

    def _objective(self, rigid: bool, pair: Pair | None = None, **several: Any) -> Objective:
        chosen = self._settings
        return Objective(
            pair or self._pair,
            self._batch,
            self.blocks[:1] if rigid else self.blocks,
            beta=None if chosen.kl_warmup else chosen.beta,
            gamma=chosen.gamma,
            rigid=rigid,
            **several,
        )

    def _inputs(self, objective: Objective, batch: Any) -> list[Tensor]:
        parameters = trained(self._pair)
        weight = [] if objective.beta is not None else [batch.images.new_tensor(1.0)]
        return [*(parameters[name].detach() for name in objective.names), *batch, *weight]

    def _first_pass(self) -> None:
        """Validates distributions; finds what the rigid steps train."""
        before = {name: b._version for name, b in self._pair.named_buffers()}
        for rigid in self._parts():
            objective = self._objective(rigid)
            parameters = trained(self._pair)
            inputs = self._inputs(objective, self._batch)
            own = [parameters[name] for name in objective.names]
            loss = objective.loss(*own, *inputs[len(own) :], validate=True)
            if rigid and torch.isfinite(loss):
                first = used(loss, self._pair)
                later = [name for name in self.blocks[0] if name not in first]
                self.blocks = [block for block in (first, later) if block]
        self._changed = [n for n, b in self._pair.named_buffers() if b._version != before[n]]

    def _traced(self, rigid: bool) -> Graph:
        if self._changed:
            raise _Refused(f"it changes its buffer {self._changed[0]} as it trains")
        objective = self._objective(rigid)
        inputs = self._inputs(objective, self._batch)
        try:
            graph = Graph(objective, inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever model, guide and plug-ins may raise
            raise _Refused(_told(error)) from None
        other = self._batch._make(
            value.roll(1, 0) * (OTHER if name == "images" else 1) if value.dim() else value
            for name, value in zip(self._batch._fields, self._batch, strict=True)
        )
        inputs = self._inputs(objective, other)
        with _same_chance(self._batch.images.device):
            expected = objective(*inputs)
        with _same_chance(self._batch.images.device):
            found = graph(*inputs)
        if not _agree(expected, found, AGREE):
            raise _Refused("traced on one batch, it gives other numbers than Python on another")
        return graph

    def _stacked(self, pairs: Sequence[Pair], rigid: bool) -> Phase:
        s, own = len(pairs), self._settings.order == "own"
        objective = self._objective(rigid, seeds=s, own=own)
        of = [trained(pair) for pair in pairs]
        parameters = [torch.stack([p[name].detach() for p in of]) for name in objective.names]
        batch = [
            torch.stack([field] * s) if own and field.dim() else field for field in self._batch
        ]
        rest = self._inputs(objective, self._batch)[len(parameters) + len(batch) :]
        draws = self._draws[rigid]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # an operation that vmap loops over
                graph = Graph(objective, [*parameters, *batch, *rest])
            graph.lift(draws)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise _Refused(_told(error)) from None
        phase = Phase(objective, graph, draws)
        device = self._batch.images.device
        noise = phase.noise([torch.Generator(device).manual_seed(0) for _ in pairs])
        found = graph(*parameters, *batch, *rest, *noise)
        for row in (0, s - 1):
            with _same_chance(device):
                torch.manual_seed(0)
                alone = [value[row] for value in parameters]
                expected = self._graphs[rigid](*alone, *self._batch, *rest)
            if not _agree(expected, [value[row] for value in found], STACKED):
                raise _Refused("stacked, a seed gives other numbers than alone")
        return phase


def _agree(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> bool:
    pairs = zip(expected, found, strict=True)
    return all(
        bool((a - b).abs().max() <= tolerance * a.abs().max()) or not bool(torch.isfinite(a).all())
        for a, b in pairs
    )


def _told(error: Exception) -> str:
    """What went wrong in tracing, and the line of the user's or of this package's that did it."""
    said = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    if "get value out of" in str(error) or "data-dependent" in str(error).lower():
        said = "a value is taken out of a tensor (.item(), float(), or a branch on it)"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in ("torch", "pyro") for part in Path(frame.filename).parts):
            return f"{said}, in {Path(frame.filename).name}, line {frame.lineno}"
    return said


@contextlib.contextmanager
def _same_chance(device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside are not missed outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
