"""How well latents match true factors: plain functions of arrays, each beside its floor."""

from pyrocryo.metrics.dci import DCI, dci
from pyrocryo.metrics.explicitness import explicitness
from pyrocryo.metrics.factors import Factors
from pyrocryo.metrics.information import mig, modularity
from pyrocryo.metrics.interventions import betavae, factorvae
from pyrocryo.metrics.irs import irs
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
from pyrocryo.metrics.ranks import paired_differences, rank_groups
from pyrocryo.metrics.sap import sap
from pyrocryo.metrics.score import Score
from pyrocryo.metrics.suite import row, suite
from pyrocryo.metrics.table import report

__all__ = [
    "DCI",
    "Factors",
    "Score",
    "betavae",
    "circular_linear",
    "dci",
    "explicitness",
    "factorvae",
    "fsc",
    "image_correlation",
    "in_plane_angle",
    "irs",
    "mcc",
    "mcc_with_pose",
    "mig",
    "modularity",
    "paired_differences",
    "pose_correlation",
    "pose_errors",
    "pose_leak",
    "r2",
    "rank_groups",
    "report",
    "resolution",
    "rotation_angle",
    "rotation_errors",
    "row",
    "sap",
    "shift_errors",
    "suite",
]
