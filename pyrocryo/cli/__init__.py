"""The command line."""

from pyrocryo.cli.app import main

__all__ = ["main"]
