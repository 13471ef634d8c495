"""Particles: your own stack, poses known, a 3-D map that moves with z.

The baseline for real data: an isotropic normal prior, trained on the images of a star file (or a
bare stack) whose poses come from an earlier refinement. Its axes are arbitrary (see vae.py); use
it to see whether the particles vary, and how well the map explains them.

    z ~ N(0, I),   x ~ N(integral of v(z) along the beam, turned and shifted; sigma^2)

    pyrocryo fit models/particles.py --data particles.star
    pyrocryo fit models/particles.py --data stack.mrcs --poses poses.pkl --pixel-size 1.5

The volume is a mixture of --count Gaussians that starts as the consensus map of the images, and
whose parts learn how to move; its guide takes Gauss-Newton steps on the volume itself, so that no
network has to learn what poses and CTF do to a motion. --volume grid (voxels), implicit (a
coordinate network) and atoms (Gaussians that start anywhere) have an encoder, and want many more
particles and steps, but can make density come and go as well as move.

Images are standardised (background of mean 0 and unit variance). The CTF is modelled where the
star file gives it (--no-ctf: not); --coloured and --contrast give noise its spectrum and particles
their contrast.
The map at the median of z is volumes/seed0_median.mrc; projected at the poses of the held-out
images it is correlated with them (map_correlation; its floor is the correlation with images of
other particles, which is what wrong poses give), and --reference MAP.mrc compares it with a known
map (fsc_half_angstroms: resolution at which the Fourier shell correlation falls below .5).
Expected on 1000 noise-free images of 30 x 30 pixels (z ~ N has nothing to say there): after 300
steps map_correlation above .999 and the known map to Nyquist at FSC .5, in less than a minute on
one core; the time goes with the cube of the box (--side 24 caps it).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import pyrocryo as pc

MAPPED = 5000  # images, at most, of the map that a mixture starts from
WIDEST = 64  # pixels of them, at most: no Gaussian is narrower than two of these


@dataclass
class Config:
    """Options of this model."""

    latents: int = 2
    """Size of z."""
    dimensions: int = 3
    """3 for a map, 2 for flat particles whose rotations lie in the plane."""
    volume: Literal["mixture"] | pc.volumes.Kind | None = None
    """Gaussians from a map of the images, voxels, a coordinate network, or Gaussians from nowhere
    (default: mixture where poses in space are known, else grid)."""
    count: int = 200
    """Gaussians of the mixture."""
    pose: Literal["known", "in-plane"] = "known"
    """Take poses from the particles, or infer the angles of flat ones."""
    coloured: bool = False
    """Noise with a spectrum of its own, estimated from the corners of the images."""
    contrast: bool = False
    """A contrast of each particle's own."""
    ctf: bool | None = None
    """Model the CTF (default: where the particles come with one)."""
    side: int | None = None
    """Voxels along an edge of the map; by default the box, at most 48."""
    reference: Path | None = None
    """A known map of the same box to compare with."""


posterior = {"draws": 4, "held_out": 200}  # each draw is a projection of a whole map


def training(config: Config) -> dict[str, float]:
    """Settings of the fit."""
    if config.pose == "in-plane":  # poses first, on a rigid molecule; then it may move
        return {"steps": 3000, "batch_size": 64, "lr": 2e-3, "rigid_steps": 200}
    warmup = 300 if config.coloured or config.contrast else 0  # else some lose a component
    return {"steps": 600, "batch_size": 32, "lr": 4e-3, "kl_warmup": warmup}


def _kind(config: Config, particles: pc.Particles) -> str:
    """The volume asked for, or what suits the poses."""
    if config.dimensions == 3 and config.pose == "known" and "rotation" in particles.fields:
        return config.volume or "mixture"
    if config.volume == "mixture":
        raise pc.InputError(
            "volume: a mixture starts from a map, which needs known poses in space"
        )
    return config.volume or "grid"


