"""The one exception that means: the input is at fault, not the program."""

__all__ = ["InputError"]

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
