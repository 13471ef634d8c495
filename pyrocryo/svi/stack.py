"""The trained parameters of several seeds of a pair, side by side in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrocryo.pair import Pair

__all__ = ["Stack", "trained", "used"]


def trained(pair: Pair) -> dict[str, nn.Parameter]:
    """The parameters of a pair that are trained, by name; none without numbers."""
    return {n: p for n, p in pair.named_parameters() if p.requires_grad and p.numel()}


def used(loss: Tensor, pair: Pair) -> list[str]:
    """Names of the trained parameters that a loss depends on."""
    parameters = trained(pair)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return [name for name, g in zip(parameters, gradients, strict=True) if g is not None]


class Stack:
    """S seeds of a pair whose parameters are views of a few tensors `(S, P)`.

    One optimiser steps them all, and each pair is up to date at any time.

    Args:
        pairs: The seeds, all of the same architecture and on one device.
        blocks: Names of the parameters in each of the tensors.
    """

    def __init__(self, pairs: Sequence[Pair], blocks: Sequence[Sequence[str]]) -> None:
        self.pairs = list(pairs)
        own = [trained(pair) for pair in pairs]
        self.blocks = [
            torch.stack([torch.cat([p[name].detach().flatten() for name in names]) for p in own])
            for names in blocks
        ]
        self._views: dict[str, Tensor] = {}
        for block, names in zip(self.blocks, blocks, strict=True):
            start = 0
            for name in names:
                shape = own[0][name].shape
                part = block[:, start : (start := start + shape.numel())]
                self._views[name] = part.unflatten(1, shape) if shape else part[:, 0]
                for s, parameters in enumerate(own):
                    parameters[name].data = self._views[name][s]

    def __len__(self) -> int:
        return len(self.pairs)

    def tensors(self, names: Sequence[str]) -> list[Tensor]:
        """Parameters, with a leading axis of S where there are several seeds."""
        alone = len(self) == 1
        return [self._views[name][0] if alone else self._views[name] for name in names]

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Puts saved states in place."""
        for pair, state in zip(self.pairs, states, strict=True):
            pair.load_state_dict(state)

    def release(self) -> list[Pair]:
        """The pairs, each with memory of its own again."""
        for pair in self.pairs:
            for parameter in trained(pair).values():
                parameter.data = parameter.data.clone()
        return self.pairs
