r"""CryoDRGN's default architecture as a pair: a central slice of a network, in Hartley space.

Written from the mathematics (Zhong et al. 2021, Nature Methods 18:176, and the documented options
of ``cryodrgn train_vae`` 4.3.1), and shown equal to it in tests/test_bench_cryodrgn.py.

There is no CTF here. Shifts are undone in the particles, once
(:func:`pyrocryo.bench.hartley.hartley`, which also says what the images are).
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.functional import linear

from pyrocryo.bench.hartley import disc, transform
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.priors import IsotropicNormal
from pyrocryo.svi.weights import Weights

__all__ = ["Encoder", "Slice", "loss", "renamed", "vae"]

FREQUENCY = 0.5  # standard deviation of the positional frequencies, a share of the highest


def vae(
    box: int,
    *,
    latent: int = 8,
    layers: int = 3,
    width: int = 1024,
    features: int | None = None,
    folded: bool = True,
) -> Pair:
    r"""The heterogeneous VAE of cryoDRGN for images of :func:`pyrocryo.bench.hartley.hartley`.

    cryoDRGN minimises the mean over M pixels of :math:`(x - \hat x)^2`, plus
    :math:`\beta KL / M`. With σ = 1 and weights of β/2 on the KL,

    .. math:: L = \frac{2}{B M} \Big[ -ELBO_{\beta / 2} - \frac{B D^2}{2} \ln 2 \pi \Big]

    (the D² - M pixels outside the disc are zero in data and model). Its default is
    β = 1 / latent: ``pc.fit(pair, hartley(particles), beta=0.5 / 8, lr=1e-4)``.

    Args:
        box: Pixels D along an edge of the Hartley images: odd, one more than the particles'.
        latent: Size of `z`.
        layers: Residual layers of encoder and decoder.
        width: Width of all layers.
        features: Positional frequencies, a third of them; by default half the box.
        folded: See :class:`Residual`.
    """
    return Pair(
        IsotropicNormal(latent),
        Slice(layers=layers, width=width, features=features, folded=folded),
        box,
        guide=Encoder(layers=layers, width=width, folded=folded),
        noise=1.0,
        rotate=False,
    )


def loss(pair: Pair, batch: Any, *, beta: float) -> Tensor:
    """CryoDRGN's loss of a pair made by :func:`vae`: see there. Per pixel and image.

    Args:
        pair: Model and guide.
        batch: A batch of B particles.
        beta: cryoDRGN's β.
    """
    with Weights(beta / 2):
        negative = TraceMeanField_ELBO().differentiable_loss(pair.model, pair.guide, batch)
    constant = 0.5 * batch.images.numel() * math.log(2 * math.pi)
    return 2 * (negative - constant) / (len(batch.images) * pair.volume.pixels_seen)


class Residual(nn.Module):
    r"""Layers :math:`x \mapsto \mathrm{relu}(W x + b + x)`, the `x` where widths allow it.

    Folded into the weights, :math:`(W + 1) x + b`, the sum is one matrix product with nothing to
    add. It is then rounded otherwise than cryoDRGN's, and in single precision a few units that are
    zero but for rounding let their gradient through in one of the two and not in the other.

    Computed in whatever precision autocast asks for, and returned in single precision.
    """

    def __init__(self, widths: list[int], *, folded: bool = True) -> None:
        super().__init__()
        self.folded = folded
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        square = {layer.in_features for layer in self.layers if _keeps(layer)}
        for size in square if folded else ():
            self.register_buffer(f"one{size}", torch.eye(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of `(..., first width)`, `(..., last width)`."""
        for n, layer in enumerate(self.layers):
            x = x if n == 0 else x.relu()
            if not _keeps(layer):
                x = layer(x)
            elif self.folded:
                x = linear(x, layer.weight + getattr(self, f"one{x.shape[-1]}"), layer.bias)
            else:
                x = layer(x) + x
        return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _keeps(layer: nn.Linear) -> bool:
    return layer.in_features == layer.out_features


