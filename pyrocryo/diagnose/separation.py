"""Are pose and conformation kept apart? The numbers of the paper's Fig. 3, seed by seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrocryo.diagnose.common import batches, models
from pyrocryo.diagnose.indices import FEWEST, indices
from pyrocryo.interventions import Interventions
from pyrocryo.metrics import (
    circular_linear,
    in_plane_angle,
    mcc_with_pose,
    pose_correlation,
)
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit

__all__ = ["separation"]


def separation(fit: Fit | Pair, particles: Particles, *, seed: int = 0) -> dict[str, list[float]]:
    """Reconstruction, KL, Eq. 2, the six indices and how well pose and conformation are found.

    Klindt et al. 2024, Fig. 3. Eq. 2 is always taken in its published form, on posterior means
    and noisy images, whatever form was trained with.

        >>> pc.diagnose.separation(fit, particles.test)["eq2"]  # doctest: +SKIP

    Args:
        fit: A fit, or a trained pair.
        particles: Flat ones that were not trained on.
        seed: Draws noise and steps.

    Returns:
        Metric → one number a seed: ``reconstruction_error`` (mean square a pixel, noise
        included), ``kl`` (nats a particle, of pose and `z`); where poses are inferred ``eq2`` and
        the six ``index_*`` (:mod:`pyrocryo.diagnose.indices`); where the particles carry
        rotations in the plane ``pose_circular_linear`` (largest circular-linear R of the true
        pose with a latent) and ``pose_correlation``; where they carry truth too
        ``mcc_with_pose``.
    """
    pairs = models(fit, particles, FEWEST)
    latent = all(pair.pose.latent for pair in pairs.values())
    table: dict[str, list[float]] = {}
    for pair in pairs.values():
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            parts = [_of(pair, batch) for batch in batches(pair, particles)]
        sizes = np.array([len(z) for _, z, _ in parts], dtype=np.float64)
        found = {
            name: float(np.average([means[name] for means, _, _ in parts], weights=sizes))
            for name in parts[0][0]
        }
        z = torch.cat([z for _, z, _ in parts]).flatten(0, -2).cpu().numpy()
        direction = None
        if latent:
            direction = torch.cat([p for _, _, p in parts]).flatten(0, -2).cpu().numpy()
        found |= _against_truth(particles, z, direction)
        for name, value in found.items():
            table.setdefault(name, []).append(value)
    if latent:
        for row in indices(fit, particles, seed=seed).rows():
            table.setdefault(f"index_{row['index']}", []).append(float(row["value"]))
    return table


def _of(pair: Pair, batch: object) -> tuple[dict[str, float], Tensor, Tensor | None]:
    """Means over a batch; conformations and inferred poses."""
    direction = pair.pose_of(batch).mean if pair.pose.latent else None
    law = pair.posterior_of(batch, direction)
    residual = batch.images - pair.seen(law.mean, batch, direction)
    found = {"reconstruction_error": residual.square().mean().item()}
    kl = kl_divergence(law, pair.prior_of(batch)).mean()
    if pair.pose.latent:
        kl = kl + kl_divergence(pair.pose_of(batch), pair.pose.prior(batch)).mean()
        found["eq2"] = Interventions()(pair, batch).item()
    return found | {"kl": kl.item()}, law.mean, direction


def _against_truth(
    particles: Particles, z: np.ndarray, direction: np.ndarray | None
) -> dict[str, float]:
    true = in_plane_angle(particles.rotation) if "rotation" in particles.fields else None
    if true is None:
        return {}
    true = true.ravel()
    found = {"pose_circular_linear": float(circular_linear(true, z).max())}
    if direction is None or direction.shape[-1] != 2:
        return found
    angle = np.arctan2(direction[:, 1], direction[:, 0])
    found["pose_correlation"] = pose_correlation(true, angle)
    if "truth" in particles.fields:
        truth = particles.truth.reshape(len(z), -1)
        found["mcc_with_pose"] = mcc_with_pose(true, angle, truth, z).value
    return found
