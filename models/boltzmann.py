"""Boltzmann: the temperature of each particle says how widely its components spread.

Claim (Klindt et al. 2024, section 4.2.2 and Fig. 5A): temperature as auxiliary variable makes the
axes identifiable, where it changes the components' spreads in different proportions.

    z_k | tau ~ N(0, sigma_k(tau)^2),   x ~ N(pi_phi(v(z)), sigma^2)

Data: images of a molecule with arms at 300, 240 and 180 K, poses known, with sigma = (1, 1),
(.8, .5), (.6, .25): three rows that are not proportional. Expected (8 seeds, mean ± sd, scored at
300 K): linear R² .970 ± .006, MCC .982 ± .003, every seed within 3.3°. With --equal (the same
spread for all components at each temperature) the prior is blind to rotations and the seeds
scatter: the negative control (20 ± 15°, 4 of 8 within 10°; on a second data set 26 ± 10°, 1 of
16).
With --wells the law has double and harmonic wells in turn (energies in k_B T at 300 K), which a
free decoder cannot identify in theory, however many temperatures are measured.
Takes about half a minute a seed on one core.
"""

from dataclasses import dataclass, replace
from typing import Literal

import pyrocryo as pc


@dataclass
class Config:
    """Options of this model."""

    arms: int = 2
    """Arms of the simulated molecule."""
    n: int = 8000
    """Particles to simulate."""
    equal: bool = False
    """Equal spreads at each temperature (1, .7, .4): the negative control."""
    wells: bool = False
    """Double wells (barrier 2 k_B T at 300 K) and harmonic wells in turn, in place of spreads."""
    learned: bool = False
    """Learn the spreads at the lower temperatures, or the energies."""
    volume: pc.volumes.Kind = "grid"
    """Voxels, a coordinate network, or Gaussian atoms."""
    pose: Literal["known", "in-plane"] = "known"
    """Take in-plane poses from the particles, or infer them."""
    snr: float = 1.0
    """Signal-to-noise ratio of the simulated images."""
    data_seed: int = 0
    """Seed of the simulated data."""

    @property
    def prior(self) -> pc.priors.Boltzmann:
        """The prior; where nothing is learned it is the law that the data are drawn from."""
        if not self.wells:
            return pc.priors.Boltzmann(table=self.scales, learned=self.learned)
        shapes = (pc.priors.DoubleWell(2.0), pc.priors.Harmonic(1.0))
        energies = [
            pc.priors.LearnedEnergy() if self.learned else shapes[k % 2] for k in range(self.arms)
        ]
        return pc.priors.Boltzmann(energies=energies, reference=300.0)

    @property
    def scales(self) -> dict[float, tuple[float, ...]]:
        """Standard deviations of the components by temperature (K)."""
        if self.equal:
            return {
                tau: (sd,) * self.arms for tau, sd in ((300.0, 1.0), (240.0, 0.7), (180.0, 0.4))
            }
        return pc.simulate.default_scales(self.arms)


def training(config: Config) -> dict[str, float]:
    """Settings of the fit."""
    if config.pose == "in-plane":  # poses first, on a rigid molecule; then it may move
        return {"steps": 3000, "batch_size": 64, "lr": 2e-3, "rigid_steps": 200}
    return {"steps": 1500, "batch_size": 64, "lr": 4e-3}


def particles(config: Config) -> pc.Particles:
    """The particles that are simulated where no --data is given."""
    known = replace(config, learned=False)
    law = {"prior": known.prior} if config.wells else {"scales": config.scales}
    return pc.simulate.temperature(
        pc.molecules.Arms(config.arms), n=config.n, seed=config.data_seed, snr=config.snr, **law
    )


def pair(config: Config, particles: pc.Particles) -> pc.Pair:
    """Model and guide."""
    if config.wells and config.equal:
        raise pc.InputError("equal: spreads are not those of wells; give --equal or --wells")
    return pc.Pair(
        prior=config.prior,
        pose=pc.poses.InPlane() if config.pose == "in-plane" else pc.poses.Known(),
        volume=pc.volumes.of_kind(config.volume, particles),
        box=particles.box,
    )
