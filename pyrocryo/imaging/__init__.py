"""Image formation: what the microscope does to a molecule's density."""

from pyrocryo.imaging.resample import polar, resample, resample_projection
from pyrocryo.imaging.splat import splat, splat_map, window

__all__ = ["polar", "resample", "resample_projection", "splat", "splat_map", "window"]
