"""A posterior that need not be a normal: one bent by a few coupling layers, image by image."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.guides.amortised import Amortised
from pyrocryo.perceptron import perceptron
from pyrocryo.turned import Turned

__all__ = ["Bent", "Flow"]

POINTS = 256  # of the mean and the variance
STEEPEST = 1.0  # logarithm of how much a layer may stretch


class Flow(Amortised):
    r"""A normal read off an image, bent by coupling layers that are told what was read beside it.

    .. math:: u = \mu + L f_n(\cdots f_1(\epsilon)), \quad \epsilon \sim N(0, 1), \quad
              f(\epsilon)_b = \epsilon_b e^{s(\epsilon_a, c)} + t(\epsilon_a, c)

    with `a` and `b` the even and odd components, exchanged from layer to layer, `s` and `t` small
    networks, and the context `c` a few more numbers read off the image (real NVP; Dinh,
    Sohl-Dickstein & Bengio 2017). The layers start as the identity, so training starts where
    :class:`Amortised` does. Banana shapes and skew it can say, separate peaks hardly.

    The KL to any prior is sampled, with the noise that this brings; mean and variance are those
    of 256 fixed draws.

    Args:
        hidden: Widths of the encoder's hidden layers.
        layers: Coupling layers, at least 2 so that every component moves.
        width: Hidden units of the networks within a layer.
        context: Numbers in `c`.
        side: As of :class:`Amortised`.
        upright: The same.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (256, 128),
        *,
        layers: int = 4,
        width: int = 32,
        context: int = 8,
        side: int = 48,
        upright: bool = True,
    ) -> None:
        super().__init__(hidden, side=side, upright=upright)
        if layers < 2:
            raise InputError(f"layers: expected at least 2, so that all move, got {layers}")
        if context < 1 or width < 1:
            raise InputError(f"context: expected numbers above 0, got {context} and {width}")
        self.layers, self.width, self.context = int(layers), int(width), int(context)

    @property
    def more(self) -> int:
        """Numbers that are read off an image beside those of a normal."""
        return self.context

    def build(self, latent: int, box: int, volume: nn.Module) -> Flow:
        """Makes encoder and layers for K = ``latent``."""
        if latent < 2:
            raise InputError("guide: a flow couples latents, and there is only one")
        super().build(latent, box, volume)
        self.couplings = nn.ModuleList(
            _Coupling(latent, n % 2, self.context, self.width) for n in range(self.layers)
        )
        return self

    def law(self, loc: Tensor, scale_tril: Tensor, context: Tensor, rotation: Tensor) -> Bent:
        """The distribution of :math:`z = R u`."""
        return Bent(loc, scale_tril, context, rotation, self.couplings)


class _Coupling(nn.Module):
    """Every second component stretched and moved by what the others and the context say."""

    def __init__(self, latent: int, first: int, context: int, width: int) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(latent) % 2 == first, persistent=False)
        self.network = perceptron(latent + context, (width,), 2 * latent)
        self.size = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity (the network resets itself)."""
        nn.init.zeros_(self.size)

    def numbers(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of stretches, and moves; 0 for what is kept."""
        known = torch.where(self.kept, x, 0.0)
        lead = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
        known, context = known.expand(*lead, -1), context.expand(*lead, -1)
        stretch, move = self.network(torch.cat([known, context], dim=-1)).chunk(2, dim=-1)
        stretch = STEEPEST * torch.tanh(self.size * stretch)
        return torch.where(self.kept, 0.0, stretch), torch.where(self.kept, 0.0, self.size * move)


class Bent(Turned):
    r"""The law of :math:`z = R (\mu + L f(\epsilon))`.

    Args:
        loc: `(..., K)`.
        scale_tril: `(..., K, K)` lower triangular.
        context: `(..., C)`.
        rotation: `(K, K)` orthogonal `R`.
        couplings: The layers of `f`.
    """

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        context: Tensor,
        rotation: Tensor,
        couplings: Any,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(loc, scale_tril, rotation, validate_args=validate_args)
        self.context, self.couplings = context, couplings

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Bent:
        new = super().expand(batch_shape, _instance)
        new.context = self.context.expand(*batch_shape, -1)
        new.couplings = self.couplings
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return self._of(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x, volume = self.whitened(value), self.log_volume()
        for layer in reversed(self.couplings):
            stretch, move = layer.numbers(x, self.context)
            x = (x - move) * (-stretch).exp()
            volume = volume + stretch.sum(-1)
        return -0.5 * x.square().sum(-1) - volume

    @property
    def mean(self) -> Tensor:
        return self._points().mean(0)

    @property
    def variance(self) -> Tensor:
        return self._points().var(0, unbiased=False)

    def _of(self, noise: Tensor) -> Tensor:
        x = noise
        for layer in self.couplings:
            stretch, move = layer.numbers(x, self.context)
            x = x * stretch.exp() + move
        return self.placed(x)

    def _points(self) -> Tensor:
        noise = _fixed(self.event_shape[0]).to(self.loc)
        return self._of(noise.view(-1, *[1] * len(self.batch_shape), noise.shape[-1]))


@lru_cache
def _fixed(dim: int) -> Tensor:
    """Points `(256, dim)` of N(0, 1) whose mean is 0 and whose covariance is 1."""
    uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(POINTS // 2)
    half = torch.erfinv(2 * uniform.double().clamp(1e-4, 1 - 1e-4) - 1) * math.sqrt(2)
    points = torch.cat([half, -half])
    root = torch.linalg.cholesky(points.T @ points / POINTS)
    return torch.linalg.solve_triangular(root, points.T, upper=False).T.float()
