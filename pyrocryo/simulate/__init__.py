"""Data sets with known truth, drawn from a molecule's exact images."""

from pyrocryo.simulate.datasets import conditions, default_scales, poses, temperature
from pyrocryo.simulate.langevin import langevin
from pyrocryo.simulate.limit import information_limit
from pyrocryo.simulate.misplaced import misplaced
from pyrocryo.simulate.temporal import single_shot, tilt_pairs, time_resolved

__all__ = [
    "conditions",
    "default_scales",
    "information_limit",
    "langevin",
    "misplaced",
    "poses",
    "single_shot",
    "temperature",
    "tilt_pairs",
    "time_resolved",
]
