"""Guides q(z | x): networks that read the posterior off an image."""

from pyrocryo.guides.amortised import Amortised

__all__ = ["Amortised"]
