"""PoseVAE: a VAE that infers poses, with and without the interventions of Algorithm 1.

Claim (Klindt et al. 2024, section 3.2 and Fig. 3): poses that are exchanged between particles,
decoded and encoded again keep the pose out of the conformation.

    phi ~ U(S^1),   z ~ N(0, I),   x ~ N(pi_phi(v(z)), sigma^2)
    L = -ELBO + weight * [d(z, z^) + d(phi', phi^)],   (z^, phi^) = f(g(z, phi'))      (Eq. 2)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import pyrocryo as pc


@dataclass
class Config:
    """Options of this model."""

    encoder: Literal["plain", "polar"] = "plain"
    """Ordinary networks, as published, or a pose head that turns with the image."""
    weight: float = 5.0
    """Weight of Eq. 2; 0 is the VAE."""
    distance: Literal["plain", "batch", "posterior", "contrastive"] = "plain"
    """Distances as published, in units of the batch's or posterior's spread, or contrastive."""
    fresh_poses: bool = False
    """Decode in fresh poses, not in those of other particles."""
    gradients: Literal["both", "encoder"] = "both"
    """Of encoder and decoder, or of the encoder alone."""
    observation_noise: bool = True
    """Add noise to decoded images before they are encoded again."""
    posterior_draws: bool = False
    """Intervene on draws of the posterior, not on means."""
    relative: bool = False
    """Compare turns between two poses of a conformation, which no frame changes."""
    start: int = 0
    """Steps without Eq. 2, which then comes in over as many."""
    physics: bool = True
    """Without: no pose in the model at all, and one more latent for it (the paper's baseline)."""
    max_angle: float = 120.0
    """Simulated poses are uniform within ± this, in degrees."""
    snr: float = 1.0
    """Signal-to-noise ratio of the simulated images."""
    n: int = 10000
    """Particles to simulate."""
    box: int = 20
    """Pixels along an edge of the simulated images, 96 Å wide."""
    data_seed: int = 0
    """Seed of the simulated data."""


def training(config: Config) -> dict[str, float]:
    """Settings of the fit."""
    interventions = pc.Interventions(
        config.weight,
        start=config.start,
        ramp=config.start,
        poses="prior" if config.fresh_poses else "exchanged",
        distance=config.distance,
        gradients=config.gradients,
        noise=config.observation_noise,
        draws=config.posterior_draws,
        relative=config.relative,
    )
    on = config.weight > 0 and config.physics
    return {
        "steps": 2000,
        "batch_size": 32,
        "lr": 3e-3,
        "interventions": interventions if on else None,
    }


def particles(config: Config) -> pc.Particles:
    """The particles that are simulated where no --data is given."""
    return pc.simulate.poses(
        pc.molecules.TwoArms(),
        n=config.n,
        seed=config.data_seed,
        snr=config.snr,
        box=config.box,
        pixel_size=96 / config.box,
        max_angle=config.max_angle,
        max_shift=0.0,
    )


def pair(config: Config, particles: pc.Particles) -> pc.Pair:
    """Model and guide."""
    plain = config.encoder == "plain" or not config.physics
    return pc.Pair(
        prior=pc.priors.IsotropicNormal(2 if config.physics else 3),
        pose=pc.poses.InPlane() if config.physics else pc.poses.Absent(),
        volume=pc.volumes.Grid(),
        box=particles.box,
        guide=pc.guides.Amortised((64, 32), upright=not plain),
        pose_guide=_head(plain) if config.physics else None,
        rotate=False,
    )


def _head(plain: bool) -> torch.nn.Module:
    return pc.guides.PlainPose((64, 32)) if plain else pc.guides.Polar(8, angles=32)


def scores(config: Config, fit: pc.Fit, scored: pc.Particles, out: Path) -> dict[str, list[float]]:
    """Fig. 3 in numbers: reconstruction, KL, Eq. 2, the six indices, MCC with the pose."""
    return pc.diagnose.separation(fit, scored)