class Encoder(nn.Module):
    """Mean and diagonal covariance of `z` from the disc of a Hartley image, by a residual network.

    Args:
        layers: Residual layers, between a first and a last.
        width: Their width.
        folded: See :class:`Residual`.
    """

    def __init__(self, layers: int = 3, width: int = 1024, *, folded: bool = True) -> None:
        super().__init__()
        self.layers, self.width, self.folded = layers, width, folded

    def build(self, latent: int, box: int, volume: nn.Module) -> Encoder:
        """Makes the network for K = ``latent`` and Hartley images of ``box`` pixels."""
        self.register_buffer("where", disc(box), persistent=False)
        widths = [len(self.where), *[self.width] * (self.layers + 1), 2 * latent]
        self.network = Residual(widths, folded=self.folded)
        return self

    def forward(self, images: Tensor, rotation: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Mean `(..., K)` and Cholesky factor `(..., K, K)`; poses are not looked at."""
        images = images.expand(*rotation.shape[:-2], *images.shape[-2:])
        seen = images.flatten(-2).index_select(-1, self.where)
        loc, log_variance = self.network(seen).chunk(2, dim=-1)
        return loc, torch.diag_embed((0.5 * log_variance).exp())


class Slice(nn.Module):
    r"""The Fourier transform of the density as a network, :math:`F(k, z)`; images are slices.

    .. math:: H(k) = (\mathrm{Re} - \mathrm{Im}) F(A^\top (k_x, k_y, 0), z)

    with `A` the rotation. The density is real, so the network is asked for half of all `k`, those
    with :math:`k_z \le 0`, and :math:`F(-k)` is the conjugate: half of the disc gives all of it.
    The network reads sines and cosines of random frequencies of `k` (Tancik et al. 2020) beside
    `z`. Pixels outside the disc, and the mean of the image, are zero.

    Geometry is computed in single precision under autocast too.

    Args:
        layers: Residual layers, between a first and a last.
        width: Their width.
        features: A third of the number of positional frequencies; by default half the box.
        folded: See :class:`Residual`.
    """

    dim = 3

    def __init__(
        self,
        layers: int = 3,
        width: int = 1024,
        features: int | None = None,
        *,
        folded: bool = True,
    ) -> None:
        super().__init__()
        self.layers, self.width, self.features = layers, width, features
        self.folded = folded

    def build(self, latent: int, box: int) -> Slice:
        """Makes the network for `z` of ``latent`` numbers and Hartley images of ``box`` pixels."""
        where = disc(box)
        self.box, self.side, self.pixels_seen = box, box - 1, len(where)
        top = where[: len(where) // 2]
        # k and then -k, as the network's values come
        self.register_buffer("where", torch.cat([top, box**2 - 1 - top]), persistent=False)
        k = torch.stack([top % box, top // box], dim=-1) - box // 2
        self.register_buffer("upper", k.float() / (box - 1), persistent=False)
        count = 3 * (box // 2 if self.features is None else self.features)
        waves = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
        self.register_buffer("waves", waves * FREQUENCY)
        widths = [2 * count + latent, *[self.width] * (self.layers + 1), 2]
        self.network = Residual(widths, folded=self.folded)
        return self

    def extra_repr(self) -> str:
        """What decides its numbers beside the weights: resuming goes by it."""
        return f"layers={self.layers}, width={self.width}, features={self.features}"

    @property
    def numbers_an_image(self) -> int:
        """Numbers held while one image is made, for those who choose how many to make at once."""
        each = self.network.layers[0].in_features + 2 * self.width * (self.layers + 1)
        return len(self.upper) * each

    def forward(self, z: Tensor, rotation: Tensor, shift: Tensor) -> Tensor:
        """Clean Hartley images `(..., box, box)` of conformations `z` in given poses.

        Args:
            z: `(..., K)`.
            rotation: `(..., 3, 3)`, broadcast against `z`.
            shift: Not looked at: :meth:`check` refuses any but zero.
        """
        lead = torch.broadcast_shapes(z.shape[:-1], rotation.shape[:-2])
        z = z.expand(*lead, z.shape[-1]).reshape(-1, z.shape[-1])
        with torch.autocast(z.device.type, enabled=False):
            a = rotation.expand(*lead, 3, 3).reshape(-1, 3, 3).to(self.upper.dtype)
            points = self.upper @ a[:, :2]  # A^T k, for rows k
        real, imag = self._values(points, z)
        values = torch.cat([real - imag, real + imag], dim=-1)
        images = values.new_zeros(len(values), self.box**2).index_copy(1, self.where, values)
        return images.view(*lead, self.box, self.box)

    def _values(self, points: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts `(B, P)` at ``points`` `(B, P, 3)` (cycles a pixel)."""
        with torch.autocast(z.device.type, enabled=False):
            side = torch.where(points[..., 2:] > 0, -1.0, 1.0)
            x, y, depth = (points * side).unsqueeze(-1).unbind(-2)
            waves = self.waves * (self.box // 2)
            phase = x * waves[:, 0] + y * waves[:, 1] + depth * waves[:, 2]
            code = z.to(phase.dtype).unsqueeze(1).expand(-1, points.shape[1], -1)
            seen = torch.cat([phase.sin(), phase.cos(), code], dim=-1)
        real, imag = self.network(seen).unbind(-1)
        return real, imag * side.squeeze(-1)

    def density(self, z: Tensor) -> Tensor:
        """Density maps `(..., side, side, side)`, indexed `[z, y, x]`, of `z` `(..., K)`."""
        k = torch.arange(-(self.box // 2), self.box // 2, device=z.device) / (self.box - 1)
        plane = torch.stack(torch.meshgrid(k, k, indexing="ij")[::-1], dim=-1).flatten(0, 1)
        # of k_z = 0 too only one half is the network's
        lower = (plane[:, 1] > 0) | ((plane[:, 1] == 0) & (plane[:, 0] > 0))
        maps = []
        for one in z.reshape(-1, 1, z.shape[-1]):
            slices = []
            for depth in k:
                points = torch.cat([plane, depth.expand(len(plane), 1)], dim=-1)
                side = torch.where(lower & (depth == 0), -1.0, 1.0)
                real, imag = self._values((points * side[:, None]).unsqueeze(0), one)
                square = points.square().sum(-1)
                inside = (square > 0) & (square <= 0.25)
                slices.append(((real - imag * side) * inside).view(self.side, self.side))
            maps.append(transform(torch.stack(slices), 3) / self.side**3)
        return torch.stack(maps).reshape(*z.shape[:-1], *[self.side] * 3)

    def check(self, particles: Particles) -> None:
        """Raises InputError if particles carry shifts, which the Hartley images must not have."""
        if np.any(particles.fields.get("shift", 0.0)):
            raise InputError(
                "shift: Hartley images are centred already, give these particles to "
                "pyrocryo.bench.hartley.hartley"
            )


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of cryoDRGN's ``HetOnlyVAE`` (its defaults) under the names of :func:`vae`.

    Load them with ``pair.load_state_dict(renamed(state), strict=False)``.

    Raises:
        InputError: If a weight is none of the default architecture's.
    """
    new = {}
    for name, value in state.items():
        found = re.fullmatch(
            r"(encoder|decoder\.decoder)\.main\.(\d+)\.(?:linear\.)?(weight|bias)", name
        )
        if name == "decoder.rand_freqs":
            new["volume.waves"] = value
        elif found:
            part = "encoder" if found[1] == "encoder" else "volume"
            new[f"{part}.network.layers.{int(found[2]) // 2}.{found[3]}"] = value
        else:
            raise InputError(f"{name}: not a weight of cryoDRGN's default architecture")
    return new
