"""The training step: traced, stacked, replayed, and always the same numbers."""

import copy
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

import pyrocryo as pc
from pyrocryo.svi import Settings, checkpoints, grouping, train
from pyrocryo.svi.graph import Graph
from pyrocryo.svi.program import Program
from pyrocryo.svi.stack import Stack, trained
from pyrocryo.svi.step import Step

BOX = 16
KEYS = ("loss", "grad_norm", "lr", "beta")


@pytest.fixture(scope="module")
def in_time():
    return pc.simulate.time_resolved(pc.molecules.TwoArms(), n=80, seed=0, box=BOX)


@pytest.fixture(scope="module")
def warm():
    return pc.simulate.temperature(pc.molecules.TwoArms(), n=80, seed=0, box=BOX)


@pytest.fixture(scope="module")
def around():
    return pc.simulate.poses(
        pc.molecules.AdenylateKinase(), n=40, seed=0, box=BOX, pixel_size=6.0, snr=1.0
    )


def _small(**options):
    options.setdefault("volume", pc.volumes.Grid(hidden=(16,)))
    options.setdefault("guide", pc.guides.Amortised((16,)))
    options.setdefault("prior", pc.priors.LaplaceTransition(2, 2.0))
    return pc.Pair(box=BOX, **options)


def _energies():
    return pc.priors.Boltzmann(
        energies=[pc.priors.LearnedEnergy(), pc.priors.DoubleWell(1.0)], reference=300
    )


PAIRS = {
    "slowvae": lambda: _small(),
    "vae": lambda: _small(prior=pc.priors.IsotropicNormal(2)),
    "implicit": lambda: _small(volume=pc.volumes.Implicit(pixels=100, hidden=(16,), features=8)),
    "atoms": lambda: _small(volume=pc.volumes.Atoms(pixel_size=3.0, count=12, hidden=(8,))),
    "in-plane": lambda: _small(pose=pc.poses.InPlane()),
    "monte carlo": lambda: _small(prior=dist.StudentT(5.0, torch.zeros(2, 2), 1.0).to_event(2)),
    "boltzmann": lambda: _small(
        prior=pc.priors.Boltzmann(
            table={280: [0.5, 1.0], 300: [1.0, 0.7], 320: [1, 1]}, learned=True
        )
    ),
    "energies": lambda: _small(prior=_energies()),
    "gauss-newton": lambda: _small(
        prior=pc.priors.IsotropicNormal(2),
        volume=pc.volumes.Atoms.known(pc.molecules.AdenylateKinase(), pixel_size=6.0),
        guide=pc.guides.GaussNewton(1),
        rotate=False,
    ),
}
SETTINGS = {
    "slowvae": {"gamma": 2.0, "beta": 0.5},
    "in-plane": {"rigid_steps": 4, "kl_warmup": 4, "clip": 1.0},
    "vae": {"kl_warmup": 5},
}


def _particles(name, request):
    data = {"boltzmann": "warm", "energies": "warm", "gauss-newton": "around"}
    particles = request.getfixturevalue(data.get(name, "in_time"))
    if name != "boltzmann":
        return particles
    table = np.array([280.0, 300.0, 320.0])
    fields = dict(particles.fields, temperature=table[np.arange(len(particles)) % 3])
    return pc.Particles(particles.images, pixel_size=particles.pixel_size, **fields)


