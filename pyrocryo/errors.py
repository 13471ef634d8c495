"""Exceptions with a meaning of their own: the input is at fault, or the program was stopped."""

import signal

__all__ = ["InputError", "Interrupted"]

LONGEST = 1000  # characters of a message: it may quote a file


class InputError(ValueError):
    """Bad input: names the field, the value and what was expected, in one line.

    The command line prints it and exits with code 2; everything else is a bug and keeps its
    traceback.
    """

    def __init__(self, message: str = "") -> None:
        text = "".join(c if c.isprintable() else " " for c in str(message))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        super().__init__(text)


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop, and what was done is saved.

    Args:
        number: Of the signal.
        where: How far it got, and how to go on.

    Attributes:
        code: Exit code that tells a shell of the signal: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.code = 128 + number
