"""``pyrocryo report | compare``: what run folders say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from pyrocryo.errors import InputError

__all__ = ["Compare", "Report"]


@dataclass
class Report:
    """Write report.html again, from the files of a run folder."""

    run_folder: tyro.conf.Positional[Path]
    """Run folder."""

    def run(self) -> None:
        """Writes the page, and prints where."""
        from pyrocryo import report

        print(report.write(self.run_folder))


@dataclass
class Compare:
    """Print one table over run folders, and how they differ from the first, seed by seed."""

    run_folders: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """Also write the differences (means, intervals, wins, p, ranks) to this JSON file."""

    def run(self) -> None:
        """Prints the table."""
        from pyrocryo import report

        if not self.run_folders:
            raise InputError("compare: name at least one run folder")
        print(report.compare(self.run_folders, out=self.out))
