"""Checks for those who write their own priors, volumes and guides."""

from pyrocryo.testing.checks import CheckFailed
from pyrocryo.testing.pair import check_pair
from pyrocryo.testing.prior import check_prior

__all__ = ["CheckFailed", "check_pair", "check_prior"]
