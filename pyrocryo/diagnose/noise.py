"""Noise that belongs to a particle: the same whenever it is asked for, and kept nowhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["noise_of"]

WORD = 0xFFFFFFFF  # the lowest 32 bits
STRIDE = 0x9E3779B9  # between seeds
BITS = 23  # of the numbers before they become normal: exact in single precision


def noise_of(index: Tensor, shape: torch.Size, seed: int) -> Tensor:
    """Standard normal numbers `(B, *shape)` that depend on ``seed`` and ``index`` `(B,)` alone.

    A counter-based generator: each number is a hash of its place, so that nothing is stored, and
    nothing is drawn inside a training step. At most 5.2 standard deviations from 0.
    """
    places = torch.arange(math.prod(shape), device=index.device)
    key = _mixed(_mixed(index.long()) + seed * STRIDE).unsqueeze(-1)
    word = _mixed(_mixed(places + key) ^ _mixed(~key))
    uniform = ((word >> (32 - BITS)).float() + 0.5) / 2**BITS
    return (math.sqrt(2) * torch.erfinv(2 * uniform - 1)).unflatten(-1, shape)


def _mixed(word: Tensor) -> Tensor:
    """A 32-bit hash (Wellons 2018, lowbias32): each bit of 64-bit words hangs on all others."""
    word = word & WORD
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & WORD
    word = ((word ^ (word >> 15)) * 0x846CA68B) & WORD
    return word ^ (word >> 16)
