"""Molecules whose motions are known: the ground truth of benchmarks."""

from pyrocryo.molecules.arms import Arms, TwoArms

__all__ = ["Arms", "TwoArms"]