@pytest.mark.parametrize("name", PAIRS)
def test_a_traced_step_gives_the_numbers_of_python(name, request):
    particles = _particles(name, request)
    options = {"steps": 12, "batch_size": 8, **SETTINGS.get(name, {})}
    as_python = pc.fit(PAIRS[name](), particles, capture=False, **options)
    traced = pc.fit(PAIRS[name](), particles, capture=True, **options)
    for key in KEYS:
        np.testing.assert_allclose(traced.history[key], as_python.history[key], rtol=1e-6)
    for a, b in zip(traced.pairs[0].parameters(), as_python.pairs[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.filterwarnings("ignore")  # of the compiler's own insides
def test_a_compiled_graph_draws_the_same_numbers():
    graph = Graph(lambda x: [(x + torch.randn_like(x)).exp().sum(-1)], [torch.zeros(3, 4)])
    torch.manual_seed(1)
    expected = graph(torch.ones(3, 4))
    graph.compile(torch.zeros(3, 4))
    torch.manual_seed(1)
    torch.testing.assert_close(graph(torch.ones(3, 4)), expected)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("off", [0.0, 0.1])
def test_compiled_steps_are_compared_with_traced_ones(in_time, together, off, monkeypatch, caplog):
    """The compiler's place is taken, by one that may give other numbers."""
    calls = []

    def compiled(module, **options):
        def call(*inputs):
            calls.append(options)
            loss, gradient = module(*inputs)
            return [loss * (1 + off), gradient]

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    options = {"steps": 4, "batch_size": 8, "seeds": 2, "together": together}
    traced = pc.fit(PAIRS["slowvae"](), in_time, capture=True, **options)
    assert not calls
    asked = pc.fit(PAIRS["slowvae"](), in_time, capture="compile", **options)
    np.testing.assert_array_equal(asked.history["loss"], traced.history["loss"])
    assert ("not compiled: it gives other numbers then" in caplog.text) == bool(off)
    assert len(calls) == (2 if off else 2 + 4 * 2 // together)


def test_what_cannot_be_compiled_stays_traced(in_time, monkeypatch, caplog):
    def refused(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refused)
    options = {"steps": 4, "batch_size": 8}
    traced = pc.fit(PAIRS["slowvae"](), in_time, capture=True, **options)
    asked = pc.fit(PAIRS["slowvae"](), in_time, capture="compile", **options)
    assert caplog.text.count("steps are traced, but not compiled: RuntimeError: no compiler") == 1
    np.testing.assert_array_equal(asked.history["loss"], traced.history["loss"])


def _batch(particles, rows, number):
    batch = particles.batch(rows)
    return batch._make(f.to(number) if f.is_floating_point() else f for f in batch)


def _program(pair, particles, number=torch.float32, **settings):
    settings = Settings(batch_size=8, steps=20, **settings)
    batch = _batch(particles, np.arange(8), number)
    return Program(pair, batch, settings, capture=True), settings


def _seeds(pair, n):
    pairs = [copy.deepcopy(pair) for _ in range(n)]
    for seed, one in enumerate(pairs):
        torch.manual_seed(seed)
        for module in one.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return pairs


@pytest.mark.parametrize("name", PAIRS)
def test_a_stacked_seed_equals_itself_alone(name, request):
    """Loss and gradients of ten steps, each seed with its own particles and noise."""
    particles = _particles(name, request)
    # poses pass through Fourier transforms, whose rounding the first steps of Adam make larger
    number = torch.float64 if name == "in-plane" else torch.float32
    template = PAIRS[name]().to(number)
    program, settings = _program(template, particles, number, **SETTINGS.get(name, {}))
    pairs = _seeds(template, 3)
    assert program.stackable(pairs)
    generators = [torch.Generator().manual_seed(10 + s) for s in range(3)]
    together = Step(Stack(copy.deepcopy(pairs)), settings, generators)
    alone = [Step(Stack([pair]), settings) for pair in pairs]
    chances = [torch.Generator().manual_seed(10 + s).get_state() for s in range(3)]
    for n in range(10):
        rigid = n < settings.rigid_steps
        rows = [(np.arange(8) + 8 * n + 5 * s) % 30 for s in range(3)]
        batches = [_batch(particles, r, number) for r in rows]
        stacked = batches[0]._make(
            torch.stack(fields) if fields[0].dim() else fields[0]
            for fields in zip(*batches, strict=True)
        )
        weight = settings.beta_at(n), settings.lr_at(n)
        together(program.phase(together.stack.pairs, rigid), stacked, *weight)
        for s, step in enumerate(alone):
            step.set_chance([chances[s]])
            step(program.phase(step.stack.pairs, rigid), batches[s], *weight)
            chances[s] = step.chance()[0]
            torch.testing.assert_close(
                together.now()[:, s], step.now()[:, 0], rtol=1e-5, atol=1e-5
            )
            expected = step.stack.theta.grad[0]
            error = (together.stack.theta.grad[s] - expected).norm() / expected.norm()
            assert error < 1e-5, (n, s)


@pytest.mark.parametrize("order", ["own", "shared"])
def test_seeds_together_and_one_after_another(in_time, order):
    options = {"steps": 12, "batch_size": 8, "seeds": [3, 5, 8], "capture": True, "order": order}
    apart = pc.fit(_small(), in_time, together=1, **options)
    together = pc.fit(_small(), in_time, together=2, **options)
    np.testing.assert_allclose(together.history["loss"], apart.history["loss"], rtol=1e-5)
    post = pc.posterior(together, in_time.test, draws=4)
    assert list(post.posterior.chain.values) == [3, 5, 8]


def test_a_shared_order_shows_all_seeds_the_same(in_time, monkeypatch):
    shown = []
    original = pc.Particles.batch

    def seen(self, rows):
        shown.append(np.asarray(rows))
        return original(self, rows)

    monkeypatch.setattr(pc.Particles, "batch", seen)
    fits = [
        pc.fit(_small(), in_time, steps=3, batch_size=8, seeds=2, order="shared", together=n)
        for n in (1, 2)
    ]
    own = pc.fit(_small(), in_time, steps=3, batch_size=8, seeds=2)
    np.testing.assert_allclose(fits[0].history["loss"], fits[1].history["loss"], rtol=1e-5)
    assert not np.allclose(own.history["loss"][1], fits[0].history["loss"][1])


class Branches(nn.Module):
    dim = 2

    def forward(self, temperature):
        size = 1.0 if temperature.mean().item() > 1 else 2.0
        return dist.Normal(temperature.new_zeros(len(temperature), 2), size).to_event(1)


class Counts(nn.Module):
    dim = 2
    calls = 0

    def forward(self, temperature):
        Counts.calls += 1
        size = 1.0 + 0.1 * Counts.calls
        return dist.Normal(temperature.new_zeros(len(temperature), 2), size).to_event(1)


class Masks(nn.Module):
    dim = 2

    def forward(self, temperature):
        size = 1.0 + 0.1 * len(torch.unique(temperature.round()))
        cold = temperature[temperature < 290].sum() / 1e5
        return dist.Normal(temperature.new_zeros(len(temperature), 2), size + cold).to_event(1)


class Remembers(nn.Module):
    dim = 2

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, temperature):
        self.mean.add_(0.001)
        return dist.Normal(self.mean.expand(len(temperature), 2), 1.0).to_event(1)


@pytest.mark.parametrize(
    ("prior", "why"),
    [
        (Branches, r"taken out of a tensor \(.item\(\).*test_step.py, line"),
        (Counts, "other numbers than Python"),
        (Masks, "depends on values .a boolean mask, unique"),
        (Remembers, "buffer prior.mean"),
    ],
)
def test_what_cannot_be_traced_trains_as_python_and_says_why_once(warm, caplog, prior, why):
    options = {"steps": 6, "batch_size": 8, "seeds": 2}
    with caplog.at_level(logging.WARNING, logger="pyrocryo"):
        fit = pc.fit(_small(prior=prior()), warm, capture=True, **options)
    said = [r.message for r in caplog.records if "not traced" in r.message]
    assert len(said) == 1
    assert re.search(why, said[0])
    assert (fit.history["loss"][:, -1] < fit.history["loss"][:, 0]).all()
    if prior is Branches:
        plain = pc.fit(_small(prior=prior()), warm, capture=False, **options)
        np.testing.assert_array_equal(plain.history["loss"], fit.history["loss"])


def test_a_guide_with_dropout_is_traced_and_stacked(in_time):
    class Dropping(pc.guides.Amortised):
        def build(self, latent, box, volume):
            super().build(latent, box, volume)
            self.network.insert(2, nn.Dropout(0.3))
            return self

    def pair():
        return _small(guide=Dropping((16,)))

    options = {"steps": 6, "batch_size": 8, "seeds": 2}
    plain = pc.fit(pair(), in_time, capture=False, **options)
    for together in (1, 2):
        traced = pc.fit(pair(), in_time, capture=True, together=together, **options)
        np.testing.assert_allclose(traced.history["loss"], plain.history["loss"], rtol=1e-5)


def test_noise_like_another_tensor_is_stacked_too(in_time, caplog):
    class Jittery(pc.guides.Amortised):
        def forward(self, images, rotation, shift):
            jittered = images + 0.1 * torch.randn_like(images) + 0.1 * torch.rand_like(images)
            return super().forward(jittered, rotation, shift)

    options = {"steps": 6, "batch_size": 8, "seeds": 2, "capture": True}
    alone = pc.fit(_small(guide=Jittery((16,))), in_time, together=1, **options)
    together = pc.fit(_small(guide=Jittery((16,))), in_time, together=2, **options)
    np.testing.assert_allclose(together.history["loss"], alone.history["loss"], rtol=1e-5)
    assert "one after another" not in caplog.text


def test_what_is_not_trained_is_each_seeds_own(in_time, caplog):
    """Random features: a frozen first layer that every seed draws anew."""

    def pair():
        made = _small()
        made.encoder.network[0].weight.requires_grad_(False)
        return made

    options = {"steps": 8, "batch_size": 8, "seeds": 2}
    plain = pc.fit(pair(), in_time, capture=False, **options)
    for together in (1, 2):
        traced = pc.fit(pair(), in_time, capture=True, together=together, **options)
        np.testing.assert_allclose(traced.history["loss"], plain.history["loss"], rtol=1e-6)
    assert "encoder.network.0.weight, which is not trained, differs" in caplog.text


def test_a_value_taken_out_of_a_parameter_is_found(warm, caplog):
    class Peeks(nn.Module):
        dim = 2

        def __init__(self):
            super().__init__()
            self.width = nn.Parameter(torch.ones(2))

        def reset_parameters(self):
            nn.init.ones_(self.width)

        def forward(self, temperature):
            size = torch.as_tensor(self.width.detach().tolist())
            scale = (size * self.width).square() + 0.1
            return dist.Normal(torch.zeros(len(temperature), 2), scale).to_event(1)

    options = {"steps": 8, "batch_size": 8, "lr": 0.05}
    plain = pc.fit(_small(prior=Peeks()), warm, capture=False, **options)
    traced = pc.fit(_small(prior=Peeks()), warm, capture=True, **options)
    np.testing.assert_allclose(traced.history["loss"], plain.history["loss"], rtol=1e-6)
    assert "not traced" in caplog.text


@pytest.mark.parametrize("capture", [False, True])
def test_a_prior_as_pyros_own_module_is_trained(warm, capture):
    class Learned(PyroModule):
        dim = 2

        def __init__(self):
            super().__init__()
            self.width = PyroParam(torch.ones(2), constraint=dist.constraints.positive)

        def reset_parameters(self):
            self.width = torch.ones(2)

        def forward(self, temperature):
            return dist.Normal(0.0, self.width.expand(len(temperature), 2)).to_event(1)

    fit = pc.fit(
        _small(prior=Learned()), warm, steps=20, batch_size=8, seeds=2, lr=0.05, capture=capture
    )
    widths = [pair.prior.width_unconstrained.detach() for pair in fit.pairs]
    assert all(float(width.abs().min()) > 0.02 for width in widths)
    assert not len(pyro.get_param_store())
    for pair in fit.pairs:  # each has its own, whatever the other's was called
        found = pair.prior_of(warm.batch(np.arange(3))).base_dist.scale[0]
        torch.testing.assert_close(found, pair.prior.width)
    assert not torch.equal(fit.pairs[0].prior.width, fit.pairs[1].prior.width)


def test_a_parameter_of_nobodys_is_pointed_out(warm, caplog):
    def prior(temperature):
        width = pyro.param("width", torch.ones(2))
        return dist.Normal(0.0, width.expand(len(temperature), 2)).to_event(1)

    pc.fit(_small(prior=prior, dim=2), warm, steps=2, batch_size=8)
    assert "pyro.param 'width' is not trained" in caplog.text


def test_resumed_pairs_are_as_trained_ones(in_time, tmp_path):
    options = {"steps": 4, "batch_size": 8, "precision": "bf16"}
    options["checkpoint"] = tmp_path / "checkpoint.pt"
    whole = pc.fit(_small(), in_time, **options)
    again = pc.fit(_small(), in_time, resume=True, **options)
    batch = in_time.batch(np.arange(4))
    assert torch.equal(*(fit.pairs[0].posterior_of(batch).mean for fit in (whole, again)))


def test_a_checkpoint_of_another_device_is_gone_on_with(in_time, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoints, "EVERY", 3)
    path = tmp_path / "checkpoint.pt"
    options = {"steps": 6, "batch_size": 8, "checkpoint": path}
    saved, original = [], checkpoints._write
    monkeypatch.setattr(
        checkpoints, "_write", lambda *args: (original(*args), saved.append(path.read_bytes()))
    )
    whole = pc.fit(_small(), in_time, **options)
    path.write_bytes(saved[0])
    content = torch.load(path, weights_only=True)
    content["current"] |= {"device": "cuda", "chance": [[torch.zeros(16, dtype=torch.uint8)]]}
    torch.save(content, path)
    with caplog.at_level(logging.INFO, logger="pyrocryo"):
        again = pc.fit(_small(), in_time, resume=True, **options)
    assert "random numbers start afresh" in caplog.text
    np.testing.assert_array_equal(again.history["loss"][0, :3], whole.history["loss"][0, :3])
    np.testing.assert_allclose(again.history["loss"], whole.history["loss"], rtol=0.02)
    np.testing.assert_array_equal(again.history["lr"], whole.history["lr"])


def test_one_latent_has_no_axes_to_turn(in_time):
    def pair():
        return _small(prior=pc.priors.LaplaceTransition(1, 2.0), pose=pc.poses.InPlane())

    options = {"steps": 8, "batch_size": 8, "rigid_steps": 3, "seeds": 2}
    plain = pc.fit(pair(), in_time, capture=False, **options)
    for together, rtol in ((1, 1e-6), (2, 5e-3)):  # Adam's first steps enlarge rounding
        traced = pc.fit(pair(), in_time, capture=True, together=together, **options)
        np.testing.assert_allclose(traced.history["loss"], plain.history["loss"], rtol=rtol)


def test_a_frozen_pair_is_told(in_time):
    with pytest.raises(pc.InputError, match="pair: no parameter is left to train"):
        pc.fit(_small().requires_grad_(False), in_time, steps=2)


def test_a_guide_of_someone_else_in_bf16_leaves_the_densities_in_float32(in_time):
    class Plain(nn.Module):
        def build(self, latent, box, volume):
            self.latent = latent
            self.layer = nn.Linear(box * box, 2 * latent)
            return self

        def forward(self, images, rotation, shift):
            loc, log_scale = self.layer(images.flatten(-2)).chunk(2, dim=-1)
            return loc, torch.diag_embed(log_scale.exp())

    pair = _small(guide=Plain())
    with torch.autocast("cpu", torch.bfloat16):
        assert pair.encoder(in_time.batch(np.arange(2)).images, None, None)[0].dtype == (
            torch.bfloat16
        )
    pair.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    posterior = pair.posterior_of(in_time.batch(np.arange(2)))
    assert posterior.mean.dtype == posterior.base_dist.scale_tril.dtype == torch.float32


def test_seeds_that_cannot_be_stacked_train_one_after_another(in_time, caplog):
    class Noisy(pc.guides.Amortised):
        def forward(self, images, rotation, shift):
            jitter = torch.normal(images.mean((-1, -2), keepdim=True), 0.01)
            return super().forward(images + jitter, rotation, shift)

    def pair():
        return _small(guide=Noisy((16,)))

    options = {"steps": 6, "batch_size": 8, "seeds": 2}
    plain = pc.fit(pair(), in_time, capture=False, **options)
    with caplog.at_level(logging.WARNING, logger="pyrocryo"):
        traced = pc.fit(pair(), in_time, capture=True, together=2, **options)
    np.testing.assert_allclose(traced.history["loss"], plain.history["loss"], rtol=1e-6)
    said = [r.message for r in caplog.records if "one after another" in r.message]
    assert len(said) == 1
    assert "random numbers depend on other numbers" in said[0]


def test_a_graph_computes_once_what_never_changes():
    calls = []

    def call(x):
        calls.append(1)
        fixed = torch.arange(4.0).square().exp()
        filled = torch.zeros(4)
        filled[1] = 2.0  # written to: not the same tensor twice
        filled.add_(x)
        return [(fixed * x + torch.rand(4)).sum(), filled]

    x = torch.ones(4)
    graph = Graph(call, [x])
    names = [str(n.target) for n in graph._module.graph.nodes]
    assert not any("arange" in name or "exp" in name for name in names)
    first, again = graph(x), graph(x)
    torch.testing.assert_close(again[1], torch.tensor([1.0, 3.0, 1.0, 1.0]))
    assert first[0] != again[0]  # fresh noise
    assert len(calls) == 1
    torch.manual_seed(3)
    expected = call(2 * x)[0]
    torch.manual_seed(3)
    assert torch.equal(graph(2 * x)[0], expected)
    assert 16 <= graph.peak < 1000


def test_the_peak_of_a_graph_counts_what_lives_at_once():
    def call(x):
        y = x * 2  # 4000 bytes
        z = y.view(10, 100).t() + 1  # the view is free; y goes after this
        return [(z * 3).sum()]

    assert Graph(call, [torch.ones(1000)]).peak == 8000


def test_a_seed_that_is_not_finite_is_not_moved(in_time):
    program, settings = _program(_small(), in_time)
    pairs = _seeds(_small(), 2)
    step = Step(Stack(pairs), settings, [torch.Generator().manual_seed(s) for s in (0, 1)])
    assert program.stackable(pairs)
    batch = in_time.batch(np.arange(8))
    batch = batch._make(torch.stack([f, f]) if f.dim() else f for f in batch)
    batch.images[1, 0] = float("nan")
    before = step.stack.theta.clone()
    step(program.phase(pairs, False), batch, 1.0, 1e-2)
    assert torch.isfinite(step.now()).tolist() == [[True, False], [True, False]]
    assert torch.equal(before[1], step.stack.theta[1])
    assert not torch.equal(before[0], step.stack.theta[0])


def test_pairs_of_a_stack_are_its_rows_until_released():
    pairs = _seeds(_small(), 2)
    expected = [[p.clone() for p in trained(pair).values()] for pair in pairs]
    stack = Stack(pairs)
    stack.theta[1] += 1
    for a, b in zip(trained(pairs[1]).values(), expected[1], strict=True):
        torch.testing.assert_close(a.detach(), b.detach() + 1)
    stack.release()
    stack.theta.zero_()
    for a, b in zip(trained(pairs[0]).values(), expected[0], strict=True):
        assert torch.equal(a, b)


def test_groups_are_even_and_fit():
    cpu, seeds = torch.device("cpu"), list(range(10))
    sizes = [len(g) for g in grouping.groups(seeds, 2_000_000, cpu, None, 10_000_000)]
    assert sum(sizes) == 10
    assert max(sizes) == 4
    assert max(sizes) - min(sizes) <= 1
    assert [len(g) for g in grouping.groups(seeds, 2_000_000, cpu, 3, 10_000_000)] == [2, 3, 3, 2]
    assert len(grouping.groups(seeds, grouping.CACHE + 1, cpu, None, 10**9)) == 10


def test_what_does_not_fit_is_told_with_what_would(in_time, monkeypatch):
    monkeypatch.setattr(grouping, "free_memory", lambda device: 1_000_000)
    monkeypatch.setattr(train, "free_memory", lambda device: 1_000_000)
    with pytest.raises(pc.InputError, match=r"batch_size: 64 particles do not fit .* (\d+) would"):
        pc.fit(_small(), in_time, steps=2, capture=True)
    with pytest.raises(pc.InputError) as told:
        pc.fit(_small(), in_time, steps=2, capture=True)
    fitting = int(str(told.value).split()[-2])
    assert 8 <= fitting < 64
    pc.fit(_small(), in_time, steps=2, capture=True, batch_size=fitting)


def test_a_failed_allocation_is_told(in_time, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Step, "_run", full)
    with pytest.raises(pc.InputError, match="together: .* 4 seeds at once; 2 should fit"):
        pc.fit(_small(), in_time, steps=2, seeds=4, capture=True, together=4)
    with pytest.raises(pc.InputError, match="batch_size: 64 particles do not fit"):
        pc.fit(_small(), in_time, steps=2)


@pytest.mark.parametrize("together", [1, 2])
def test_a_killed_traced_fit_resumes_to_the_same_numbers(in_time, tmp_path, monkeypatch, together):
    monkeypatch.setattr(checkpoints, "EVERY", 5)
    options = {"steps": 12, "seeds": 4, "batch_size": 8, "capture": True, "together": together}
    whole = pc.fit(_small(), in_time, **options)
    path = tmp_path / "checkpoint.pt"
    original, calls = Step.__call__, iter(range(10**6))

    def walled(self, *args):
        if next(calls) == 20:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Step, "__call__", walled)
    with pytest.raises(KeyboardInterrupt):
        pc.fit(_small(), in_time, checkpoint=path, **options)
    monkeypatch.setattr(Step, "__call__", original)
    stopped = path.read_bytes()
    resumed = pc.fit(_small(), in_time, checkpoint=path, resume=True, **options)
    for key in KEYS:
        np.testing.assert_array_equal(resumed.history[key], whole.history[key])
    if together == 2:
        (tmp_path / "copy.pt").write_bytes(stopped)
        options |= {"capture": False, "together": None}  # but two began together
        again = pc.fit(_small(), in_time, checkpoint=tmp_path / "copy.pt", resume=True, **options)
        np.testing.assert_allclose(again.history["loss"], whole.history["loss"], rtol=1e-4)


@pytest.mark.parametrize("name", ["slowvae", "implicit", "atoms", "in-plane", "gauss-newton"])
def test_bf16_trains_networks_and_keeps_the_rest(name, request):
    particles = _particles(name, request)
    options = {"steps": 20, "batch_size": 8}
    full = pc.fit(PAIRS[name](), particles, **options)
    low = pc.fit(PAIRS[name](), particles, precision="bf16", **options)
    traced = pc.fit(PAIRS[name](), particles, precision="bf16", capture=True, **options)
    np.testing.assert_allclose(low.history["loss"], full.history["loss"], rtol=0.02)
    np.testing.assert_allclose(traced.history["loss"], low.history["loss"], rtol=1e-4)
    if name == "gauss-newton":  # no network reads these images: nothing to lower
        np.testing.assert_array_equal(low.history["loss"], full.history["loss"])
    else:
        assert not np.array_equal(low.history["loss"], full.history["loss"])
    batch = particles.batch(np.arange(3))
    pair = low.pairs[0]
    with torch.autocast("cpu", torch.bfloat16):
        clean = pair.volume(torch.zeros(*batch.images.shape[:-2], 2), *pair.placed(batch))
        images, more = pair._shown(pair.encoder, batch)
        loc, scale = pair.encoder(images, *pair.placed(batch), **more)
    assert clean.dtype == loc.dtype == scale.dtype == torch.float32


def test_tf32_is_left_as_it_was_found(in_time):
    before = torch.get_float32_matmul_precision()
    pc.fit(_small(), in_time, steps=2, precision="tf32")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision: expected one of float32, tf32, bf16, got 'fp16'"),
        ({"order": "random"}, "order: expected one of own, shared, got 'random'"),
        ({"together": 0}, "together: expected at least 1, got 0"),
        ({"devices": 0}, "devices: expected at least 1, got 0"),
        ({"devices": 2, "device": "cuda:1"}, "device: cuda:1 is one device, but devices is 2"),
    ],
)
def test_wrong_options_are_named(in_time, options, message):
    with pytest.raises(pc.InputError, match=message):
        pc.fit(_small(), in_time, steps=2, **options)


