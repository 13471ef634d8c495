"""A guide that asks the volume itself: a few Gauss-Newton steps on each image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrocryo import cholesky
from pyrocryo.precision import exact

__all__ = ["GaussNewton"]

STEP = 0.05  # of the finite differences, in units of z
LARGEST = 4.0  # |u| beyond which the prior leaves nothing


class GaussNewton(nn.Module):
    r"""The posterior under the volume, linearised where the last step led.

    With `g` the image without noise, `J` its derivatives by `u` (forward differences),

    .. math:: \Lambda = P + J^\top J / s^2, \quad
              u \leftarrow \Lambda^{-1} J^\top (x - g(u) + J u) / s^2

    starting from `u` = 0, and :math:`q(u | x) = N(u, D \Lambda^{-1} D)` in the end. Learned are
    the precisions `P` (diagonal), the noise `s` and the widening `D` (diagonal): 2 K + 1 numbers,
    where a network would have to learn how every motion looks from every side. Made for volumes
    in three dimensions with known poses; a step costs (K + 1) ``iterations`` more images.
    Gradients of the ELBO reach the volume through the decoder only.

    Args:
        iterations: Gauss-Newton steps.
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    def build(self, latent: int, box: int, volume: nn.Module) -> GaussNewton:
        """Takes the volume of the pair, and K = ``latent``."""
        self._volume = (volume,)  # in a tuple: its parameters are the pair's, not the guide's
        self.latent = latent
        self.log_precision = nn.Parameter(torch.zeros(latent))
        self.log_noise = nn.Parameter(torch.zeros(()))
        self.log_widening = nn.Parameter(torch.zeros(latent))
        return self

    def extra_repr(self) -> str:
        """What decides its answer beside the weights: resuming goes by it."""
        return f"iterations={self.iterations}"

    def reset_parameters(self) -> None:
        """Back to a standard normal prior, unit noise and the posterior as linearised."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @exact
    def forward(
        self,
        images: Tensor,
        rotation: Tensor,
        shift: Tensor,
        optics: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Mean `(..., K)` and Cholesky factor `(..., K, K)` of each image's posterior.

        Args:
            images: `(..., D, D)` as they are.
            rotation: `(..., 3, 3)`; may have leading axes (draws of a pose) that images lack.
            shift: `(..., 2)` in pixels.
            optics: Of clean images `(..., D, D)` with further leading axes, as they are seen;
                linear. None where they are seen as they are.
        """
        u = images.new_zeros(*rotation.shape[:-2], self.latent)
        for _ in range(self.iterations):
            with torch.no_grad():
                clean, jacobian = self._linearised(u, rotation, shift, optics)
            target = (images - clean).flatten(-2).unsqueeze(-1) + jacobian @ u.unsqueeze(-1)
            weight = (-2 * self.log_noise).exp()
            precision = torch.diag_embed(self.log_precision.exp())
            precision = precision + weight * (jacobian.transpose(-1, -2) @ jacobian)
            factor = cholesky.factor(precision)
            score = weight * (jacobian.transpose(-1, -2) @ target)
            loc = cholesky.solve(score, factor).squeeze(-1)
            u = loc.detach().clamp(-LARGEST, LARGEST)
        covariance = cholesky.inverse(factor)
        widening = self.log_widening.exp()
        scale_tril = cholesky.factor(covariance) * widening.unsqueeze(-1)
        return loc.clamp(-LARGEST, LARGEST), scale_tril

    def _linearised(
        self,
        u: Tensor,
        rotation: Tensor,
        shift: Tensor,
        optics: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Images `(..., D, D)` at `u` and their derivatives `(..., D * D, K)`."""
        volume = self._volume[0]
        clean = volume(u, rotation, shift)
        steps = STEP * torch.eye(self.latent, dtype=u.dtype, device=u.device)
        slopes = [(volume(u + step, rotation, shift) - clean) / STEP for step in steps]
        rows = torch.stack([clean, *slopes])
        rows = rows if optics is None else optics(rows)
        return rows[0], torch.stack([row.flatten(-2) for row in rows[1:]], dim=-1)
