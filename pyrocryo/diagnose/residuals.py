"""What is left of images once the guide's conformations are decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from pyrocryo.imaging import resample
from pyrocryo.pair import Pair
from pyrocryo.precision import applied

__all__ = ["decoded", "features", "numbers", "replicated", "ring_of"]

FINE = 64  # pixels a side of the maps at most: there is one of each image
COARSE = 24  # and where motions are looked for: fine residuals are mostly noise


def decoded(pair: Pair, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images `(B, [T,] D, D)` of one draw of the guide, rotations and shifts of the draw."""
    with pyro.get_param_store().scope(), torch.no_grad():
        guide = poutine.trace(pair.guide).get_trace(batch)
        clean = poutine.replay(pair.model, guide)(batch)
        latent = {name: guide.nodes[name]["value"] for name in ("pose", "shift") if name in guide}
        where = pair.placed(batch, latent.get("pose"), latent.get("shift"))
    return clean, *where


def replicated(pair: Pair, batch: Any) -> Any:
    """The batch with images that the model might have made of what the guide says of them."""
    with torch.no_grad():
        return batch._replace(images=pair.replicated(decoded(pair, batch)[0]))


def features(pair: Pair, batch: Any) -> dict[str, np.ndarray]:
    """Residuals of a batch and their numbers, in the pair's precision.

    Of several frames, the means over them; residual images are those of the first.

    Returns:
        ``level`` `(B, 1)` mean square; ``spectrum`` and ``gain`` `(B, R)` by ring of 0, 1, ...
        waves a box: power, and product with the decoded image; ``signal`` `(B, R)` power of the
        decoded image; ``mean`` `(B, M M)` residual images, averaged down to at most 64 pixels a
        side; ``body`` `(B, M M)` the same, turned and moved back to where the molecule was, of
        flat volumes; ``coarse`` the one or the other at no more than 24.
    """
    clean, rotation, shift = decoded(pair, batch)
    residual = batch.images - clean
    flat = residual if residual.dim() == 3 else residual[:, 0]
    parts = {
        "level": residual.square().flatten(1).mean(-1, keepdim=True),
        "mean": _averaged(flat, FINE),
    }
    ring, count = ring_of(pair.box)
    ring = torch.as_tensor(ring, device=residual.device)
    r, c = (torch.fft.fft2(x, norm="ortho") for x in (residual, clean))
    for name, product in (
        ("spectrum", r.abs().square()),
        ("gain", (c.conj() * r).real),
        ("signal", c.abs().square()),
    ):
        if product.dim() == 4:
            product = product.mean(1)
        total = product.new_zeros(len(product), len(count) + 1)
        total.index_add_(1, ring.flatten(), product.flatten(1))
        parts[name] = total[:, :-1] / torch.as_tensor(count, dtype=total.dtype, device=ring.device)
    if pair.volume.dim == 2:
        if residual.dim() == 4:
            rotation, shift = rotation[:, 0], shift[:, 0]
        back = rotation.transpose(-1, -2)
        moved = -applied(back[..., :2, :2], shift)
        flat = resample(flat, back, moved, box=pair.box)
        parts["body"] = _averaged(flat, FINE)
    parts["coarse"] = _averaged(flat, COARSE)
    return {name: value.detach().cpu().numpy() for name, value in parts.items()}


def numbers(pair: Pair) -> int:
    """How many :func:`features` has of an image."""
    fine, coarse = (min(side, pair.box) ** 2 for side in (FINE, COARSE))
    return fine * (2 if pair.volume.dim == 2 else 1) + coarse + 3 * (pair.box // 2 + 1) + 1


def _averaged(images: Tensor, most: int) -> Tensor:
    """Images `(B, D, D)` as `(B, M M)`, of at most so many pixels a side."""
    return adaptive_avg_pool2d(images.unsqueeze(1), min(most, images.shape[-1])).flatten(1)


def ring_of(box: int) -> tuple[np.ndarray, np.ndarray]:
    """The ring `(D, D)` of each place of ``fft2``, and how many places there are in a ring `(R,)`.

    R = D // 2 + 1; what lies beyond is said to be in ring R, which is not counted.
    """
    k = np.fft.fftfreq(box) * box
    ring = np.minimum(np.hypot(k[:, None], k).round().astype(int), box // 2 + 1)
    return ring, np.bincount(ring.ravel(), minlength=box // 2 + 2)[: box // 2 + 1]
