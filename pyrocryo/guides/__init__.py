"""Guides q(pose | x) and q(z | x, pose): networks that read the posterior off an image."""

from pyrocryo.guides.amortised import Amortised
from pyrocryo.guides.flow import Flow
from pyrocryo.guides.frozen import Frozen
from pyrocryo.guides.gauss_newton import GaussNewton
from pyrocryo.guides.joint import Joint
from pyrocryo.guides.lookup import LookupTable
from pyrocryo.guides.plain import PlainPose
from pyrocryo.guides.polar import Polar
from pyrocryo.guides.refine import Refine
from pyrocryo.guides.residual import Residual
from pyrocryo.guides.search import Search

__all__ = [
    "Amortised",
    "Flow",
    "Frozen",
    "GaussNewton",
    "Joint",
    "LookupTable",
    "PlainPose",
    "Polar",
    "Refine",
    "Residual",
    "Search",
]
