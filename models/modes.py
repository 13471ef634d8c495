"""Modes: elastic-network motions of adenylate kinase, and what it takes to tell hinges apart.

Claim (Klindt et al. 2024, section 4.2.3): physics in the decoder alone does not identify motions.
Ten normal modes of the open form span the closing of both domains, and mix them; under an
isotropic prior so do the best two motions in their space. Pairs in time, a second knob, or
amplitudes that are not Gaussian (linear ICA) tell the two hinges apart.

    z ~ p(z | c),   r(z) = r_0 + sum_k (c + A z)_k m_k,   x ~ N(CTF pi_phi(atoms at r(z)), sigma^2)

Data: as of rigid_bodies.py; with --knowledge amplitudes the hinges' law is flat, and wider. The
modes are those of the open form; poses are those of the CORE, so the molecule turns as a whole
with them. --latents 10 is a mode each, fewer are combinations of modes, which are learned.
Expected (--no-ctf --data-seed 7, 5 seeds, mean ± sd): R² of the hinges from z, MCC of the latents,
MCC after linear ICA (and whether it says that it told components apart), Spearman of the angles of
the decoded domains and their share of the limit, median RMSD (Å) and that of a structure that does
not move (amplitudes with --latents 10):

    --snr --knowledge   R²    MCC          MCC of ICA       angles     share    RMSD
    .3    none          .730  .764 ± .067  .872 ± .031 no   .819 .881  .98 .98  1.09 of 1.32
    .3    time          .797  .890 ± .002  .799 ± .111 no   .880 .933  .98 .98  1.07 of 1.40
    .3    temperature   .763  .859 ± .009  .818 ± .015 3/5  .816 .805  -         .92 of  .79
    .3    amplitudes    .855  .784 ± .006  .931 ± .000 yes  .932 .947  .97 .96  2.04 of 2.60
    .1    amplitudes    .687  .684 ± .007  .864 ± .001 yes  .850 .913  .96 .96  2.20 of 2.60

So ten modes know the hinges and mix them; ICA of the same latents has them, as their law is flat.
Where it is normal (none), ICA says that it cannot tell, and its MCC is that of a turn. With z of
R² .73 to .86 perfect axes have an MCC of .87 to .93; turned at random, nine tenths of that. Axes
of combinations are off by up to 37° (none), 7° (time) and 15° (temperature). The prior of none
cannot identify them; with the two others seeds are within 13° and 22° after so few steps, and the
verdict is "not by this fit". With --steps 3000 it is "consistent with identified axes": time R²
.798 ± .004, MCC .893 ± .002, axes within 2°, seeds within 1°; temperature .765 ± .005, .871 ±
.003, 2.7 ± 3.0°, 9°.
Takes about a minute a seed on one core (two of it to score), ten modes two.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyro.distributions as dist
import torch

import pyrocryo as pc

DEGREES, MOVED = 6.5, 1.5  # errors of given poses about (°) and along (Å) each axis
WIDEST = 3.0  # of z, where the hinges' law is flat
FEWEST = 500  # images, for linear ICA
SPREADS = pc.simulate.default_scales(2)  # of the hinges, by temperature in K


@dataclass
class Config:
    """Options of this model."""

    latents: int = 2
    """As many as modes: one each; fewer: combinations of modes, which are learned."""
    modes: int = 10
    """Normal modes of the open form."""
    knowledge: Literal["none", "time", "temperature", "amplitudes"] = "time"
    """Isotropic prior; pairs of frames under Laplace transitions; spreads that three temperatures
    change; or an isotropic prior on hinges whose law is flat, and linear ICA afterwards."""
    pose: Literal["known", "refined"] = "known"
    """Poses as they are, or off by 10° and 1.8 Å (medians) and refined."""
    n: int = 20_000
    """Images to simulate."""
    snr: float = 0.1
    """Signal-to-noise ratio of the simulated images."""
    ctf: bool = True
    """Simulate images through a CTF; it is modelled where particles have one."""
    limit: int = 0
    """Held-out molecules to compute the information limit for (100 take a minute or two)."""
    data_seed: int = 0
    """Seed of the simulated data."""


posterior = {"draws": 4, "held_out": 2000}  # linear ICA wants many


def training(config: Config) -> dict[str, float]:
    """Settings of the fit."""
    return {"steps": 400, "batch_size": 32, "lr": 1e-2}


def particles(config: Config) -> pc.Particles:
    """The particles that are simulated where no --data is given."""
    molecule = pc.molecules.AdenylateKinase()
    imaging = {"snr": config.snr, "box": 64, "pixel_size": 1.5, "ctf": config.ctf}
    common = {"seed": config.data_seed, **imaging}
    if config.knowledge == "time":
        true = pc.simulate.time_resolved(molecule, n=(config.n + 1) // 2, scale=0.5, **common)
    elif config.knowledge == "temperature":
        true = pc.simulate.temperature(molecule, n=config.n, scales=SPREADS, **common)
    else:
        law = _flat() if config.knowledge == "amplitudes" else None
        true = pc.simulate.poses(molecule, n=config.n, prior=law, **common)
    if config.pose == "known":
        return true
    off = {"degrees": DEGREES, "angstroms": MOVED}
    return pc.simulate.misplaced(true, seed=config.data_seed, **off)


def pair(config: Config, particles: pc.Particles) -> pc.Pair:
    """Model and guide."""
    if config.limit == 1 or config.limit < 0:
        raise pc.InputError(f"limit: expected 0 or at least 2 molecules, got {config.limit}")
    if not 1 <= config.latents <= config.modes:
        raise pc.InputError(f"latents: expected 1 to {config.modes} (modes), got {config.latents}")
    combined = config.latents < config.modes
    if config.knowledge == "temperature" and config.latents != 2:
        raise pc.InputError(f"latents: the spreads are those of 2, got {config.latents}")
    known = config.pose == "known"
    modes = pc.molecules.normal_modes(pc.molecules.AdenylateKinase().ca_open, config.modes)
    priors = {
        "time": lambda: pc.priors.LaplaceTransition(config.latents, rate=2.0),
        "temperature": lambda: pc.priors.Boltzmann(table=SPREADS),
    }
    return pc.Pair(
        prior=priors.get(config.knowledge, lambda: pc.priors.IsotropicNormal(config.latents))(),
        pose=pc.poses.Known() if known else pc.poses.SO3(around=DEGREES, shift_sd=MOVED),
        volume=pc.volumes.NormalModes(
            modes,
            pixel_size=particles.pixel_size,
            rest=True,
            stretch=not combined,
            hidden=(32,) if combined else None,
            whole=known,  # poses are those of the CORE; modes turn with the whole
        ),
        guide=pc.guides.GaussNewton(),
        optics=pc.optics.CTF(margin=2) if "ctf" in particles.fields else None,
        box=particles.box,
        rotate=config.knowledge in priors,
    )


def scores(config: Config, fit: pc.Fit, scored: pc.Particles, out: Path) -> dict[str, list[float]]:
    """Structures against the truth, what the images allow, and what linear ICA makes of z."""
    if "truth" not in scored.fields:
        return {}
    law = {"time": pc.priors.LaplaceTransition(2, rate=2.0), "amplitudes": _flat()}
    found = pc.diagnose.structures(
        fit,
        pc.molecules.AdenylateKinase(),
        scored,
        limit=0 if config.knowledge == "temperature" else config.limit,
        law=law.get(config.knowledge),
    )
    print(found.sentence)
    told = found.scores()
    for trained in fit.pairs:
        z = pc.diagnose.posterior_means(trained, scored)
        if len(z) < FEWEST:
            print(f"no linear ICA: {len(z)} images were held out, it wants {FEWEST}")
            break
        ica = pc.identify.linear_ica(
            z, components=min(2, config.latents), frames=scored.frames or 1
        )
        mcc = pc.metrics.mcc(scored.truth.reshape(-1, 2), ica.sources).value
        told.setdefault("mcc_ica", []).append(mcc)
        told.setdefault("ica_separated", []).append(float(np.mean(ica.separated)))
    return told


def _flat() -> dist.Distribution:
    return dist.Uniform(torch.full((2,), -WIDEST), WIDEST).to_event(1)
