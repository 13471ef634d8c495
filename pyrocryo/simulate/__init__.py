"""Data sets with known truth, drawn from a molecule's exact images."""

from pyrocryo.simulate.datasets import default_scales, poses, temperature, time_resolved

__all__ = ["default_scales", "poses", "temperature", "time_resolved"]
