"""SlowVAE: frames of one molecule in time, and priors on how it moves between them.

Claim (Klindt et al. 2024, section 4.2.1 and Fig. 4): two frames of each molecule, a known time
apart, make the axes identifiable, up to their order and sign.

    z_1 ~ N(0, I),   (z_2 - z_1)_k ~ Laplace(0, b),   x_t ~ N(pi_phi(v(z_t)), sigma^2)

Data: time-resolved pairs of images of a molecule with arms, poses known. The exact ELBO with the
rotation layer; the paper's weights are --gamma 10 --plugin --rate 10, with --scale 1. --prior and
--steps-law take other steps, --prior isotropic the VAE. Expected (8 seeds, mean ± sd): at b = .5
linear R² .971 ± .009, MCC .986 ± .004, every seed within 1.9°; at b = .25 .977 ± .007, .988 ±
.003, within 2.9°; with --arms 4 --n 10000 --steps 2500 .978 ± .004, .988 ± .002, within 1.8°. With
--volume implicit --steps 1500 R² .980 ± .003, MCC .991 ± .001; with --volume atoms .993 ± .000,
.995 ± .003, within 1.8°.

Fig. 4, 50 seeds (--small --box 20 --snr 2.56, the same images binned; --batch-size 32 --steps 1500
--data-seed 7; as published --gamma 10 --plugin --rate 10 --kl-warmup 500, at every b; without the
layer --no-rotate): mean angle left (°), seeds within 10°, MCC, R². Two arms:

    b    VAE               exact, no layer   exact, layer      published, no..   published, layer
    1    24.9 11 .848 .939 23.4 10 .845 .921  2.8 48 .967 .952 14.8 26 .847 .867  1.6 49 .901 .856
    .5   24.6 11 .858 .952 21.7 14 .887 -     2.3 48 .977 .970 13.8 29 .930 -     1.3 50 .983 .967
    .25  25.4 10 .861 .966 23.8  9 .875 .967  2.1 49 .979 .968 15.6 23 .928 -     1.6 50 .987 .977
    .1   24.9 12 .871 .979 20.5 12 .901 .972  2.6 49 .983 .971 21.5 14 .895 .983  2.2 50 .988 .978

Four arms (--arms 4 --n 10000 --steps 2500 --batch-size 64, warm-up 800), with the seeds whose MCC
is over .95 in the place of those within 10°; the floor of the MCC is .774:

    1    42    0 .678 .895 41    0 .716 .948  1.9 41 .955 .935 27    0 .523 .522 13    0 .572 .490
    .5   42    0 .666 .841 38    0 .755 .964  1.0 48 .982 .970 20    1 .683 .698  6.0  1 .735 .675
    .25  41    0 .662 .830 40    0 .749 .980  1.7 50 .989 .979 27    5 .786 .880  1.7 26 .887 .857
    .1   42    0 .659 .826 40    0 .741 .979  4.1 50 .987 .979 36    0 .770 .958  3.2 45 .962 .948

So the layer, with the exact ELBO, does it at every b. What was published aligns two arms as well,
but loses components of four (R²), the more the larger b; without a KL warm-up it loses or folds
one of two in most seeds (R² .60). Where R² is low the ELBO tells: its correlation with R² is .9.
The paper's eight metrics at b = .5, VAE, as published without the layer, exact with it: BetaVAE
.99 .99 1, FactorVAE .98 .99 .99, MIG .26 .42 .62, DCI-D .37 .65 .92, Modularity .77 .92 .99,
Explicitness .96 .97 .97, SAP .56 .78 .94, MCC .86 .93 .98. Paired by seed all eight favour either
SlowVAE, six (without) and seven (with) at p < .05; Explicitness, which is blind to rotations, does
not tell.
With Algorithm 1 beside it (--weight 5, poses known, b = .5): exact with the layer MCC .967, R²
.953 (--weight 1: .983, .969); the VAE .871, .973; as published with the layer it empties the
latents, R² .08. So with known poses it changes nothing for the better.
Limits (24 seeds each, b = .5). Noise: SNR 1, .3 and .1 of the images before binning 1.0° on
average, 24 of 24, R² .973, .975, .931; SNR .03 10.8°, 14, .639. Arms that depend on each other
(--correlation .5, .9): 11.8°, 16 of 24, and 28°, 1; at 1 the two latents do not become one but run
along one curve (nearest neighbours tell z from the one truth to R² .988). One latent for two arms
knows .67 of them (nearest neighbours); four and eight latents use three (variances of means 1.7,
1.3, .8, then < .1), MCC .933 and .946. Trajectories (--frames 8 --n 2286 --boundary ar): .972 ±
.004, as windows of two frames (--window 2) .982 ± .007, 8000 single pairs .970 ± .077. Diffusion
in double wells under a Laplace prior: 24°, 6 of 24, at a lag of .02, where steps are Gaussian, and
9.1°, 19 of 24, at .5, where they are sparse. An Ornstein-Uhlenbeck prior on its own data: 20°, 8.

With --pose in-plane (angles over the full circle unknown; 3000 steps, the first 200 on a rigid
molecule; settings chosen on data seed 0, then 8 seeds on data seed 7): median pose error 6.0 ± .1°
after one global gauge and .43 ± .04° once a frame that turns with the conformation is fitted, all
images within 10° then, no flips; the pose explains nothing of z (-.03 ± .00); linear R² .947 ±
.031, cubic .980 ± .001 (z comes out warped), MCC .971 ± .016, every seed within 2.3° (data seed
0: within 5.0°). As published, with the layer (as above, --kl-warmup 1000 --steps 4000 --lr 2e-3):
45 of 50 within 10°, R² .971; five lose a component, 20 nats below the others (.932 ± .123 over
all). The VAE: 15 of 50, .890. Of the eight metrics seven are higher (p < .05), BetaVAE is not.
Algorithm 1 beside it (--weight 5) empties the latents of what was published, R² .00 (50 seeds);
beside the VAE .845, R² .879, 15 of 50 (without it .890, 15 of 50).

Aligned is not proved. With Gaussian steps under a Laplace prior the layer still aligns 20 of 24
seeds (23 with equal arms, 23 of a stationary process, 23 with posteriors of one width for all).
On images that are linear in z it aligns none: 24.9°, 4 of 24, as chance has it; unless one
component is seen twice as strongly: 10.5°, none beyond 17°, and .9°, 24 of 24, with posteriors of
one width. So the traces are unequal precision and the curvature of what arms do to images, not
steps; pc.identify.increments says what steps can show.

Takes 10-30 s a seed on one core (atoms 15 s, implicit 65 s, in-plane 75 s; box 20, 25 seeds at
once, 2-4 s, four arms 15 s). On an H100 that two other fits shared, 50 seeds at once: two arms
7-12 s in all, four 12-24 s, in-plane 41 s.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyrocryo as pc

JUMPS = 0.25  # a step
SMALL = 0.3  # of b: small steps beside the jumps


@dataclass
class Config:
    """Options of this model."""

    prior: Literal["laplace", "student", "huber", "jump", "switching", "gaussian", "isotropic"] = (
        "laplace"
    )
    """Steps between frames; isotropic takes each frame by itself, the paper's VAE."""
    rate: float | None = None
    """Rate of a Laplace prior; 1 / scale by default."""
    plugin: bool = False
    """The SlowVAE as published: each step from the posterior mean of the frame before."""
    learned: bool = False
    """Learn the size of the prior's steps, per unit of time."""
    rotate: bool = True
    """The rotation layer between posterior and prior."""
    arms: int = 2
    """Arms of the simulated molecule."""
    latents: int | None = None
    """Size of z; as many as arms by default."""
    n: int = 8000
    """Molecules to simulate."""
    frames: int = 2
    """Frames of each."""
    window: int | None = None
    """Train on this many consecutive frames at a time; all by default."""
    scale: float = 0.5
    """Laplace scale b of the simulated steps: they have the variance 2 b²."""
    steps_law: Literal["laplace", "student", "jump", "gaussian"] = "laplace"
    """Law of the simulated steps."""
    boundary: Literal["reflected", "ar", "free"] = "reflected"
    """What keeps simulated conformations in range."""
    correlation: float = 0.0
    """Of the simulated arms' motions."""
    volume: pc.volumes.Kind = "grid"
    """Voxels, a coordinate network, or Gaussian atoms."""
    pose: Literal["known", "in-plane"] = "known"
    """Take in-plane poses from the particles, or infer them."""
    small: bool = False
    """Smaller encoders, for many seeds on a CPU."""
    weight: float = 0.0
    """Weight of Algorithm 1 (Eq. 2); 0 leaves it out."""
    snr: float = 1.0
    """Signal-to-noise ratio of the simulated images."""
    box: int = 32
    """Pixels along an edge of the simulated images, 96 Å wide."""
    data_seed: int = 0
    """Seed of the simulated data."""


