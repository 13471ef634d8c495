"""The step as a CUDA graph, rehearsed without a GPU: a recorder takes the graph's place."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyrocryo as pc
from pyrocryo.svi import Settings
from pyrocryo.svi.program import Program
from pyrocryo.svi.stack import Stack
from pyrocryo.svi.step import Step, _undone


class Recorder(TorchDispatchMode):
    """As a CUDA graph: what ran once runs again on the same memory, without Python."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.generators = []

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert "_local_scalar_dense" not in str(func), "the host would wait for the device"
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for there, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(there, torch.Tensor) and there.data_ptr() != new.data_ptr():
                    there.copy_(new)


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


@pytest.fixture
def as_if_cuda(monkeypatch):
    steps = []

    @contextlib.contextmanager
    def captured(graph, *, stream, capture_error_mode):
        with _undone(steps[-1]), graph:  # capture runs nothing
            yield

    for name, value in {
        "CUDAGraph": Recorder,
        "Stream": Stream,
        "current_stream": lambda device: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": captured,
        "get_rng_state": lambda device: torch.get_rng_state(),
        "set_rng_state": lambda state, device: torch.set_rng_state(state),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def step(stack, settings, generators=()):
        made = Step(stack, settings, generators)
        made._on_gpu, made._lr = True, torch.tensor(settings.lr, dtype=stack.theta.dtype)
        made.optimiser = torch.optim.Adam([stack.theta], lr=made._lr, fused=True, capturable=True)
        steps.append(made)
        return made

    return step


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("pose", [None, pc.poses.InPlane()], ids=["known", "in-plane"])
def test_replays_take_the_steps_that_python_takes(as_if_cuda, seeds, pose):
    """Fresh noise, new batches, schedules of both weights, two phases, moments gone on with."""
    particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=80, seed=0, box=16)
    settings = Settings(steps=12, batch_size=8, rigid_steps=4, kl_warmup=4, clip=2.0)
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0),
        pc.volumes.Grid(hidden=(16,)),
        16,
        pose=pose,
        guide=pc.guides.Amortised((16,)),
    ).double()  # so that Adam's first steps have no rounding to enlarge

    def read(rows):
        batch = particles.batch(rows)
        return batch._make(f.double() if f.is_floating_point() else f for f in batch)

    program = Program(pair, read(np.arange(8)), settings, capture=True)
    losses = []
    for make in (Step, as_if_cuda):
        pairs = [copy.deepcopy(pair) for _ in range(seeds)]
        assert seeds == 1 or program.stackable(pairs)
        generators = [torch.Generator().manual_seed(7 + s) for s in range(seeds)]
        step = make(Stack(pairs), settings, generators if seeds > 1 else ())
        torch.manual_seed(3)
        found = []
        for n in range(settings.steps):
            batch = read((np.arange(8) + 8 * n) % 70)
            if seeds > 1:
                batch = batch._make(torch.stack([f] * 2) if f.dim() else f for f in batch)
            phase = program.phase(pairs, n < settings.rigid_steps)
            step(phase, batch, settings.beta_at(n), settings.lr_at(n))
            found.append(step.now().clone())
        losses.append(torch.stack(found))
        assert step.optimiser.state[step.stack.theta]["step"].item() == settings.steps
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
    assert losses[0].std(0).min() > 0


def test_a_replay_goes_on_with_saved_moments(as_if_cuda):
    particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=80, seed=0, box=16)
    settings = Settings(steps=8, batch_size=8)
    pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(hidden=(16,)), 16)
    batch = particles.batch(np.arange(8))
    program = Program(pair, batch, settings, capture=True)

    def steps(step, some):
        for n in some:
            step(program.phase(step.stack.pairs, False), batch, 1.0, settings.lr_at(n))
        return step.stack.theta.clone()

    torch.manual_seed(0)
    expected = steps(as_if_cuda(Stack([copy.deepcopy(pair)]), settings), range(8))
    torch.manual_seed(0)
    first = as_if_cuda(Stack([copy.deepcopy(pair)]), settings)
    steps(first, range(4))
    second = as_if_cuda(Stack([copy.deepcopy(first.stack.pairs[0])]), settings)
    second.set_moments(first.moments())
    assert second.optimiser.param_groups[0]["lr"] is second._lr
    torch.testing.assert_close(steps(second, range(4, 8)), expected, rtol=1e-5, atol=1e-6)


def test_what_cuda_refuses_runs_without_a_graph(as_if_cuda, monkeypatch, caplog):
    """Said once; the numbers stay what they are in Python."""
    particles = pc.simulate.poses(pc.molecules.TwoArms(), n=80, seed=0, box=16)
    settings = Settings(steps=6, batch_size=8)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(hidden=(16,)), 16)
    batch = particles.batch(np.arange(8))
    program = Program(pair, batch, settings, capture=True)

    @contextlib.contextmanager
    def refused(graph, **options):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refused)
    losses = []
    for make in (Step, as_if_cuda):
        step = make(Stack([copy.deepcopy(pair)]), settings)
        torch.manual_seed(0)
        found = []
        for n in range(settings.steps):
            step(program.phase(step.stack.pairs, False), batch, 1.0, settings.lr_at(n))
            found.append(step.now().clone())
        losses.append(torch.stack(found))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-4)
    said = [r.message for r in caplog.records if "CUDA graph" in r.message]
    assert said == [
        "steps run without a CUDA graph: operation not permitted when stream is capturing"
    ]
