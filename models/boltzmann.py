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

Other laws, from (1, 1) at 300 K to 180 K: --law two (.8, .35), mild (.6, .2), frozen (1, .1),
which is the paper's thought experiment, and for more arms graded (1, .5, .25, .1) beside frozen,
which then cools one arm of four; proportional (1, .5), (.7, .35), (.4, .2); wells, double and
harmonic in turn, whose energies (in k_B T at 300 K) do not depend on temperature,

    ln p(z | tau) = -300 K sum_k e_k(z_k) / tau - ln Q(tau);

knob, equal harmonic wells at 300 and 150 K with and without a ligand that stiffens the first.

Fig. 5A, 48 seeds (--small --box 20 --snr 2.56 --data-seed 7 --steps 3000; four arms --n 10000
--steps 4000; --pose in-plane --steps 4000, 24 seeds). Beforehand: what pc.identify.check_prior
says that a free decoder leaves open, given the law, or its family where it is learned. Then mean
angle left, seeds within 10°, MCC, R²; and, between 24 seeds, matched correlation, affine and
nonlinear R² and the reading of pc.identify.consistency: the same axes, or equal up to a turn or a
curved map.

    law                   leaves open          angle       MCC  R²    between seeds
    three                 signs                 1.4°  48   .989 .979  .99 .98 .96  same
      --learned           order, signs           .9°  48   .990 .979  .99 .99 .96  same
      --no-rotate         signs                30.2°   4   .816 .980  .89 .99 .96  turn
    two                   twists                1.6°  48   .990 .980  .99 .98 .96  same
      --learned           twists                1.6°  48   .983 .970  .97 .94 .95  curve (a)
      --linear images     twists                1.3°  48   .994 .988  1.0 1.0 .96  same
    mild                  twists                1.2°  48   .991 .982  .99 .99 .96  same
    frozen (96 seeds)     signs                 1.1°  95   .986 .974  .99 .99 .96  same
      --learned           twists                1.6°  47   .974 .960  .95 .93 .94  curve (a)
      --no-rotate         signs                 2.5°  45   .981 .978  .96 .99 .95  turn
      --isotropic         anything             26.7°   6   .851 .970  .89 .97 .96  curve
    proportional          twists, turns (b)     3.0°  47   .957 .931  .96 .93 .95  curve
    equal                 twists, turns        26.3°   9   .863 .982  .89 .99 .95  turn
    wells at 300 K        anything              2.3°  48   .984 .967  .98 .97 .98  same
    wells                 twists                1.8°  48   .967 .943  .98 .96 .97  same, warped
    wells, 160-360 K (c)  twists                2.1°  48   .963 .919  .96 .91 .91  curve (a)
    knob                  signs                 3.2°  48   .986 .978  .99 .99 .95  same
      --ligand 0          twists, turns        20.7°  14   .900 .983  .89 .99 .96  turn
    four arms, graded     twists                3.4°  47   .980 .969  .98 .97 .87  turn
      frozen              twists, turns of 3   27.6°   1   .822 .950  .83 .92 .86  curve
      three               twists               10.4°  31   .926 .938  .87 .91 .80  turn
      three, --learned    twists                4.5°  47   .788 .755  .84 .86 .79  turn
      equal               twists, turns        36.8°   0   .692 .823  .71 .86 .78  turn
    in-plane, frozen      signs                14.0°  17*  .863 .876  .82 .82 .93  curve (a)
      three               signs                12.1°  17*  .875 .869  .83 .83 .92  curve
      equal               twists, turns        21.0°   6*  .847 .863  .81 .89 .87  differ

* of 24. (a) A few seeds lost an arm; those with R² > .9 have the same axes. (b) Of whitened z.
(c) --temperatures 360 320 280 240 200 160. A linear decoder (--linear all, 24 seeds) leaves signs
with two and three, any turn with equal: 1.4°, 24 of 24 within 5°, R² .990; 1.3°, 24, .988; 19.5°,
1 (7 within 10°), .988. It needs 3000 steps (1000: 8°).

The best of four restarts by ELBO: frozen 24 of 24 groups within 1.5°, R² .981 (--learned 12 of 12,
2.3°, .984; graded 12 of 12, 3.7°, .978, all with an MCC over .95): a lost arm shows. In-plane
frozen and three 6 of 6 within 7.2° and 5.7°, R² .963 and .962; wells 12 of 12, 3.5°, .964; four
arms three 11 of 12, .976. It does not help equal (2 of 12), nor four arms learned (R² .813).

Why seeds and verdict differ, where they do:
- two, mild, wells, graded align though twists are open. Networks as smooth as these do not wind z
  up; what is left are turns, which cost .4 to 2 nats by 45° (graded .1 to 12). So agreement is no
  proof that a prior of two temperatures identifies axes: a less smooth decoder could twist them.
- wells at 300 K align with nothing to compare: they are not Gaussian, which is all that a
  linear decoder needs (linear ICA).
