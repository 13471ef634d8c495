"""Data sets with known truth, drawn from a molecule's exact images."""

from pyrocryo.simulate.datasets import default_scales, poses, temperature, time_resolved
from pyrocryo.simulate.limit import information_limit
from pyrocryo.simulate.misplaced import misplaced

__all__ = [
    "default_scales",
    "information_limit",
    "misplaced",
    "poses",
    "temperature",
    "time_resolved",
]