def training(config: Config) -> dict[str, float]:
    """Settings of the fit."""
    on = {"interventions": pc.Interventions(config.weight)} if config.weight else {}
    if config.pose == "in-plane":  # poses first, on a rigid molecule; then it may move
        return {"steps": 3000, "batch_size": 64, "lr": 2e-3, "rigid_steps": 200, **on}
    return {"steps": 1200, "batch_size": 64, "lr": 4e-3, **on}


def particles(config: Config) -> pc.Particles:
    """The particles that are simulated where no --data is given."""
    found = pc.simulate.time_resolved(
        pc.molecules.Arms(config.arms),
        n=config.n,
        seed=config.data_seed,
        scale=config.scale,
        frames=config.frames,
        steps=config.steps_law,
        boundary=config.boundary,
        correlation=config.correlation,
        snr=config.snr,
        box=config.box,
        pixel_size=96 / config.box,
    )
    return found if config.window is None else found.windows(config.window)


def pair(config: Config, particles: pc.Particles) -> pc.Pair:
    """Model and guide."""
    if not config.scale > 0:
        raise pc.InputError(f"scale: expected a positive Laplace scale, got {config.scale}")
    unknown = config.pose == "in-plane"
    return pc.Pair(
        prior=_prior(config, particles.frames or 2),
        pose=pc.poses.InPlane() if unknown else pc.poses.Known(),
        volume=pc.volumes.of_kind(config.volume, particles),
        box=particles.box,
        guide=pc.guides.Amortised((128, 64)) if config.small else None,
        pose_guide=pc.guides.Polar(8, angles=32) if unknown and config.small else None,
        rotate=config.rotate,
    )