- proportional aligns though turns of whitened z are free. The layer R is orthogonal, and a turn
  of z itself costs .56 nats by 45°; the free one would have to stretch z by 1.7 and .6, encoder
  and decoder together. The maps from truth to z have singular values 1.07 and .90 (three 1.07 and
  1.00), and what tells seeds apart is a warp (cubic R² .97). Without the layer they scatter
  (--no-rotate, 8 seeds of 1500 steps: 25.9°, 1 of 8, R² .72), so it is the layer that aligns.
- three without the layer scatters though identified: that is said of the best fit, and turns
  freeze long before. A frozen arm tells without: at 180 K it is all but absent.
- four arms: three temperatures have two contrasts where four arms need four, and the cheapest
  turn costs .04 nats; learned, 43 of 48 seeds lose an arm, and the five others agree (8°).
- equal, --learned (8 seeds of 1500 steps: 15.1°, 4 of 8, R² .976) scatters though its family
  leaves only order and signs: equal spreads are those members of it that leave more.
- equal, four arms: R² is under .95 as seeds lose arms; best of four by ELBO .946, none over .95.

The paper's own procedure (--law frozen --encode moving: cold particles are encoded by the arms
that move, 8 seeds): .3°, 8 of 8 within .9°, R² .983 ± .002, MCC .992, no arm lost.
Labels of temperature off by 20 K (wells, 8 seeds of 1500 steps): the prior told of it
(--label-error 20) 1.4°, 8 of 8, R² .975 ± .010, not told (--told-error 0) 1.8°, 8 of 8, .896 ±
.213, one seed without an arm (3 of the 48 above), and with exact labels 1.8°, 8 of 8, .976 ±
.006: axes bear such errors, told or not. The mixture takes twice as long.

Takes about half a minute a seed on one core (box 20, 8 seeds at once, 5-10 s).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import pyrocryo as pc

WARM, COLD = 300.0, 180.0  # K
STILL = 0.1  # spread of a frozen arm

Law = Literal["three", "two", "mild", "frozen", "graded", "proportional", "equal", "wells", "knob"]


@dataclass
class Config:
    """Options of this model."""

    arms: int = 2
    """Arms of the simulated molecule."""
    n: int = 8000
    """Particles to simulate."""
    law: Law = "three"
    """How temperature changes the components, see above."""
    equal: bool = False
    """Short for --law equal: the negative control."""
    wells: bool = False
    """Short for --law wells: double wells (barrier 2 k_B T at 300 K) and harmonic ones in turn."""
    temperatures: tuple[float, ...] = (300.0, 240.0, 180.0)
    """Of wells: where they are measured, in K."""
    label_error: float = 0.0
    """Of wells: standard deviation in K of the true temperatures about their labels."""
    told_error: float | None = None
    """What the prior is told of that; the truth by default."""
    ligand: float = 3.0
    """Of the knob: how much of the ligand there is where it is; 1 stiffens by 1, 0 is no knob."""
    learned: bool = False
    """Learn the spreads at the lower temperatures, or the energies."""
    isotropic: bool = False
    """Control: an isotropic prior that knows of no temperature."""
    encode: Literal["all", "moving"] = "all"
    """The paper's own procedure: encode cold particles by the arms that are not frozen."""
    rotate: bool = True
    """The rotation layer between posterior and prior."""
    linear: Literal["no", "images", "all"] = "no"
    """Simulate images that are linear in z; all: and decode them by a linear map."""
    volume: pc.volumes.Kind = "grid"
    """Voxels, a coordinate network, or Gaussian atoms."""
    pose: Literal["known", "in-plane"] = "known"
    """Take in-plane poses from the particles, or infer them."""
    small: bool = False
    """Smaller encoders, for many seeds on a CPU."""
    snr: float = 1.0
    """Signal-to-noise ratio of the simulated images."""
    box: int = 32
    """Pixels along an edge of the simulated images, 96 Å wide."""
    data_seed: int = 0
    """Seed of the simulated data."""


def training(config: Config) -> dict[str, float]:
    """Settings of the fit."""
    if config.pose == "in-plane":  # poses first, on a rigid molecule; then it may move
        return {"steps": 3000, "batch_size": 64, "lr": 2e-3, "rigid_steps": 200}
    return {"steps": 1500, "batch_size": 64, "lr": 4e-3}


def particles(config: Config) -> pc.Particles:
    """The particles that are simulated where no --data is given."""
    law = _law(config)
    molecule = Linear(config.arms) if config.linear != "no" else pc.molecules.Arms(config.arms)
    imaging = {"snr": config.snr, "box": config.box, "pixel_size": 96 / config.box}
    true = replace(config, learned=False, told_error=None)
    common = {"n": config.n, "seed": config.data_seed, **imaging}
    if law == "knob":
        kelvin, bound = [WARM, WARM, WARM / 2, WARM / 2], [0.0, config.ligand] * 2
        seen = {"temperature": kelvin, "ligand": bound}
        return pc.simulate.conditions(molecule, prior=_wells(true), conditions=seen, **common)
    if law == "wells":
        kelvin = config.temperatures
        return pc.simulate.temperature(molecule, prior=_wells(true), temperatures=kelvin, **common)
    return pc.simulate.temperature(molecule, scales=_scales(law, config.arms), **common)


