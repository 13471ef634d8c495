"""What a user sees while a fit runs."""

from __future__ import annotations

import logging
import os
import sys
import time

__all__ = ["Progress"]

log = logging.getLogger("pyrocryo")


class Progress:
    """A bar on a terminal, ten log lines elsewhere; both with the ELBO and the time left.

    Args:
        label: What is being fitted.
        total: Steps of all seeds together.
        bar: Whether to draw the bar; by default on a terminal, unless the environment holds
            tqdm's ``TQDM_DISABLE``.
    """

    def __init__(self, label: str, total: int, bar: bool | None) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self.restored = 0
        on_terminal = sys.stderr.isatty() and "TQDM_DISABLE" not in os.environ
        self.use_bar = on_terminal if bar is None else bar
        self.started = time.perf_counter()

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        off = not self.use_bar
        self.bar = tqdm(desc=self.label, total=self.total, disable=off, unit="step", leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def restore(self, n: int) -> None:
        """Counts ``n`` steps that an earlier run has done; they took no time of this one."""
        self.done += n
        self.restored += n
        self.bar.update(n)

    def update(self, **state: float) -> None:
        """Counts one step; ``state``: ``seed``, ``step``, ``elbo``."""
        before, self.done = self.done, self.done + 1
        self.bar.update(1)
        if self.use_bar:
            if self.done % 10 == 0:
                self.bar.set_postfix_str(f"seed {state['seed']}, ELBO {state['elbo']:.2f}")
        elif before * 10 // self.total != self.done * 10 // self.total:
            a_step = (time.perf_counter() - self.started) / (self.done - self.restored)
            left = a_step * (self.total - self.done)
            log.info(
                "%s, seed %d, step %d: ELBO %.2f nats a particle, %.0f s left",
                self.label, state["seed"], state["step"] + 1, state["elbo"], left,
            )  # fmt: skip
