"""``pyrocryo landscape``: is there heterogeneity, along how many axes, and who is where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pyrocryo.cli.device import there
from pyrocryo.errors import InputError

__all__ = ["Landscape"]


@dataclass
class Landscape:
    """Tell whether particles of a run differ, along how many axes, and populations along each.

    Trains a homogeneous molecule (the same pair without z) on the same particles and compares both
    on held-out ones. Then populations along each latent, deconvolved from posterior widths, as
    free energies with error bars. Runs the copy of the model file that the run folder keeps;
    writes landscape.json and figures/landscape_*.png there.
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder of pyrocryo fit."""
    axes: bool = False
    """Also train with 1, 2, ... latents, to count axes by what each gains."""
    rival: bool = True
    """Train a homogeneous molecule; --no-rival asks for populations only."""
    bins: int = 24
    """Bins along a latent."""
    temperature: float | None = None
    """In K, at which the particles were frozen: for kJ/mol, or which of several they carry."""
    of: Literal["all", "held-out"] = "all"
    """Whose populations."""
    most: int = 4000
    """Look at no more particles than this."""
    device: str = "cpu"
    """Where to compute."""

    def run(self) -> None:
        """Prints the answers, and where they are written."""
        from pyrocryo import diagnose, io
        from pyrocryo.diagnose.populations import asked
        from pyrocryo.io.landscape import write_landscape
        from pyrocryo.report.page import read_run

        if self.axes and not self.rival:
            raise InputError("axes: are counted from the homogeneous fit on; leave out --no-rival")
        device = there(self.device)
        verdict = read_run(self.run_folder)["identify"]["sentence"]
        fit, particles = io.load_fit(self.run_folder)
        looked_at = particles.test if self.of == "held-out" else particles
        told = {"bins": self.bins, "temperature": self.temperature, "most": self.most}
        asked(looked_at, **told)  # before the rival is trained
        for pair in fit.pairs:
            pair.to(device)
        found = None
        if self.rival:
            found = diagnose.heterogeneity(
                fit, particles, axes=self.axes, most=self.most, device=device
            )
            print(found.sentence)
        profiles = diagnose.populations(fit, looked_at, **told)
        for profile in profiles:
            print(profile.sentence)
        written = write_landscape(self.run_folder, found, profiles, verdict=verdict)
        if written["caveat"]:
            print(written["caveat"])
        print(self.run_folder / "landscape.json")
