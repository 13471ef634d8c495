"""``pyrocryo simulate``: particles with known truth, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pyrocryo.errors import InputError

__all__ = ["Simulate"]


@dataclass
class Simulate:
    """Simulate particles of the paper's molecule with arms, and write them as .star and .mrcs.

    The truth goes into extra columns of the star file.
    """

    kind: tyro.conf.Positional[
        Literal["poses", "time-resolved", "temperature", "single-shot", "tilt-pairs"]
    ]
    """Independent particles, frames in time, samples at three temperatures, particles seen once at
    a known time after mixing, or one conformation in several poses."""
    out: tyro.conf.Positional[Path]
    """Star file to write; the images go beside it as .mrcs."""
    n: int = 8000
    """Number of particles (molecules, where they have frames)."""
    arms: int = 2
    """Arms of the molecule: the number of its motions."""
    seed: int = 0
    """Seed of everything drawn."""
    snr: float = 1.0
    """Variance of the clean images over that of the noise."""
    box: int = 32
    """Pixels along an edge."""
    pixel_size: float = 3.0
    """Å per pixel."""
    scale: float = 0.5
    """Laplace scale of the steps of time-resolved particles, in standard deviations of z."""
    frames: int = 2
    """Frames of each molecule of time-resolved particles and tilt pairs."""
    steps: Literal["laplace", "student", "jump", "gaussian"] = "laplace"
    """Shape of the steps of time-resolved particles, all of the same variance."""
    boundary: Literal["reflected", "ar", "free"] = "reflected"
    """What keeps time-resolved particles near 0: folding at 3 standard deviations, a pull, or
    nothing."""
    correlation: float = 0.0
    """Of the components of time-resolved particles, at the start and in each step."""
    ctf: bool = False
    """Images are seen through CTFs of a 300 kV microscope, defocus .8 to 2.5 µm."""

    def run(self) -> None:
        """Draws the particles and writes them."""
        from pyrocryo import io, molecules, simulate

        imaging = {"snr": self.snr, "box": self.box, "pixel_size": self.pixel_size}
        imaging["ctf"] = self.ctf
        own = {"tilt-pairs": ("frames",)}
        own["time-resolved"] = ("frames", "scale", "steps", "boundary", "correlation")
        for name in own["time-resolved"]:
            value = getattr(self, name)
            if name in own.get(self.kind, ()):
                imaging[name] = value
            elif value != getattr(Simulate, name):
                raise InputError(f"{name}: {self.kind} particles take no {name}, got {value}")
        draw = getattr(simulate, self.kind.replace("-", "_"))
        particles = draw(molecules.Arms(self.arms), self.n, self.seed, **imaging)
        io.save(particles, self.out)
        print(f"{particles!r} written to {self.out}")
