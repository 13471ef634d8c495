"""Training steps of cryoDRGN's own code against ours, images a second, side by side.

cryoDRGN's side is its installed ``train_batch`` with the defaults of ``train_vae`` (three residual
layers of 1024 twice, `z` of 8, Adam, automatic mixed precision where there is a GPU, poses with
shifts), without CTF, as ours here. Both sides find their images in memory:
reading them is left out. Ours undoes the shifts once, before training.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pyrocryo.bench.hartley import disc, hartley
from pyrocryo.bench.step import stepper
from pyrocryo.bench.timing import row, seconds
from pyrocryo.bench.vae import vae
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.priors import IsotropicNormal
from pyrocryo.rotations import matrix_from_euler
from pyrocryo.svi import Settings
from pyrocryo.svi.devices import machine
from pyrocryo.volumes import Atoms

__all__ = ["rows"]

log = logging.getLogger("pyrocryo")
LATENT = 8
RATE = 1e-4
ATOMS = 2000
PIXEL_SIZE = 1.5  # Å


def rows(device: str = "cpu", quick: bool = False) -> Iterator[dict[str, Any]]:
    """Times our steps against cryoDRGN's, in turn.

    Args:
        device: "cpu" or "cuda".
        quick: Fewer images and steps: two minutes of one core at most.

    Yields:
        For each comparison ``name``, ``ours`` and ``other`` (seconds an image, medians), ``ratio``
        (median of other / ours: how many times as many images a second) and its ``spread``
        [lowest, highest]. Nothing where cryoDRGN is not installed.
    """
    try:
        _import_quietly()
    except ImportError as error:
        log.info("cryoDRGN is left out (%s): pip install cryodrgn==4.3.1", error)
        return
    on_gpu = torch.device(device).type == "cuda"
    for box in (64, 128):
        size = 16 if on_gpu or not quick else 512 // box
        particles = _particles(size, box)
        other = _cryodrgn(particles, device)
        seen = hartley(particles, test_fraction=0)
        sides = {f"cryoDRGN's architecture, D = {box}, batch {size}": _ours(
            vae(seen.box, latent=LATENT), seen, device, beta=0.5 / LATENT
        )}  # fmt: skip
        if box == 128:
            volume = Atoms(pixel_size=PIXEL_SIZE, dim=3, count=ATOMS)
            pair = Pair(IsotropicNormal(LATENT), volume, box, noise=1.0, rotate=False)
            name = f"{ATOMS} atoms against cryoDRGN's architecture, D = {box}, batch {size}"
            sides[name] = _ours(pair, particles, device, beta=1.0)
        rounds, steps = (5, 1) if quick and not on_gpu else (7, 20 if on_gpu else 1)
        yield from _compared(sides, other, size, device, rounds=rounds, steps=steps)


def _import_quietly() -> None:
    """Imports cryoDRGN and leaves logging as it was: it silences every logger there is."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    known = [x for x in root.manager.loggerDict.values() if isinstance(x, logging.Logger)]
    disabled = [logger.disabled for logger in known]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("cryodrgn.commands.train_vae")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for logger, off in zip(known, disabled, strict=True):
            logger.disabled = off


def _ours(pair: Pair, particles: Particles, device: str, *, beta: float) -> Callable[[], None]:
    """Our step; on a GPU compiled, with networks in bfloat16 where cryoDRGN's are in float16."""
    pair.check(particles)
    pair = pair.to(device).train()
    precision = "bf16" if torch.device(device).type == "cuda" else "float32"
    settings = Settings(beta=beta, lr=RATE, precision=precision)
    pair.autocast = machine(device, 1, precision).autocast
    batch = pair.moved(particles.batch(np.arange(len(particles))))
    capture = "compile" if precision == "bf16" else True
    return stepper(pair, batch, settings=settings, capture=capture)


def _cryodrgn(particles: Particles, device: str) -> Callable[[], None]:
    """One step of cryoDRGN's on the same particles, as ``train_vae`` calls it."""
    models = importlib.import_module("cryodrgn.models")
    lattices = importlib.import_module("cryodrgn.lattice")
    train_vae = importlib.import_module("cryodrgn.commands.train_vae")
    side = particles.box + 1
    lattice = lattices.Lattice(side, extent=0.5, device=torch.device(device))
    mask = lattice.get_circular_mask(side // 2)
    model = models.HetOnlyVAE(
        lattice, 3, 1024, 3, 1024, len(disc(side)), LATENT, encode_mode="resid", enc_mask=mask,
        enc_type="gaussian", domain="fourier", activation=torch.nn.ReLU, feat_sigma=0.5,
    ).to(device)  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its spelling of mixed precision is an old one
        scaler = torch.cuda.amp.GradScaler()
    batch = particles.batch(np.arange(len(particles)))
    fields = {name: value for name, value in particles.fields.items() if name != "shift"}
    still = hartley(Particles(particles.images, pixel_size=PIXEL_SIZE, **fields), test_fraction=0)
    images = still.batch(np.arange(len(still))).images.to(device)
    rotation = batch.rotation.to(device)
    shift = -(batch.shift / batch.pixel_size).to(device)

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train_vae.train_batch(
                model, lattice, images, None, rotation, shift, optimiser, 1 / LATENT,
                use_amp=True, scaler=scaler,
            )  # fmt: skip

    return step


def _compared(
    sides: dict[str, Callable[[], None]],
    other: Callable[[], None],
    size: int,
    device: str,
    *,
    rounds: int,
    steps: int,
) -> Iterator[dict[str, Any]]:
    """Rounds of ``steps`` steps of each side in turn; the first warms up and is not counted."""
    spent = np.zeros((rounds, 1 + len(sides)))
    for n in range(rounds):
        for i, step in enumerate((other, *sides.values())):
            spent[n, i] = seconds(step, device, steps) / size
    theirs, *ours = spent[1:].T
    for name, mine in zip(sides, ours, strict=True):
        yield row(name, mine, theirs)


def _particles(n: int, box: int) -> Particles:
    """Noise in all poses: what the images show does not change how long a step takes."""
    rng = np.random.default_rng(0)
    euler = rng.uniform((-180, 0, -180), (180, 180, 180), (n, 3))
    return Particles(
        rng.standard_normal((n, box, box)).astype(np.float32),
        pixel_size=PIXEL_SIZE,
        test_fraction=0,
        rotation=matrix_from_euler(euler),
        shift=rng.uniform(-3, 3, (n, 2)),
    )
