"""How well latents match true factors: plain functions of arrays, each beside its floor."""

from pyrocryo.metrics.maps import fsc, image_correlation, resolution
from pyrocryo.metrics.mcc import mcc, rotation_angle
from pyrocryo.metrics.pose import (
    circular_linear,
    in_plane_angle,
    mcc_with_pose,
    pose_correlation,
    pose_errors,
    pose_leak,
)
from pyrocryo.metrics.pose3d import rotation_errors, shift_errors
from pyrocryo.metrics.r2 import r2
from pyrocryo.metrics.score import Score
from pyrocryo.metrics.table import report, row

__all__ = [
    "Score",
    "circular_linear",
    "fsc",
    "image_correlation",
    "in_plane_angle",
    "mcc",
    "mcc_with_pose",
    "pose_correlation",
    "pose_errors",
    "pose_leak",
    "r2",
    "report",
    "resolution",
    "rotation_angle",
    "rotation_errors",
    "row",
    "shift_errors",
]
