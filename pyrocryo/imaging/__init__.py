"""Image formation: what the microscope does to a molecule's density."""

from pyrocryo.imaging.resample import resample, resample_projection
from pyrocryo.imaging.splat import splat

__all__ = ["resample", "resample_projection", "splat"]
