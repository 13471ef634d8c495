"""All commands, and how they end."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from pyrocryo.cli.audit import Audit
from pyrocryo.cli.bench import Bench
from pyrocryo.cli.diagnose import Diagnose
from pyrocryo.cli.export import Export
from pyrocryo.cli.fit import Fit, command
from pyrocryo.cli.ica import Ica
from pyrocryo.cli.identify import Identify
from pyrocryo.cli.inspect import Inspect
from pyrocryo.cli.landscape import Landscape
from pyrocryo.cli.movie import Movie
from pyrocryo.cli.parse import parsed
from pyrocryo.cli.read import Compare, Report
from pyrocryo.cli.rehearse import Rehearse
from pyrocryo.cli.simulate import Simulate
from pyrocryo.errors import InputError, Interrupted

__all__ = ["main"]

log = logging.getLogger("pyrocryo")
COMMANDS = {
    "simulate": Simulate,
    "inspect": Inspect,
    "fit": Fit,
    "identify": Identify,
    "diagnose": Diagnose,
    "landscape": Landscape,
    "movie": Movie,
    "export": Export,
    "report": Report,
    "compare": Compare,
    "rehearse": Rehearse,
    "ica": Ica,
    "audit": Audit,
    "bench": Bench,
}
ABOUT = """Cryo-EM heterogeneity with latents that can be identified.

Mostly in this order: inspect or simulate, fit, identify, diagnose, landscape, then movie and
export. Latents of other programs: audit. `pyrocryo COMMAND --help` says more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; 2 for bad input, said in one line; 1 where training broke down; 143 and 130 where
        SIGTERM and SIGINT stopped it; 141 where nobody reads on.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    # ArviZ 0.23 announces 1.0 at each import
    warnings.filterwarnings("ignore", message="\\s*ArviZ is undergoing", category=FutureWarning)
    try:
        # a model file's own options become options of the command
        fit = {"fit": command(argv[1:])} if argv[:1] == ["fit"] else {}
        parsed(COMMANDS | fit, argv, ABOUT).run()
    except BrokenPipeError:  # as of `pyrocryo compare ... | head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, OSError) as error:
        print(f"pyrocryo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"pyrocryo: training stopped: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"pyrocryo: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("pyrocryo: interrupted", file=sys.stderr)
        return 130
    return 0