def _volume(config: Config, particles: pc.Particles, ctf: bool, own: bool) -> torch.nn.Module:
    """What moves."""
    if (kind := _kind(config, particles)) != "mixture":
        told = {"dim": config.dimensions, "side": config.side, "whole": ctf or own}
        return pc.volumes.of_kind(kind, particles, **told)
    shown = particles.train if ctf else particles.train.without("ctf")
    shown = shown.spread(MAPPED)
    if shown.box > WIDEST:
        shown = shown.downsampled(WIDEST)
    consensus = pc.imaging.backproject(shown)
    blobs = pc.molecules.mixture(consensus.map, consensus.voxel_size, count=config.count)
    return pc.volumes.Atoms(
        blobs.positions,
        width=blobs.width,
        weight=blobs.weight * particles.pixel_size / shown.pixel_size,  # crops are brighter
        free=True,
        pixel_size=particles.pixel_size,
        side=config.side,
    )


def pair(config: Config, particles: pc.Particles) -> pc.Pair:
    """Model and guide."""
    has_ctf = "ctf" in particles.fields if config.ctf is None else config.ctf
    spectrum = pc.noise.estimate_spectrum(particles) if config.coloured else None
    own = config.coloured or config.contrast
    made = pc.Pair(
        prior=pc.priors.IsotropicNormal(config.latents),
        pose=pc.poses.InPlane() if config.pose == "in-plane" else pc.poses.Known(),
        volume=_volume(config, particles, has_ctf, own),
        guide=pc.guides.GaussNewton() if _kind(config, particles) == "mixture" else None,
        box=particles.box,
        optics=pc.optics.CTF() if has_ctf else None,
        likelihood=pc.noise.Gaussian(spectrum, contrast=config.contrast) if own else None,
    )
    if config.reference is not None:
        shape = pc.io.read_map(config.reference)[0].shape
        expected = (made.volume.side,) * config.dimensions
        if shape != expected:
            raise pc.InputError(
                f"reference: {config.reference} has {shape} voxels, the fitted map {expected}"
            )
    return made


def scores(config: Config, fit: pc.Fit, scored: pc.Particles, out: Path) -> dict[str, list]:
    """The written maps against held-out images and, if there is one, the reference."""
    project = pc.imaging.resample if config.dimensions == 2 else pc.imaging.resample_projection
    result = {"map_correlation": []}
    for seed, trained in zip(fit.seeds, fit.pairs, strict=True):
        written, voxel = pc.io.read_map(out / "volumes" / f"seed{seed}_median.mrc")
        same, others = 0.0, 0.0
        for rows in scored.chunks(16):
            batch = trained.moved(scored.batch(rows))
            with torch.no_grad():
                rotation, shift = (a.cpu() for a in trained.reported(batch))
            lead = rotation.shape[:-2]  # particles, and their frames
            maps = torch.as_tensor(written).expand(lead.numel(), *written.shape)
            images = project(maps, rotation.flatten(0, -3), shift.flatten(0, -2), box=scored.box)
            images = images.view(*lead, *images.shape[1:])
            if trained.optics is not None:
                images = trained.optics(images, batch).cpu()
            images = images.flatten(0, -3)
            seen = batch.images.flatten(0, -3)
            following = scored.batch((rows + 1) % len(scored)).images.flatten(0, -3)
            r = pc.metrics.image_correlation
            same += r(images.numpy(), seen.cpu().numpy()) * len(rows)
            others += r(images.numpy(), following.numpy()) * len(rows)
        score = pc.metrics.Score(same / len(scored), floor=others / len(scored))
        result["map_correlation"].append(score)
        if config.reference is not None:
            reference, _ = pc.io.read_map(config.reference)
            curve = pc.metrics.fsc(written, reference)
            result.setdefault("fsc_half_angstroms", []).append(pc.metrics.resolution(curve, voxel))
            result.setdefault("fsc_mean", []).append(float(curve[1:].mean()))
    return result
