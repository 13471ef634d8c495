"""The page people read after a fit."""

from pyrocryo.report.compare import compare
from pyrocryo.report.page import write

__all__ = ["compare", "write"]
