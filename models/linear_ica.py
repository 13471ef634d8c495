"""Linear ICA: rigid-body parameters of every particle, and the independent motions in them.

Claim (Klindt et al. 2024, section 2.1 and Fig. 2, after Gao et al. 2020): six parameters of each
domain, found for every particle, then PCA and ICA of them, give motions of the molecule one by
one, if their laws are not Gaussian; PCA alone does not.

    z ~ N(0, I),   (omega, u)_b = c_b + A_b z_b,   x ~ N(CTF pi_phi(atoms at r(z)), sigma^2)

Data: as of rigid_bodies.py, with hinges whose law is flat (--law: or Laplace, two states, normal).
Writes, for each seed, ica_seed0: maps and structures from the first bin to the last along each
component, a ChimeraX script, and which particles are in the outer bins.
Expected (--no-ctf --steps 250 --data-seed 7, 5 seeds, mean ± sd): two principal components hold 90
to 98 % of the variance of the twelve parameters; MCC of these .886 ± .006, of the independent
components .887 ± .005, told apart in every seed, with R² .69 and Spearman of the angles of .881
and .914; median RMSD 1.43 ± .18 Å of 2.60 without motion. PCA finds the hinges too, as each domain
has parameters of its own and LID moves more; once parameters are mixed it does not
(tests/test_ica.py: true parameters mixed at random, PCA .93 ± .08, ICA above .99, and neither
where the law is normal). Takes two to three minutes a seed on one core.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyro.distributions as dist
import torch

import pyrocryo as pc

BODIES = 2  # that move
FEWEST = 500  # particles, for linear ICA


@dataclass
class Config:
    """Options of this model."""

    law: Literal["flat", "laplace", "two", "normal"] = "flat"
    """Of the simulated hinges: uniform, Laplace, open or closed with little between, or normal."""
    latents: int = 12
    """Six for each domain, or as few as one for each; or 2 with --shared."""
    shared: bool = False
    """Let every latent move both domains."""
    n: int = 20_000
    """Images to simulate."""
    snr: float = 0.1
    """Signal-to-noise ratio of the simulated images."""
    ctf: bool = True
    """Simulate images through a CTF; it is modelled where particles have one."""
    bins: int = 10
    """Maps and structures along each component."""
    data_seed: int = 0
    """Seed of the simulated data."""


posterior = {"draws": 2, "held_out": 2000}  # linear ICA wants many


def training(config: Config) -> dict[str, float]:
    """Settings of the fit."""
    return {"steps": 400, "batch_size": 32, "lr": 1e-2}


def particles(config: Config) -> pc.Particles:
    """The particles that are simulated where no --data is given."""
    return pc.simulate.poses(
        pc.molecules.AdenylateKinase(), n=config.n, seed=config.data_seed, prior=_law(config.law),
        snr=config.snr, box=64, pixel_size=1.5, ctf=config.ctf,
    )  # fmt: skip


def pair(config: Config, particles: pc.Particles) -> pc.Pair:
    """Model and guide."""
    if config.latents < BODIES:
        raise pc.InputError(f"latents: expected {BODIES} or more, got {config.latents}")
    molecule = pc.molecules.AdenylateKinase()
    return pc.Pair(
        prior=pc.priors.IsotropicNormal(config.latents),
        pose=pc.poses.Known(),
        volume=pc.volumes.RigidBodies(
            molecule.ca_open,
            molecule.domain,
            pixel_size=particles.pixel_size,
            separate=not config.shared,
            hidden=(),
        ),
        guide=pc.guides.GaussNewton(),
        optics=pc.optics.CTF(margin=2) if "ctf" in particles.fields else None,
        box=particles.box,
        rotate=False,  # an isotropic prior has no axes
    )


def scores(config: Config, fit: pc.Fit, scored: pc.Particles, out: Path) -> dict[str, list[float]]:
    """Principal and independent components of rigid-body parameters, and what each does."""
    told: dict[str, list[float]] = {}
    if "truth" in scored.fields:
        found = pc.diagnose.structures(fit, pc.molecules.AdenylateKinase(), scored)
        print(found.sentence)
        told |= found.scores()
    if len(scored) < FEWEST:
        print(f"no linear ICA: {len(scored)} particles were held out, it wants {FEWEST}")
        return told
    for seed, trained in zip(fit.seeds, fit.pairs, strict=True):
        z = pc.diagnose.posterior_means(trained, scored)
        with torch.no_grad():
            latents = torch.as_tensor(z).to(trained.noise_steps)
            six = trained.volume.motions(latents).flatten(1).cpu().numpy()
        found = {method: _ica(six, method) for method in ("pca", "fastica")}
        print(f"seed {seed}: {found['fastica'].sentence}")
        told.setdefault("ica_separated", []).append(float(np.mean(found["fastica"].separated)))
        for method, ica in found.items():
            if "truth" in scored.fields:
                mcc = pc.metrics.mcc(scored.truth, ica.sources).value
                told.setdefault(f"mcc_{method}", []).append(mcc)
            for k, j in enumerate(ica.negentropy, start=1):
                told.setdefault(f"negentropy_{method}_{k}", []).append(float(j))
        # what each component does: that of the latents, as only they can be decoded
        ica = pc.identify.linear_ica(z, components=BODIES)
        told_of = {"seed": seed, "rows": scored.index}
        pc.io.write_components(out / f"ica_seed{seed}", fit, ica, count=config.bins, **told_of)
    return told


def _ica(six: np.ndarray, method: str) -> pc.identify.LinearICA:
    """Of parameters in rad and Å, each body's turn counted as what it moves 15 Å away."""
    scale = np.tile([15.0] * 3 + [1.0] * 3, BODIES)
    return pc.identify.linear_ica(scale * six, components=BODIES, method=method)


def _law(name: str) -> dist.Distribution | None:
    zero = torch.zeros(2)
    if name == "normal":
        return None
    if name == "flat":
        return dist.Uniform(zero - 3, 3.0).to_event(1)
    if name == "laplace":
        return dist.Laplace(zero, 0.8).to_event(1)
    ends = dist.Normal(torch.tensor([-1.5, 1.5]).expand(2, 2), 0.4)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2, 2)), ends).to_event(1)
