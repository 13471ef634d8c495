"""The one exception that means: the input is at fault, not the program."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input: names the field, the value and what was expected, in one line.

    The command line prints it and exits with code 2; everything else is a bug and keeps its
    traceback.
    """
