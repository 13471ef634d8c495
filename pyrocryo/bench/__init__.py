"""Ratios of timings, both sides in one run: ``pyrocryo bench``."""
