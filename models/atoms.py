"""Atoms: the moving Gaussians of a protein, from its structure or from a map of its images.

Claim (Klindt et al. 2024, sections 4.2.1 and 4.2.3, Fig. 5B): with physics in the decoder and
Laplace transitions in time, each latent is one motion of the protein: NMP closing, LID closing.

    z_1 ~ N(0, I),   (z_2 - z_1)_k ~ Laplace(0, b),   x_t ~ N(CTF pi_phi(v(z_t)), sigma^2)

Data: pairs of frames of the two-hinge model of 4AKE to 1AKE, hinges independent (unlike on the
transition path), poses uniform in space and known, 64 x 64 pixels of 1.5 Å, Gaussians of 4 Å at
the alpha carbons. --volume hinges decodes with the true hinges; atoms learns how each atom moves,
residues and incompressible how a smooth flow carries them, mixture and map start from a map of the
images and know of no structure, fourier is a coordinate network. The guide takes Gauss-Newton
steps on the volume. --limit prints the scores of the exact posterior under the true decoder, which
no model can beat.
Expected (--no-ctf --snr .3 --data-seed 7, 5 seeds, mean ± sd; atoms and mixture --steps 250,
residues --steps 200, map --steps 1000): R², MCC, Spearman of the decoded angles and their share of
the limit, median RMSD of the alpha carbons (Å; 1.40 without moving) and resolution at FSC = .5
(Å), verdict:

    atoms       .825 ± .003  .900 ± .002  .867 .908  .95 .96  2.34 ± .05  7.4  consistent with axes
    mixture     .824 ± .004  .902 ± .001  -          -        -           8.1  consistent with axes
    residues    .791 ± .007  .884 ± .002  .806 .934  .89 .98  1.49 ± .03  6.8  consistent with axes
    map         .805 ± .005  .894 ± .002  -          -        -           -    consistent with axes

and, with --prior isotropic, not identified: residues --bonds .02 (R² .679, MCC .726 ± .103),
fourier --steps 400 (R² .390
± .057, MCC .538 ± .046, maps to 10.7 Å: still learning, at 34 images/s of one core).

Atoms by themselves slide within the density: images are right, structures are not (bonds are off
by 20 Å). A flow holds them together: off by 2.3 Å at most, one by 1 Å in 36 % of conformations;
with --bonds .02 by 1.1 Å, in .2 %, and then the molecule stays near the open form (RMSD 2.34). At
SNR 1, 3 Å, (--n 6000 --width 3 --snr 1, 8 seeds) the true hinges have Spearman .974 ± .000 and
.983 ± .000, where the limit (100 molecules) is .975 and .985, and atoms (4 seeds) .970 ± .002 and
.981 ± .000, MCC .975 ± .001, axes within 2.8°. Takes about a minute a seed on one core (hinges,
atoms, mixture), two (residues); through the CTF two to three times that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import pyrocryo as pc

DEGREES, MOVED = 6.5, 1.5  # errors of given poses about (°) and along (Å) each axis
COUNT = 200  # Gaussians of a mixture


@dataclass
class Config:
    """Options of this model."""

    volume: Literal[
        "atoms", "residues", "incompressible", "mixture", "map", "fourier", "hinges"
    ] = "atoms"
    """Atoms that each learn how to move; residues in a smooth flow, or in one that keeps volumes;
    a mixture of Gaussians, or voxels in a flow, from a map of the images; a coordinate network by
    slices; or the true hinges."""
    prior: Literal["time", "isotropic"] = "time"
    """Pairs of frames under Laplace transitions, or single images."""
    pose: Literal["known", "refined", "searched"] = "known"
    """Poses as they are; off by 10° and 1.8 Å (medians), and refined; or found."""
    n: int = 20_000
    """Images to simulate."""
    scale: float = 0.5
    """Laplace scale b of the simulated steps."""
    snr: float = 0.1
    """Signal-to-noise ratio of the simulated images."""
    ctf: bool = True
    """Simulate images through a CTF; it is modelled where particles have one."""
    width: float = 4.0
    """Standard deviation of the Gaussian at each alpha carbon, in Å."""
    bonds: float = 0.0
    """Weight of the restraint on bonds along the chain."""
    limit: int = 0
    """Held-out molecules to compute the information limit for (100 take a minute or two)."""
    data_seed: int = 0
    """Seed of the simulated data."""


posterior = {"draws": 10, "held_out": 500}


def training(config: Config) -> dict:
    """Settings of the fit."""
    on = {"penalties": (pc.penalties.Bonds(config.bonds),)} if config.bonds else {}
    if config.volume == "hinges":
        return {"steps": 100, "batch_size": 32, "lr": 1e-2, **on}
    if config.volume in ("residues", "incompressible", "map"):
        return {"steps": 300, "batch_size": 32, "lr": 2e-2, **on}
    return {"steps": 500, "batch_size": 32, "lr": 4e-3, **on}


def particles(config: Config) -> pc.Particles:
    """The particles that are simulated where no --data is given."""
    molecule = pc.molecules.AdenylateKinase(width=config.width)
    imaging = {"snr": config.snr, "box": 64, "pixel_size": 1.5, "ctf": config.ctf}
    common = {"seed": config.data_seed, **imaging}
    if config.prior == "time":
        n = (config.n + 1) // 2
        true = pc.simulate.time_resolved(molecule, n=n, scale=config.scale, **common)
    else:
        true = pc.simulate.poses(molecule, n=config.n, **common)
    if config.pose == "refined":
        off = {"degrees": DEGREES, "angstroms": MOVED}
        return pc.simulate.misplaced(true, seed=config.data_seed, **off)
    if config.pose == "searched":
        return true.without("rotation").having(true_rotation=true.rotation)
    return true


def pair(config: Config, particles: pc.Particles) -> pc.Pair:
    """Model and guide."""
    if config.limit == 1 or config.limit < 0:
        raise pc.InputError(f"limit: expected 0 or at least 2 molecules, got {config.limit}")
    poses = {
        "known": pc.poses.Known,
        "refined": lambda: pc.poses.SO3(around=DEGREES, shift_sd=MOVED),
        "searched": lambda: pc.poses.SO3(shift_sd=MOVED),
    }
    prior = pc.priors.IsotropicNormal(2)
    if config.prior == "time":
        prior = pc.priors.LaplaceTransition(2, rate=1 / config.scale)
    return pc.Pair(
        prior=prior,
        pose=poses[config.pose](),
        volume=_volume(config, particles),
        guide=pc.guides.GaussNewton(),
        optics=pc.optics.CTF(margin=2) if "ctf" in particles.fields else None,
        box=particles.box,
        rotate=config.prior == "time" and config.volume != "hinges",
    )


def _volume(config: Config, particles: pc.Particles) -> torch.nn.Module:
    """What moves."""
    molecule = pc.molecules.AdenylateKinase(width=config.width)
    told = {"pixel_size": particles.pixel_size, "width": config.width}
    if config.volume == "hinges":
        return pc.volumes.Atoms.known(molecule, pixel_size=particles.pixel_size)
    if config.volume == "atoms":
        return pc.volumes.Atoms(molecule.ca_open, **told)
    if config.volume == "fourier":
        return pc.volumes.ImplicitFourier(3)
    if config.volume in ("residues", "incompressible"):
        keeps = config.volume == "incompressible"
        return pc.volumes.Deformation(molecule.ca_open, incompressible=keeps, **told)
    if config.pose != "known":
        raise pc.InputError(
            f"volume: a {config.volume} starts from a map of the images, which needs known poses"
        )
    consensus = pc.imaging.backproject(particles.train)
    told = {"pixel_size": particles.pixel_size}
    if config.volume == "map":
        return pc.volumes.Deformation.of_map(consensus.map, consensus.voxel_size, **told)
    blobs = pc.molecules.mixture(consensus.map, consensus.voxel_size, count=COUNT)
    shape = {"width": blobs.width, "weight": blobs.weight, "free": True}
    return pc.volumes.Atoms(blobs.positions, **shape, **told)


def scores(config: Config, fit: pc.Fit, scored: pc.Particles, out: Path) -> dict[str, list[float]]:
    """Structures and maps against the truth, and what the images allow."""
    if "truth" not in scored.fields:
        return {}
    law = pc.priors.LaplaceTransition(2, rate=1 / config.scale) if config.prior == "time" else None
    molecule = pc.molecules.AdenylateKinase(width=config.width)
    found = pc.diagnose.structures(fit, molecule, scored, limit=config.limit, law=law)
    print(found.sentence)
    told = found.scores()
    if config.volume in ("atoms", "residues", "incompressible"):
        bonds = pc.diagnose.stereochemistry(fit, scored)
        print(bonds.sentence)
        told |= {"bond_max": bonds.bond_max.tolist(), "torn": bonds.torn.tolist()}
    return told
