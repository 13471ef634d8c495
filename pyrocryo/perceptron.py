"""The network that volumes and guides are made of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["perceptron"]


def perceptron(
    inputs: int, hidden: Sequence[int], outputs: int, *, bias: bool = True
) -> nn.Sequential:
    """A multilayer perceptron with SiLU between its layers.

    Args:
        inputs: Numbers it sees.
        hidden: Widths of the hidden layers; none for a linear map.
        outputs: Numbers it gives.
        bias: Whether the last layer has one.
    """
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.SiLU()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, outputs, bias=bias))
