"""What a user sees while a fit runs."""

from __future__ import annotations

import logging
import sys
import time

__all__ = ["Progress"]

log = logging.getLogger("pyrocryo")


class Progress:
    """A bar on a terminal, ten log lines elsewhere; both with the ELBO and the time left."""

    def __init__(self, total: int, bar: bool | None) -> None:
        self.total = total
        self.done = 0
        self.restored = 0
        self.use_bar = sys.stderr.isatty() if bar is None else bar
        self.started = time.perf_counter()

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        self.bar = tqdm(total=self.total, disable=not self.use_bar, unit="step", leave=False)
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
                "seed %d, step %d: ELBO %.2f nats a particle, %.0f s left",
                state["seed"], state["step"] + 1, state["elbo"], left,
            )  # fmt: skip
