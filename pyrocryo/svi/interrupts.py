"""Signals that ask a fit to stop: held back until the step is done and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pyrocryo.svi.devices import Machine

__all__ = ["held_back"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # of a cluster whose time is up; of Ctrl-C
GLANCE = 20  # steps between two questions to the other processes


@contextmanager
def held_back(there: Machine, on: bool) -> Iterator[Callable[[int], int]]:
    """Notes SIGTERM and SIGINT rather than let them end the process; a second one does.

    Args:
        there: This process among those that train together, which must stop together.
        on: Whether to; else, and outside the main thread, signals do what they did. So does, in
            the end, one that came when nobody asked any more.

    Yields:
        The number of the signal that came, or 0, asked for after each step.
    """
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    def asked(step: int) -> int:
        if there.world == 1:
            return came[0] if came else 0
        return max(there.of_all(came[0] if came else 0)) if step % GLANCE == 0 else 0

    if not on or threading.current_thread() is not threading.main_thread():
        yield (lambda step: 0) if there.world == 1 else asked
        return
    heard = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]  # as nohup has it
    before = {number: signal.signal(number, note) for number in heard}
    late = False
    try:
        yield asked
        late = True
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if late and came:
            signal.raise_signal(came[0])
