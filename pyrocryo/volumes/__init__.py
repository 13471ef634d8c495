"""Volumes v(z): from a conformation to a density and its images."""

from pyrocryo.volumes.grid import Grid

__all__ = ["Grid"]
