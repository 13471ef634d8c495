"""``pyrocryo bench``: how fast things are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyrocryo.cli.device import there
from pyrocryo.errors import InputError

__all__ = ["Bench"]


@dataclass
class Bench:
    """Time what pyrocryo does against how else it could be done, both sides in one run.

    Training steps against Pyro's SVI and against a loop by hand, many seeds at once against one
    after another, streamed against resident particles, projections of Gaussians, and cryoDRGN's
    training step, where it is installed.
    """

    out: Path | None = None
    """Also write the rows to this JSON file."""
    device: str = "cpu"
    """Where to run: cpu, cuda, ..."""
    only: tuple[Literal["step", "splat", "feed", "cryodrgn"], ...] = ()
    """Some of the parts."""
    quick: bool = False
    """Fewer and smaller runs: some four minutes on a CPU."""

    def run(self) -> None:
        """Times the parts, and prints a row as soon as it is known."""
        import importlib

        from pyrocryo import io
        from pyrocryo.bench.timing import table

        device, found = there(self.device), []
        if self.out is not None and not self.out.parent.is_dir():
            raise InputError(f"out: there is no folder {self.out.parent}")
        for part in self.only or ("step", "splat", "feed", "cryodrgn"):
            rows = importlib.import_module(f"pyrocryo.bench.{part}").rows(device, self.quick)
            for n, row in enumerate(rows):
                head, line = table([row]).split("\n")
                print(line if n else f"{part}\n{head}\n{line}", flush=True)
                found.append({"part": part, **row})
        if self.out is not None:
            io.write_json(self.out, found)
            print(f"written to {self.out}")
