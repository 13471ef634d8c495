"""A convolutional encoder: what it learns of a feature in one place it knows everywhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pyrocryo.guides.amortised import Amortised

__all__ = ["Residual"]


class Residual(Amortised):
    r"""A residual convolutional network from an image to :math:`N(\mu, L L^\top)` of `u`.

    As :class:`pyrocryo.guides.Amortised`, read by blocks :math:`h + f(h)`, two 3 × 3 convolutions
    each, of which every second halves the side and every one after the first has more channels.
    What is left of the image is flattened, not averaged: where a feature is matters here.

    Args:
        channels: Of each pair of blocks; the side is halved after each.
        side: As of :class:`pyrocryo.guides.Amortised`.
        upright: The same.
    """

    def __init__(
        self, channels: tuple[int, ...] = (16, 32, 64), *, side: int = 48, upright: bool = True
    ) -> None:
        super().__init__((), side=side, upright=upright)
        self.channels = tuple(channels)

    def made(self, known: int, outputs: int) -> nn.Module:
        """The network from flattened pixels and ``known`` further numbers to ``outputs``."""
        return _Network(self.side, self.channels, known, outputs)


class _Network(nn.Module):
    def __init__(self, side: int, channels: tuple[int, ...], known: int, outputs: int) -> None:
        super().__init__()
        self.pixels = side * side
        self.side = side
        self.first = nn.Conv2d(1, channels[0], 3, padding=1)
        layers: list[nn.Module] = []
        for here, after in zip(channels, (*channels[1:], channels[-1]), strict=True):
            layers += [_Block(here), nn.Conv2d(here, after, 3, stride=2, padding=1)]
            side = (side + 1) // 2
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Linear(channels[-1] * side**2 + known, outputs)

    def forward(self, features: Tensor) -> Tensor:
        images = features[:, : self.pixels].unflatten(1, (1, self.side, self.side))
        seen = silu(self.blocks(self.first(images))).flatten(1)
        return self.last(torch.cat([seen, features[:, self.pixels :]], dim=-1))


class _Block(nn.Module):
    """:math:`h + f(h)`; `f` starts small, so that depth costs nothing at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.size = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Its share back to a tenth (the convolutions reset themselves)."""
        nn.init.constant_(self.size, 0.1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.size * self.second(silu(self.first(silu(h))))
