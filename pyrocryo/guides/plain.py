"""The plain pose head: an ordinary network, which has to learn every angle for itself."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from pyrocryo.directions import PlanarNormal
from pyrocryo.guides.polar import length_of
from pyrocryo.perceptron import perceptron

__all__ = ["PlainPose"]


class PlainPose(nn.Module):
    r"""Reads :math:`q(\phi | x)` off an image by a multilayer perceptron, as published models do.

    It does not turn with the image. Where an angle is hard to tell, images of it are explained by
    bent conformations, and the pose leaks into `z`: from a range of ± 90° on, as a rule.
    :class:`pyrocryo.guides.Polar` has no such trouble; this one is here to compare with.

    Args:
        hidden: Widths of the hidden layers.
        side: Images wider than this are averaged down to it before they are read.
    """

    def __init__(self, hidden: tuple[int, ...] = (256, 128), *, side: int = 48) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        self.side = side

    def build(self, box: int) -> PlainPose:
        """Makes the network for images of ``box`` pixels."""
        self.side = min(self.side, box)
        self.network = perceptron(self.side**2, self.hidden, 3)
        return self

    def forward(self, images: Tensor, shift: Tensor) -> PlanarNormal:
        """The pose posterior of images `(..., D, D)`; the shift is not looked at."""
        flat = images.reshape(-1, 1, *images.shape[-2:])
        if self.side < images.shape[-1]:
            flat = adaptive_avg_pool2d(flat, self.side)
        direction, size = self.network(flat.flatten(1)).to(images.dtype).split([2, 1], dim=-1)
        # any length below 1 times the concentration, as the mean of Polar's weights has
        direction = direction / (1 + direction.square().sum(-1, keepdim=True)).sqrt()
        return PlanarNormal((length_of(size) * direction).unflatten(0, images.shape[:-2]))