def pair(config: Config, particles: pc.Particles) -> pc.Pair:
    """Model and guide."""
    law = _law(config)
    moving = config.encode == "moving"
    if moving and (law != "frozen" or config.isotropic or config.learned):
        raise pc.InputError("encode: moving arms are told apart with --law frozen, spreads given")
    if config.linear == "all" and config.volume != "grid":
        raise pc.InputError(f"linear: a grid can be a linear map, {config.volume} cannot")
    unknown = config.pose == "in-plane"
    guide = pc.guides.Amortised((128, 64)) if config.small else None
    if moving:
        guide = pc.guides.Frozen(guide, below=(WARM + COLD) / 2, components=[config.arms - 1])
    linear = pc.volumes.Grid(hidden=())
    return pc.Pair(
        prior=_prior(config, law),
        pose=pc.poses.InPlane() if unknown else pc.poses.Known(),
        volume=linear if config.linear == "all" else pc.volumes.of_kind(config.volume, particles),
        box=particles.box,
        guide=guide,
        pose_guide=pc.guides.Polar(8, angles=32) if unknown and config.small else None,
        rotate=config.rotate and not moving,
    )


def _law(config: Config) -> Law:
    """The law, with the short forms of old spelt out."""
    if config.wells and config.equal:
        raise pc.InputError("equal: spreads are not those of wells; give --equal or --wells")
    short = "wells" if config.wells else "equal" if config.equal else config.law
    if config.law not in ("three", short):
        raise pc.InputError(f"law: {config.law} and --{short} are two laws; give one")
    if short != "wells" and (config.label_error or config.told_error):
        raise pc.InputError("label_error and told_error: only of wells")
    return short


def _prior(config: Config, law: Law) -> Any:
    """The prior; where nothing is learned it is the law that the data are drawn from."""
    if config.isotropic:
        return pc.priors.IsotropicNormal(config.arms)
    if law in ("wells", "knob"):
        return _wells(config)
    table = _scales(law, config.arms)
    if config.encode == "moving":
        table[COLD] = (*table[COLD][:-1], 1e-2)  # the spread that the guide leaves it
    return pc.priors.Boltzmann(table=table, learned=config.learned)


def _wells(config: Config) -> pc.priors.Boltzmann:
    """Energies that do not depend on temperature, in k_B T at 300 K."""
    knob = _law(config) == "knob"
    shapes = (
        pc.priors.Harmonic(1.0) if knob else pc.priors.DoubleWell(2.0),
        pc.priors.Harmonic(1.0),
    )
    energies = [
        pc.priors.LearnedEnergy() if config.learned else shapes[k % 2] for k in range(config.arms)
    ]
    error = config.label_error if config.told_error is None else config.told_error
    more: dict[str, Any] = {"temperature_error": error} if error else {}
    if knob:
        more["tilts"] = {"ligand": {0: lambda z: -0.5 * z * z}}
    return pc.priors.Boltzmann(energies=energies, reference=WARM, **more)


def _scales(law: Law, arms: int) -> dict[float, tuple[float, ...]]:
    """Standard deviations of the components by temperature (K)."""
    if law == "three":
        return pc.simulate.default_scales(arms)
    if law in ("equal", "proportional"):
        row = np.geomspace(1, 1 if law == "equal" else 0.5, arms)
        return {
            tau: tuple((row * sd).tolist()) for tau, sd in ((WARM, 1.0), (240.0, 0.7), (COLD, 0.4))
        }
    if law == "graded" and arms > 4:
        raise pc.InputError(f"law: graded is of up to four arms, not {arms}")
    cold = {
        "two": np.geomspace(0.8, 0.35, arms).tolist(),
        "mild": np.geomspace(0.6, 0.2, arms).tolist(),
        "frozen": [1.0] * (arms - 1) + [STILL],
        "graded": [1.0, 0.5, 0.25][: arms - 1] + [STILL],
    }
    return {WARM: (1.0,) * arms, COLD: tuple(cold[law])}


class Linear(pc.molecules.Arms):
    """Arms whose images are linear in `z`: the tangent at the middle of every motion."""

    def render(
        self, z: Tensor, rotation: Tensor, shift: Tensor, *, box: int, pixel_size: float
    ) -> Tensor:
        """Images `(..., box, box)` of conformations `z` `(..., K)`."""

        def at(u: Tensor) -> Tensor:
            image = super(Linear, self).render
            return image(u.expand(z.shape), rotation, shift, box=box, pixel_size=pixel_size)

        step = 0.3
        axes = step * torch.eye(self.dim).to(z)
        image = at(torch.zeros_like(axes[0]))
        for k, axis in enumerate(axes):
            image = image + z[..., k, None, None] * (at(axis) - at(-axis)) / (2 * step)
        return image
