"""VAE: the baseline, an isotropic normal prior on z.

Claim (Klindt et al. 2024, section 2.3 and Fig. 4): the model knows the conformations, but its axes
are arbitrary, since every rotation of z fits equally well.

    z_t ~ N(0, I),   x_t ~ N(pi_phi(v(z_t)), sigma^2)

Data: time-resolved pairs of images of a molecule with arms, poses known; each frame is taken by
itself. Expected (8 seeds, mean ± sd): linear R² .975 ± .011, MCC .83 ± .10 (.74 to .99), 6 of 8
seeds turned by more than 15°. With --arms 4 --n 10000 --steps 2500: MCC .64 ± .04 (a random
rotation scores .77), and 5 of 8 seeds lose a component (R² .71-.78, else .95-.98).
Takes 15-30 s a seed on one core (atoms 45 s, implicit 65 s, in-plane 70 s).
"""

from dataclasses import dataclass
from typing import Literal

import pyrocryo as pc


@dataclass
class Config:
    """Options of this model."""

    arms: int = 2
    """Arms of the simulated molecule."""
    latents: int | None = None
    """Size of z; as many as arms by default."""
    n: int = 8000
    """Molecules to simulate."""
    scale: float = 0.5
    """Laplace scale of the simulated steps."""
    volume: pc.volumes.Kind = "grid"
    """Voxels, a coordinate network, or Gaussian atoms."""
    pose: Literal["known", "in-plane"] = "known"
    """Take in-plane poses from the particles, or infer them."""
    snr: float = 1.0
    """Signal-to-noise ratio of the simulated images."""
    data_seed: int = 0
    """Seed of the simulated data."""


def training(config: Config) -> dict[str, float]:
    """Settings of the fit."""
    if config.pose == "in-plane":  # poses first, on a rigid molecule; then it may move
        return {"steps": 3000, "batch_size": 64, "lr": 2e-3, "rigid_steps": 200}
    return {"steps": 1200, "batch_size": 64, "lr": 4e-3}


def particles(config: Config) -> pc.Particles:
    """The particles that are simulated where no --data is given."""
    return pc.simulate.time_resolved(
        pc.molecules.Arms(config.arms),
        n=config.n,
        seed=config.data_seed,
        scale=config.scale,
        snr=config.snr,
    )


def pair(config: Config, particles: pc.Particles) -> pc.Pair:
    """Model and guide."""
    return pc.Pair(
        prior=pc.priors.IsotropicNormal(config.arms if config.latents is None else config.latents),
        pose=pc.poses.InPlane() if config.pose == "in-plane" else pc.poses.Known(),
        volume=pc.volumes.of_kind(config.volume, particles),
        box=particles.box,
    )
