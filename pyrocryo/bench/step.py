"""What a training step costs: Pyro's own SVI, a loop by hand, and ours, for one seed and many."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyrocryo.bench.timing import compared
from pyrocryo.guides import Amortised
from pyrocryo.molecules import TwoArms
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.priors import IsotropicNormal
from pyrocryo.simulate import poses
from pyrocryo.svi import Settings
from pyrocryo.svi.program import Capture, Program
from pyrocryo.svi.stack import Stack, trained
from pyrocryo.svi.step import Step
from pyrocryo.volumes import Grid

__all__ = ["rows", "stepper"]

LATENT = 4
RATE = 1e-3


def rows(device: str, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Times steps of the same pair.

    A VAE with two hidden layers on either side, poses known. ``other`` is Pyro's SVI as its
    tutorials use it (``Trace_ELBO``, ``pyro.optim.Adam``, validation on), or the same mathematics
    written by hand in PyTorch (closed-form KL, one fused Adam); of several seeds, as many steps
    of SVI one after another.

    Args:
        device: Where to train.
        quick: Fewer samples, and no seeds beyond what a CPU test has time for.

    Yields:
        Rows as :func:`pyrocryo.bench.timing.row` makes them; seconds a step (of all seeds).
    """
    on_gpu = torch.device(device).type == "cuda"
    repeats = 5 if quick else 11
    for box, size in ((32, 128),) if on_gpu else ((8, 4), (16, 4), (16, 16), (32, 64)):
        pair, batch = _case(box, size, 256 if on_gpu else 64, device)
        ours = stepper(pair, batch)
        name = f"{box}², batch {size}"
        yield compared(f"SVI, {name}", ours, _svi(pair, batch), device, repeats=repeats)
        yield compared(f"by hand, {name}", ours, _by_hand(pair, batch), device, repeats=repeats)
        if on_gpu:
            fused = stepper(pair, batch, capture="compile")
            yield compared(f"our step, not compiled, {name}", fused, ours, device, repeats=repeats)
    many = ((50, 16, 64), (50, 32, 128)) if on_gpu else ((16, 8, 64), (16, 16, 64))
    for seeds, box, hidden in many:
        size = 64 if on_gpu else 8
        pair, batch = _case(box, size, hidden, device)
        together = stepper(pair, batch, seeds)
        name = f"{seeds} seeds, {box}², hidden {hidden}, batch {size}"
        for what, other in (("SVI", _svi(pair, batch)), ("our steps", stepper(pair, batch))):
            yield compared(f"{what}, {name}", together, other, device, repeats=repeats, of=seeds)


def stepper(
    pair: Pair,
    batch: Any,
    seeds: int = 1,
    settings: Settings | None = None,
    capture: Capture = True,
) -> Callable[[], None]:
    """Our step, on the same batch each time, for one seed or for several at once."""
    settings = settings or Settings(lr=RATE)
    program = Program(pair, batch, settings, capture=capture)
    pairs = [copy.deepcopy(pair) for _ in range(seeds)]
    generators = []
    if seeds > 1:
        if not program.stackable(pairs):
            raise RuntimeError("this pair cannot be stacked")
        device = batch.images.device
        generators = [torch.Generator(device).manual_seed(seed) for seed in range(seeds)]
        batch = batch._make(torch.stack([f] * seeds) if f.dim() else f for f in batch)
    step = Step(Stack(pairs), settings, generators)
    phase = program.phase(pairs, rigid=False)
    return lambda: step(phase, batch, settings.beta, settings.lr)


def _case(box: int, size: int, hidden: int, device: str) -> tuple[Pair, Any]:
    particles: Particles = poses(TwoArms(), n=size, seed=0, box=box)
    pair = Pair(
        IsotropicNormal(LATENT),
        Grid(hidden=(hidden, hidden)),
        box,
        guide=Amortised((hidden, hidden)),
        rotate=False,
    ).to(device)
    return pair, pair.moved(particles.batch(np.arange(size)))


def _svi(pair: Pair, batch: Any) -> Callable[[], float]:
    pair = copy.deepcopy(pair)
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
    return lambda: svi.step(batch)


def _by_hand(pair: Pair, batch: Any) -> Callable[[], None]:
    pair = copy.deepcopy(pair)
    parameters = list(trained(pair).values())
    optimiser = torch.optim.Adam(parameters, lr=RATE, fused=True)

    def step() -> None:
        rotation, shift = pair.pose(batch)
        loc, scale = pair.encoder(batch.images, rotation, shift)
        z = loc + (scale @ torch.randn_like(loc).unsqueeze(-1)).squeeze(-1)
        clean = pair.volume(z, rotation, shift)
        square = ((batch.images - clean) / pair.noise).square().sum()
        likelihood = -0.5 * square - batch.images.numel() * pair.noise.log()
        spread = scale.square().sum() - 2 * scale.diagonal(dim1=-2, dim2=-1).log().sum()
        kl = 0.5 * (loc.square().sum() + spread - loc.numel())
        optimiser.zero_grad()
        ((kl - likelihood) / len(batch.images)).backward()
        nn.utils.clip_grad_norm_(parameters, 50.0)
        optimiser.step()

    return step