class _Waits(pc.volumes.Grid):
    """What no CUDA graph can record: an operation that waits for the device."""

    def forward(self, z, rotation, shift):
        eye = torch.eye(2, device=z.device).expand(8, 2, 2) * (1 + 0 * z.sum())
        one = torch.cholesky_solve(eye, eye)[0, 0, 0]
        return one * super().forward(z, rotation, shift)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("together", [1, 2])
def test_a_step_that_no_graph_can_hold_runs_without(in_time, together, caplog):
    options = {"steps": 6, "batch_size": 8, "seeds": 2, "device": "cuda", "together": together}
    pair = _small(volume=_Waits(hidden=(16,)))
    plain = pc.fit(pair, in_time, capture=False, **options)
    with caplog.at_level(logging.WARNING, logger="pyrocryo"):
        traced = pc.fit(pair, in_time, capture=True, **options)
    assert "steps run without a CUDA graph" in caplog.text
    np.testing.assert_allclose(traced.history["loss"], plain.history["loss"], rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("pose", ["known", "around", "anywhere"])
def test_gauss_newton_steps_are_one_graph(around, pose, caplog):
    poses = {
        "known": None,
        "around": pc.poses.SO3(around=5.0, shift_sd=1.0),
        "anywhere": pc.poses.SO3(),
    }
    pair = pc.Pair(
        prior=pc.priors.IsotropicNormal(2),
        volume=pc.volumes.Atoms.known(pc.molecules.AdenylateKinase(), pixel_size=6.0),
        guide=pc.guides.GaussNewton(1),
        pose=poses[pose],
        rotate=False,
        box=BOX,
    )
    options = {"steps": 6, "batch_size": 8, "seeds": 2, "device": "cuda", "together": 2}
    plain = pc.fit(pair, around, capture=False, **options)
    with caplog.at_level(logging.WARNING, logger="pyrocryo"):
        traced = pc.fit(pair, around, capture=True, **options)
    assert "without a CUDA graph" not in caplog.text
    np.testing.assert_allclose(traced.history["loss"], plain.history["loss"], rtol=1e-3)


SCRIPT = """
import shutil, sys, torch
import pyrocryo as pc
from pyrocryo.svi import checkpoints
devices, path, resume = int(sys.argv[1]), sys.argv[2], sys.argv[3]
checkpoints.EVERY = 4
write, names = checkpoints._write, iter("abcdefgh")
def kept(content, path):  # each checkpoint, as a kill before the next would leave it
    write(content, path)
    shutil.copy(path, f"{path}.{next(names)}")
checkpoints._write = kept
particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=80, seed=0, box=16)
pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(hidden=(16,)), 16)
fit = pc.fit(
    pair, particles, steps=12, batch_size=8, seeds=2, devices=devices, capture=True, together=2,
    checkpoint=path, resume=resume == "resume",
)
torch.save(fit.pairs[1].state_dict(), f"{path}.{pc.svi.first_process()}.{devices}")
"""


def _run(script, *args):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, args)],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def _run_here(monkeypatch, *args):
    """On one device, which takes no process of its own."""
    monkeypatch.setattr(checkpoints, "EVERY", checkpoints.EVERY)
    monkeypatch.setattr(checkpoints, "_write", checkpoints._write)
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, args)])
    exec(compile(SCRIPT, "script.py", "exec"), {})
    monkeypatch.undo()