def _prior(config: Config, frames: int) -> Any:
    """The prior whose steps, given the frame before, have the variance 2 b²."""
    dim = config.arms if config.latents is None else config.latents
    if config.rate is not None and config.prior != "laplace":
        raise pc.InputError(f"rate: that of a Laplace prior, and this one is {config.prior}")
    if (config.plugin or config.learned) and config.prior == "isotropic":
        raise pc.InputError("plugin and learned: an isotropic prior has no steps")
    if config.prior == "isotropic":
        return pc.priors.IsotropicNormal(dim)
    family, value, options = _steps(config)
    if config.plugin:
        if config.prior == "switching":
            raise pc.InputError("plugin: a switching prior has no KL in closed form to change")
        options["plugin"] = True
    if config.learned:
        return pc.priors.Kinetics(family, dim, value, learned=True, **options)
    return family(dim, value, frames=frames, **options)


def _steps(config: Config) -> tuple[type, float, dict[str, float]]:
    """A family of transitions, and its numbers."""
    b, chance = config.scale, 1 - math.exp(-JUMPS)
    large = b * math.sqrt((2 - (1 - chance) * SMALL**2) / chance)
    if config.prior == "laplace":
        return pc.priors.LaplaceTransition, 1 / b if config.rate is None else config.rate, {}
    if config.prior == "student":
        return pc.priors.StudentTransition, b * math.sqrt(2 / 3), {"df": 3}
    if config.prior == "huber":
        return pc.priors.PseudoHuberTransition, b * math.sqrt(2 / 2.7), {"width": 1.0}
    if config.prior == "jump":
        return pc.priors.JumpTransition, JUMPS, {"small": SMALL * b, "large": large}
    if config.prior == "switching":
        sizes = {"slow": SMALL * b, "fast": large, "share": chance}
        return pc.priors.SwitchingTransition, 1.0, sizes
    if not 2 * b**2 < 1:
        raise pc.InputError(f"scale: a stationary Gaussian process needs < .707, got {b}")
    return pc.priors.GaussianTransition, -0.5 * math.log(1 - 2 * b**2), {}


def scores(config: Config, fit: pc.Fit, scored: pc.Particles, out: Path) -> dict[str, Any]:
    """The two metrics of the paper's eight that intervene: on simulated particles only."""
    molecule = pc.molecules.Arms(config.arms)
    flat = "rotation" in scored.fields and pc.metrics.in_plane_angle(scored.rotation) is not None
    shown = "truth" in scored.fields and scored.truth.shape[-1] == molecule.dim
    if not (flat and shown and molecule.dim > 1):
        return {}
    try:
        world = pc.diagnose.simulator(fit, molecule, scored)
    except pc.InputError as error:
        print(f"no BetaVAE, no FactorVAE: {error}")
        return {}
    many = min(4000, max(100, 5 * len(scored)))  # few particles deserve no precise score
    return {
        "betavae": pc.metrics.betavae(*world, pool=many),
        "factorvae": pc.metrics.factorvae(*world, pool=many // 40 + 1),
    }
