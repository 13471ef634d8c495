"""The trained parameters of several seeds of a pair, side by side in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrocryo.pair import Pair

__all__ = ["Stack", "trained"]


def trained(pair: Pair) -> dict[str, nn.Parameter]:
    """The parameters of a pair that are trained, by name; none without numbers."""
    return {n: p for n, p in pair.named_parameters() if p.requires_grad and p.numel()}


class Stack:
    """S seeds of a pair whose trained parameters are the rows of one tensor `(S, P)`.

    One optimiser steps them all, and each pair is up to date at any time.

    Args:
        pairs: The seeds, all of the same architecture and on one device.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)
        own = [trained(pair) for pair in pairs]
        rows = [torch.cat([p.detach().flatten() for p in one.values()]) for one in own]
        self.theta = torch.stack(rows)
        self._shapes = {name: p.shape for name, p in own[0].items()}
        self._views = self.split(self.theta)
        for s, parameters in enumerate(own):
            for name, parameter in parameters.items():
                parameter.data = self._views[name][s]

    def __len__(self) -> int:
        return len(self.pairs)

    def split(self, joined: Tensor) -> dict[str, Tensor]:
        """Views `(S, ...)` of each parameter, or of its gradient, in a tensor `(S, P)`."""
        views, start = {}, 0
        for name, shape in self._shapes.items():
            end = start + shape.numel()
            views[name] = joined[:, start:end].unflatten(1, shape) if shape else joined[:, start]
            start = end
        return views

    def tensors(self) -> list[Tensor]:
        """The parameters, with a leading axis of S where there are several seeds."""
        alone = len(self) == 1
        return [view[0] if alone else view for view in self._views.values()]

    def release(self) -> list[Pair]:
        """The pairs, each with memory of its own again."""
        for pair in self.pairs:
            for parameter in trained(pair).values():
                parameter.data = parameter.data.clone()
        return self.pairs
