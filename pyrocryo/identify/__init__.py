"""Which latents mean something, and up to which symmetry."""

from pyrocryo.identify.consistency import Consistency, consistency
from pyrocryo.identify.verdict import report, rotation_gap

__all__ = ["Consistency", "consistency", "report", "rotation_gap"]
