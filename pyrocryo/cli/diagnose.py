"""``pyrocryo diagnose``: whether the posterior of a run is to be believed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

__all__ = ["Diagnose"]


@dataclass
class Diagnose:
    """Check whether a run's guide is the posterior of its model, and its model that of the images.

    Weights of the guide's draws (k-hat, effective draws, IWAE − ELBO), ranks and coverage in the
    model's own frame, posterior predictive checks, active latents, sensitivity to the prior. Looks
    at held-out particles where there are 40 of them. Writes diagnose.json and
    figures/diagnose_*.png into the run folder. Runs the model file that the run folder keeps.
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder of `pyrocryo fit`."""
    draws: int = 200
    """Draws of the guide for each particle whose weights are looked at."""
    n: int = 512
    """Particles to draw from the model."""
    images: int = 2048
    """At most so many images are compared with replicates."""
    most: int = 256
    """At most so many particles whose weights are looked at."""
    seed: int = 0
    """Seed of all draws."""
    out: Path | None = None
    """Another folder to write to."""

    def run(self) -> None:
        """Prints the verdict and what stands behind it."""
        from pyrocryo import diagnose, io
        from pyrocryo.errors import InputError

        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise InputError(f"out: {self.out} is a file, not a folder")
        fit, particles = io.load_fit(self.run_folder)
        numbers = {name: getattr(self, name) for name in ("draws", "n", "images", "most", "seed")}
        checked = diagnose.check(fit, particles, **numbers)
        print(f"{self.run_folder}: {checked.sentence}\n")
        for name in ("importance", "sbc", "tarp", "calibration", "predictive", "sensitivity"):
            print(f"{name}: {getattr(checked, name).sentence}")
        for seed, one in zip(checked.seeds, checked.dimensions, strict=True):
            print(f"seed {seed}: {one.sentence}")
        for path in io.write_diagnosis(self.out or self.run_folder, checked):
            print(path)
