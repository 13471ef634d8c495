"""``posterior``: draws from trained guides, weighed by the model, as an ArviZ object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine

from pyrocryo.context import takes
from pyrocryo.errors import InputError
from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit
from pyrocryo.svi.weights import Weights
from pyrocryo.to_arviz import to_arviz
from pyrocryo.unit_vectors import one_side

__all__ = ["moments", "posed", "posterior", "weighted"]

MOST_NUMBERS = 50_000_000  # held at once while decoding (200 MB)
CONSTANT = ("truth", "rotation", "shift", "true_rotation", "true_shift", "temperature", "time")


def posterior(
    fit: Fit, particles: Particles, *, draws: int = 50, predictive: int = 1, seed: int = 0
) -> Any:
    """Posterior draws for particles that need not have been trained on.

    One chain a seed. These are independent draws from guides: R-hat within a seed says nothing,
    between seeds it compares models, which agree on the axes of `z` only if the prior identifies
    them.

    Args:
        fit: A fit.
        particles: For example ``particles.test``.
        draws: Draws of `z` a particle.
        predictive: Of these, how many are decoded into replicated images.
        seed: Seed of the draws.

    Returns:
        An ArviZ object with groups ``posterior`` (``z``: chain, draw, particle, [frame,] latent;
        where poses are unknown, ``pose``: the unit vectors or quaternions (scalar first, the
        draws of a particle in one hemisphere), ..., direction, and ``shift`` in Å),
        ``posterior_predictive`` (``x``, and ``clean`` without noise: ..., row, column),
        ``log_likelihood`` (``x``: one number a particle), ``sample_stats`` (``log_prior``,
        ``log_q``, neither weighted), ``observed_data`` (``x``) and ``constant_data`` (``truth``,
        ``rotation``, ``temperature``, ``time``, where the particles carry them).
    """
    if draws < 1 or not 0 <= predictive <= draws:
        raise InputError(
            f"draws: expected at least 1, and predictive between 0 and draws, got {draws} and "
            f"{predictive}"
        )
    for name, value, kind in (("fit", fit, Fit), ("particles", particles, Particles)):
        if not isinstance(value, kind):
            raise InputError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
    fit.pairs[0].check(particles)
    each = fit.pairs[0].volume.numbers_an_image * (particles.frames or 1)
    size = max(1, MOST_NUMBERS // (each * draws))
    chains: dict[str, list[np.ndarray]] = {}
    for chain, pair in enumerate(fit.pairs):
        parts: dict[str, list[np.ndarray]] = {}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(int(np.random.SeedSequence([seed, chain]).generate_state(1)[0]))
            for rows in particles.chunks(size):
                batch = pair.moved(particles.batch(rows))
                for name, part in weighted(pair, batch, draws, predictive, MOST_NUMBERS).items():
                    parts.setdefault(name, []).append(part)
        for name, values in parts.items():
            chains.setdefault(name, []).append(np.concatenate(values, axis=1))
    stacked = {name: np.stack(values) for name, values in chains.items()}
    if "pose" in stacked:
        pose = torch.as_tensor(stacked["pose"])
        stacked["pose"] = one_side(pose, pose[:, :1]).numpy()
    return _converted(fit, particles, stacked)


def moments(
    fit: Fit, particles: Particles, *, chain: int = 0, draws: int = 64, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the posterior of `z`, of any number of particles.

    By the guide alone: nothing is decoded. In closed form where poses are known; else over draws
    of pose and `z`, so that what is not known of the pose is in them.

    Args:
        fit: A fit.
        particles: Particles that it fits, whether trained on or not.
        chain: Which of its seeds.
        draws: Draws a particle, where poses are unknown.
        seed: Seed of the draws.

    Returns:
        Two arrays `(N, [T,] K)` float32.
    """
    if draws < 2:
        raise InputError(f"draws: expected at least 2, got {draws}")
    pair = fit.pairs[chain]
    pair.check(particles)
    decodes = pair.pose.latent or takes(pair.encoder, "optics")  # which compares with projections
    each = pair.volume.numbers_an_image if decodes else 4 * pair.box**2
    each *= (particles.frames or 1) * (draws if pair.pose.latent else 1)
    found = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for rows in particles.chunks(max(1, min(256, MOST_NUMBERS // each))):
            batch = pair.moved(particles.batch(rows))
            if pair.pose.latent:
                with pyro.plate("draw", draws, dim=-2):
                    z = pair.guide(batch)
                law = z.mean(0), z.std(0)
            else:
                q = pair.posterior_of(batch)
                law = q.mean, q.variance.sqrt()
            found.append([part.float().cpu().numpy() for part in law])
    mean, sd = (np.concatenate(part) for part in zip(*found, strict=True))
    return mean, sd


def posed(fit: Fit, particles: Particles, *, chain: int = 0) -> Particles:
    """The same particles in the poses that a fit found, ``rotation`` and ``shift`` (Å).

    Means of the posterior; :func:`pyrocryo.io.save` writes them for other programs to go on with.

    Args:
        fit: A fit of a pair with unknown poses.
        particles: Particles that it fits, whether trained on or not.
        chain: Which of its seeds.

    Raises:
        InputError: If the poses of the pair are known already.
    """
    pair = fit.pairs[chain]
    if not pair.pose.latent:
        raise InputError("fit: its poses are those of the particles, there is nothing to report")
    pair.check(particles)
    found = []
    with torch.no_grad():
        for rows in particles.chunks(256):
            rotation, shift = pair.reported(pair.moved(particles.batch(rows)))
            found.append((rotation.cpu().numpy(), shift.cpu().numpy() * particles.pixel_size))
    rotation, shift = (np.concatenate(part) for part in zip(*found, strict=True))
    return particles.having(rotation=rotation, shift=shift)


def weighted(
    pair: Pair, batch: Any, draws: int, predictive: int, most: int, *, rigid: bool = False
) -> dict[str, np.ndarray]:
    """Draws `(draws, B, ...)` of one pair for one batch, and their log-densities `(draws, B)`.

    Args:
        pair: A trained pair.
        batch: A batch that it fits.
        draws: Draws of the guide for each particle.
        predictive: Of these, how many come with their images, ``clean`` and ``replicate``.
        most: Numbers held at once while decoding.
        rigid: Every conformation is 0, and its densities are left out.
    """
    each = pair.volume.numbers_an_image * batch.images.shape[:-2].numel()
    at_once = max(1, min(draws, most // each))
    parts = [
        _some(pair, batch, min(at_once, draws - done), max(0, predictive - done), rigid)
        for done in range(0, draws, at_once)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _some(
    pair: Pair, batch: Any, draws: int, predictive: int, rigid: bool
) -> dict[str, np.ndarray]:
    """So many draws as are held at once."""
    outer = pyro.plate("draw", draws, dim=-2)
    with Weights(rigid=rigid):
        guide = poutine.trace(outer(pair.guide)).get_trace(batch)
        model = poutine.trace(poutine.replay(outer(pair.model), guide)).get_trace(batch)
    guide.compute_log_prob()
    model.compute_log_prob()
    sites = [name for name in ("pose", "shift", "z") if name in guide.nodes]
    latent = [name for name in sites if name != "z" or not rigid]
    clean = model.nodes["_RETURN"]["value"][:predictive]
    result = {name: model.nodes[name]["value"] for name in sites}
    if "pose" in result:
        result["pose"] = pair.framed(result["pose"], result["z"])
    likelihood = model.nodes["x"]["unscaled_log_prob"].expand(result["z"].shape[:2])
    none = torch.zeros_like(likelihood)  # where nothing but `z` is inferred, and that is 0
    result |= {
        "log_likelihood": likelihood,
        "log_prior": sum((model.nodes[name]["unscaled_log_prob"] for name in latent), none),
        "log_q": sum((guide.nodes[name]["unscaled_log_prob"] for name in latent), none),
        "clean": clean,
        "replicate": pair.replicated(clean) if predictive else clean,  # no law of no image
    }
    return {name: value.cpu().numpy() for name, value in result.items()}


def _converted(fit: Fit, particles: Particles, arrays: dict[str, np.ndarray]) -> Any:
    frame = [] if particles.frames is None else ["frame"]
    image = ["particle", *frame, "row", "column"]
    dims = {
        "z": ["particle", *frame, "latent"],
        "pose": ["particle", *frame, "direction"],
        "shift": ["particle", *frame, "plane_axis"],
        "x": image,
        "clean": image,
        "log_prior": ["particle"],
        "log_q": ["particle"],
        "truth": ["particle", *frame, "factor"],
        "rotation": ["particle", *frame, "image_axis", "molecule_axis"],
        "true_rotation": ["particle", *frame, "image_axis", "molecule_axis"],
        "true_shift": ["particle", *frame, "plane_axis"],
        "temperature": ["particle"],
        "time": ["particle", *frame],
    }
    observed = np.concatenate(
        [particles.batch(rows).images.numpy() for rows in particles.chunks()], axis=0
    )
    groups = {
        "posterior": {name: arrays[name] for name in ("pose", "shift", "z") if name in arrays},
        "posterior_predictive": (
            {"x": arrays["replicate"], "clean": arrays["clean"]} if arrays["clean"].size else {}
        ),
        "log_likelihood": {"x": arrays["log_likelihood"]},
        "sample_stats": {"log_prior": arrays["log_prior"], "log_q": arrays["log_q"]},
        "observed_data": {"x": observed},
        "constant_data": {n: particles.fields[n] for n in CONSTANT if n in particles.fields},
    }
    coords = {"particle": particles.index, "chain": list(fit.seeds)}
    return to_arviz(groups, dims=dims, coords=coords, attrs={"seeds": list(fit.seeds)})
