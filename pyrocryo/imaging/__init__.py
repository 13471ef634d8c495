"""Image formation: what the microscope does to a molecule's density."""

from pyrocryo.imaging.backproject import Consensus, backproject
from pyrocryo.imaging.ctf import contrast_transfer, filtered, modulated, transfer
from pyrocryo.imaging.resample import polar, resample, resample_projection, rings
from pyrocryo.imaging.slices import band_limited, slice_projection
from pyrocryo.imaging.splat import one_each, splat, splat_map, window

__all__ = [
    "Consensus",
    "backproject",
    "band_limited",
    "contrast_transfer",
    "filtered",
    "modulated",
    "one_each",
    "polar",
    "resample",
    "resample_projection",
    "rings",
    "slice_projection",
    "splat",
    "splat_map",
    "transfer",
    "window",
]
