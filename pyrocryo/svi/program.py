"""How the steps of a fit are computed: traced once for all seeds where that can be done."""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor

from pyrocryo.pair import Pair
from pyrocryo.svi.graph import Draw, Graph
from pyrocryo.svi.objective import Objective
from pyrocryo.svi.settings import Settings
from pyrocryo.svi.stack import trained
from pyrocryo.svi.step import Phase

__all__ = ["Capture", "Program"]

Capture = bool | Literal["compile"]

log = logging.getLogger("pyrocryo")

AGREE = 1e-6  # of a tensor's largest entry: what a graph may differ from Python by on a CPU ...
ELSEWHERE = 1e-4  # ... and where sums have no fixed order
STACKED = 1e-3  # the same of one of several seeds from one alone, whose sums have another order
ROUNDED = 0.05  # the same of compiled networks in bfloat16, which round less often
OTHER = 0.9  # times the images and the parameters: what a graph was not traced on


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
        capture: Whether to trace, or "compile" what was traced.

    Attributes:
        peak: Bytes a seed needs on the way, where it was traced.
    """

    def __init__(self, pair: Pair, batch: Any, settings: Settings, capture: Capture) -> None:
        self._pair, self._batch, self._settings = pair, batch, settings
        self._capture = capture
        self._phases: dict[tuple[int, bool], Phase] = {}
        self._draws: dict[bool, list[Draw] | None] = {}
        self._other: Program | None = None  # of the last seed with constants of its own
        self.peak = 0
        with _same_chance(batch.images.device):
            self._first_pass()
            self._graphs: dict[bool, Graph] = {}
            if capture:
                try:
                    for rigid in self._parts():
                        self._graphs[rigid] = self._traced(rigid)
                except _Refused as refused:
                    self._graphs = {}
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

        Several seeds only if they are :meth:`stackable`.
        """
        if not self.captured:
            return Phase(self._objective(rigid, pair=pairs[0]))
        if len(pairs) == 1 and self._difference(pairs[0]):  # constants of its own
            if self._other is None or self._other._pair is not pairs[0]:
                self._other = Program(pairs[0], self._batch, self._settings, self._capture)
            return self._other.phase(pairs, rigid)
        key = len(pairs), rigid
        if key not in self._phases:
            self._phases[key] = (
                self._alone(rigid) if len(pairs) == 1 else self._stacked(pairs, rigid)
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
                if name := self._difference(pair):
                    raise _Refused(f"{name}, which is not trained, differs between seeds")
            with _same_chance(self._batch.images.device):
                for rigid in self._parts():
                    self.phase(pairs, rigid)
        except _Refused as refused:
            log.warning("seeds are trained one after another: %s", refused)
            return False
        return True

    def release(self) -> None:
        """Trains as Python after all, where other processes have to."""
        self._graphs = {}

    def _difference(self, pair: Pair) -> str | None:
        """The name of a tensor that is not trained, and differs from that of the pair traced."""
        for (name, a), b in zip(_fixed(self._pair), (v for _, v in _fixed(pair)), strict=True):
            if not torch.equal(a, b):
                return name
        return None

    def _parts(self) -> list[bool]:
        return [False, True] if self._settings.rigid_steps else [False]

    def _objective(self, rigid: bool, pair: Pair | None = None, **several: Any) -> Objective:
        chosen = self._settings
        return Objective(
            pair or self._pair,
            self._batch,
            beta=None if chosen.kl_warmup else chosen.beta,
            gamma=chosen.gamma,
            rigid=rigid,
            terms=() if rigid else chosen.terms,
            **several,
        )

    def _inputs(self, objective: Objective, batch: Any, scale: float = 1.0) -> list[Tensor]:
        parameters = [scale * p.detach() for p in trained(self._pair).values()]
        inputs = [*parameters, *batch]
        if objective.beta is None:
            inputs.append(batch.images.new_tensor(scale))
        if objective.terms:
            inputs.append(batch.images.new_full((len(objective.terms),), scale))
        return inputs

    def _first_pass(self) -> None:
        """Validates distributions; finds buffers that change."""
        before = {name: b._version for name, b in self._pair.named_buffers()}
        for rigid in self._parts():
            objective = self._objective(rigid)
            with torch.no_grad(), poutine.trace(param_only=True) as seen:
                objective.loss(*self._inputs(objective, self._batch), validate=True)
        _point_out(seen.trace.nodes, objective.names)
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
        inputs = self._inputs(objective, other, OTHER)
        tolerance = AGREE if other.images.device.type == "cpu" else ELSEWHERE
        with _same_chance(self._batch.images.device):
            expected = objective(*inputs)
        with _same_chance(self._batch.images.device):
            found = graph(*inputs)
        if not objective.agree(expected, found, tolerance):
            raise _Refused("traced on one batch, it gives other numbers than Python on another")
        return graph

    def _alone(self, rigid: bool) -> Phase:
        objective = self._objective(rigid)
        self._compile(self._graphs[rigid], objective, self._inputs(objective, self._batch))
        return Phase(objective, self._graphs[rigid])

    def _compile(self, graph: Graph, objective: Objective, inputs: Sequence[Tensor]) -> None:
        """Compiles a graph, where that is asked for and can be done."""
        if self._capture != "compile":
            return
        device = self._batch.images.device
        with _same_chance(device):
            expected = graph(*inputs)
        tolerance = ROUNDED if self._settings.precision == "bf16" else STACKED
        rows = (0, -1) if expected[0].dim() else (...,)
        why = None
        try:
            with _same_chance(device):
                graph.compile(*inputs)
            with _same_chance(device):
                found = graph(*inputs)
            results = [[[value[row] for value in r] for r in (expected, found)] for row in rows]
            if not all(objective.agree(*pair, tolerance) for pair in results):
                why = "it gives other numbers then"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler may raise
            why = _told(error)
        if why is not None:
            graph.uncompile()
            log.warning("steps are traced, but not compiled: %s", why)

    def _stacked(self, pairs: Sequence[Pair], rigid: bool) -> Phase:
        s, own = len(pairs), self._settings.order == "own"
        objective = self._objective(rigid, seeds=s, own=own)
        of = zip(*(trained(pair).values() for pair in pairs), strict=True)
        parameters = [torch.stack([p.detach() for p in several]) for several in of]
        batch = [
            torch.stack([field] * s) if own and field.dim() else field for field in self._batch
        ]
        rest = self._inputs(objective, self._batch)[len(parameters) + len(batch) :]
        draws = self._draws[rigid]
        try:
            with warnings.catch_warnings():
                # an operation that vmap would take seed by seed
                warnings.filterwarnings("error", message="There is a performance drop")
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
            found_there = [value[row] for value in found]
            if not objective.agree(expected, found_there, STACKED):
                raise _Refused("stacked, a seed gives other numbers than alone")
        self._compile(graph, objective, [*parameters, *batch, *rest, *noise])
        return phase


def _point_out(sites: Iterable[str], trained: Sequence[str]) -> None:
    """Says which parameters of Pyro's store a pair uses that are not parameters of its modules."""
    for site in sites:
        names = f".{site}", f".{site}_unconstrained"  # as nn.Module and PyroModule have them
        if not any(name.endswith(names) for name in trained):
            log.warning(
                "pyro.param %r is not trained: it is no parameter of the pair; make the part that "
                "asks for it an nn.Module",
                site,
            )


def _fixed(pair: Pair) -> list[tuple[str, Tensor]]:
    """Tensors of a pair that are not trained."""
    frozen = [(n, p.detach()) for n, p in pair.named_parameters() if not p.requires_grad]
    return [*pair.named_buffers(), *frozen]


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