def test_two_processes_share_each_batch_and_leave_one_checkpoint(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    _run_here(monkeypatch, 1, tmp_path / "1.pt", "new")
    _run(script, 2, tmp_path / "2.pt", "new")

    def losses(name):
        done = torch.load(tmp_path / name, weights_only=True)["done"]
        return np.stack([done[seed]["history"][:, 0].numpy() for seed in (0, 1)])

    one, two = losses("1.pt"), losses("2.pt")
    np.testing.assert_allclose(two, one, rtol=0.03)  # the same particles, other noise
    assert not np.array_equal(one, two)
    first, second = (
        torch.load(tmp_path / f"2.pt.{first}.2", weights_only=True) for first in (True, False)
    )
    for name, value in first.items():  # both processes hold the same weights
        assert torch.equal(value, second[name]), name
    # stopped on two devices after eight steps, gone on with on two and on one
    saved = (tmp_path / "2.pt.b").read_bytes()
    assert torch.load(tmp_path / "2.pt.b", weights_only=True)["current"]["steps"] == 8
    (tmp_path / "stopped.pt").write_bytes(saved)
    _run(script, 2, tmp_path / "stopped.pt", "resume")
    np.testing.assert_array_equal(losses("stopped.pt"), two)
    (tmp_path / "stopped.pt").write_bytes(saved)
    _run_here(monkeypatch, 1, tmp_path / "stopped.pt", "resume")
    found = losses("stopped.pt")
    np.testing.assert_array_equal(found[:, :8], two[:, :8])
    np.testing.assert_allclose(found[:, 8:], two[:, 8:], rtol=0.03)
