"""What a user sees while a fit runs."""

from __future__ import annotations

import logging
import os
import sys
import time

__all__ = ["Progress"]

log = logging.getLogger("pyrocryo")


class Progress:
    """A bar on a terminal, ten log lines elsewhere; with images/s, ELBO and time left.

    Args:
        label: What is being fitted.
        total: Steps of all seeds together.
        images: Images that a step of one seed looks at.
        bar: Whether to draw the bar; by default on a terminal, unless the environment holds
            tqdm's ``TQDM_DISABLE``.
    """

    def __init__(self, label: str, total: int, images: int, bar: bool | None) -> None:
        self.label = label
        self.total = total
        self.images = images
        self.done = 0
        self.restored = 0
        on_terminal = sys.stderr.isatty() and "TQDM_DISABLE" not in os.environ
        self.use_bar = on_terminal if bar is None else bar
        self.started: float | None = None  # not before the first step is ready to be taken

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        off = not self.use_bar
        self.bar = tqdm(desc=self.label, total=self.total, disable=off, unit="step", leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def restore(self, n: int) -> None:
        """Counts ``n`` steps that an earlier run has done; they took no time of this one."""
        self.started = self.started or time.perf_counter()
        self.done += n
        self.restored += n
        self.bar.update(n)

    def update(self, n: int, *, seeds: str, step: int, elbo: float) -> None:
        """Counts ``n`` steps, of these ``seeds``, which are at ``step``."""
        before, self.done = self.done, self.done + n
        self.bar.update(n)
        a_step = (time.perf_counter() - self.started) / (self.done - self.restored)
        rate = self.images / a_step
        if self.use_bar:
            self.bar.set_postfix_str(f"{rate:.0f} images/s, {seeds}, ELBO {elbo:.2f}", False)
        elif before * 10 // self.total != self.done * 10 // self.total:
            left = a_step * (self.total - self.done)
            log.info(
                "%s, %s, step %d: ELBO %.2f nats a particle, %.0f images/s, %.0f s left",
                self.label, seeds, step + 1, elbo, rate, left,
            )  # fmt: skip
