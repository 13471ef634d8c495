"""``check_pair``: whether model and guide, volume and encoder play together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from pyrocryo.pair import Pair
from pyrocryo.particles import Particles
from pyrocryo.testing.checks import Checks, Fault, seeded
from pyrocryo.testing.rehearsal import Rehearsal

__all__ = ["check_pair"]

BATCH, EVALUATIONS, STEPS, LR = 12, 40, 30, 4e-3


def check_pair(pair: Pair, particles: Particles, *, seed: int = 0) -> dict[str, str]:
    """Checks a pair on a few particles; for own volumes, guides, poses and priors.

    ``particles``: :meth:`Pair.check`. ``sites``: model and guide sample the same latents in the
    same order, one a particle, and ``x`` is observed. ``images`` and ``density``: shapes, finite.
    ``reset``: whatever has parameters can draw them anew. ``gradient``: every parameter gets one.
    ``ELBO``: mean-field and sampled agree. ``copies``: two of them train independently.
    ``device`` and ``capture``: everything moves, no value is asked for by the host. ``learning``:
    the loss falls. The pair itself is left as it was; see also :func:`check_prior`.

    Args:
        pair: Model and guide.
        particles: Particles for it; the first few are used.
        seed: Of everything that is drawn.

    Returns:
        What was measured, by check.

    Raises:
        CheckFailed: If there are faults; names them all.
    """
    checks = Checks("the pair")
    with seeded(seed):
        pair = copy.deepcopy(pair).to("cpu")
        training = pair.training
        pair.eval()  # all pixels
        checks.run("particles", lambda: _particles(pair, particles))
        if "particles" in checks.passed:
            batch = particles.batch(np.arange(min(BATCH, len(particles))))
            checks.run("sites", lambda: _sites(pair, batch))
            checks.run("images", lambda: _images(pair, batch), needs=("sites",))
            checks.run("density", lambda: _density(pair))
            checks.run("reset", lambda: _reset(pair))
            checks.run("gradient", lambda: _gradient(pair, batch), needs=("images",))
            checks.run("ELBO", lambda: _elbo(pair, batch), needs=("images",))
            checks.run("copies", lambda: _copies(pair, batch), needs=("images",))
            on_meta = cache(lambda: Rehearsal(_on_meta(pair.train(training), batch)))
            checks.run("device", lambda: on_meta().device(), needs=("images",))
            checks.run("capture", lambda: on_meta().capture(), needs=("device",))
            checks.run("learning", lambda: _learning(pair, batch), needs=("gradient", "ELBO"))
    return checks.result()


def _particles(pair: Pair, particles: Particles) -> str:
    pair.check(particles)
    return f"go with the pair: {particles!r}"


def _traces(pair: Pair, batch: Any) -> tuple[Any, Any]:
    guide = poutine.trace(pair.guide).get_trace(batch)
    return guide, poutine.trace(poutine.replay(pair.model, guide)).get_trace(batch)


def _latents(trace: Any) -> dict[str, dict]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def _sites(pair: Pair, batch: Any) -> str:
    with torch.no_grad(), pyro.validation_enabled(True):
        guide, model = _traces(pair, batch)
        model.compute_log_prob()
        guide.compute_log_prob()
    ours, theirs = _latents(guide), _latents(model)
    if list(ours) != list(theirs):
        raise Fault(f"the guide samples {list(ours)}, the model {list(theirs)}, in these orders")
    if "x" not in model.nodes or not model.nodes["x"]["is_observed"]:
        raise Fault("the model observes no site x")
    lead = (len(batch.images),)
    for what, sites in (("guide", ours), ("model", theirs | {"x": model.nodes["x"]})):
        for name, site in sites.items():
            law, value = site["fn"], tuple(site["value"].shape)
            if tuple(law.batch_shape) != lead or value != (*lead, *law.event_shape):
                raise Fault(
                    f"{name} of the {what} has batch shape {tuple(law.batch_shape)} and value "
                    f"shape {value}, expected one row for each of {lead[0]} particles"
                )
            if not site["log_prob"].isfinite().all():
                raise Fault(f"log_prob of {name} in the {what} is not finite")
    for name, site in ours.items():
        here, there = (tuple(s["fn"].event_shape) for s in (site, theirs[name]))
        if here != there:
            raise Fault(f"{name} has event shape {here} in the guide, {there} in the model")
    return ", ".join(f"{name} {tuple(site['fn'].event_shape)}" for name, site in ours.items())


def _images(pair: Pair, batch: Any) -> str:
    with torch.no_grad():
        clean = pair.model(batch)
    if clean.shape != batch.images.shape:
        raise Fault(
            f"clean images have shape {tuple(clean.shape)}, expected {tuple(batch.images.shape)}"
        )
    if not clean.isfinite().all():
        raise Fault("clean images are not finite")
    return f"{tuple(clean.shape)}"


def _density(pair: Pair) -> str:
    for lead in ((3,), (2, 3)):
        maps = pair.density(torch.randn(*lead, pair.dim))
        edges = tuple(maps.shape[len(lead) :])
        if (
            tuple(maps.shape[: len(lead)]) != lead
            or len(edges) not in (2, 3)
            or len(set(edges)) > 1
        ):
            raise Fault(
                f"of z {(*lead, pair.dim)} has shape {tuple(maps.shape)}, expected "
                f"{(*lead, 'side', 'side')} or {(*lead, 'side', 'side', 'side')}"
            )
        if not maps.isfinite().all():
            raise Fault("is not finite")
    return " x ".join(map(str, edges))


def _reset(pair: Pair) -> str:
    without = [
        f"{name or 'pair'} ({type(module).__name__})"
        for name, module in pair.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
        and not hasattr(module, "reset_parameters")
    ]
    if without:
        raise Fault(f"no reset_parameters, so every seed starts from the same values: {without}")
    return "every module with parameters can draw them anew"


def _loss(pair: Pair, batch: Any) -> Tensor:
    return TraceMeanField_ELBO().differentiable_loss(pair.model, pair.guide, batch)


def _gradient(pair: Pair, batch: Any) -> str:
    pair.zero_grad()
    _loss(pair, batch).backward()
    named = {name: p.grad for name, p in pair.named_parameters() if p.requires_grad and p.numel()}
    if none := [name for name, gradient in named.items() if gradient is None]:
        raise Fault(f"none reaches {', '.join(none)}")
    if bad := [name for name, gradient in named.items() if not gradient.isfinite().all()]:
        raise Fault(f"not finite: {', '.join(bad)}")
    zero = [name for name, gradient in named.items() if not gradient.any()]
    return f"reaches {len(named)} parameters" + f"; zero in {', '.join(zero)}" * bool(zero)


def _elbo(pair: Pair, batch: Any) -> str:
    with torch.no_grad():
        losses = [
            [
                float(elbo.differentiable_loss(pair.model, pair.guide, batch))
                for _ in range(EVALUATIONS)
            ]
            for elbo in (TraceMeanField_ELBO(), Trace_ELBO())
        ]
    a, b = np.array(losses)
    error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / EVALUATIONS)
    off = abs(a.mean() - b.mean()) / max(error, 1e-6 * abs(a.mean()))
    if not off <= 5:
        raise Fault(
            f"mean-field {-a.mean():.1f}, sampled {-b.mean():.1f}: {off:.0f} standard errors apart"
        )
    return f"mean-field and sampled {off:.1f} standard errors apart"


def _copies(pair: Pair, batch: Any) -> str:
    """Two copies under plain SVI, one after the other."""
    pairs = copy.deepcopy(pair), copy.deepcopy(pair)
    held = [
        {p.data_ptr(): name for name, p in one.named_parameters() if p.numel()} for one in pairs
    ]
    if shared := [held[0][at] for at in held[0].keys() & held[1].keys()]:
        raise Fault(f"share {', '.join(shared)}")
    for one, other in (pairs, pairs[::-1]):
        before, still = _values(one), _values(other)
        svi = SVI(one.model, one.guide, pyro.optim.Adam({"lr": LR}), TraceMeanField_ELBO())
        for _ in range(2):
            svi.step(batch)
        if all(torch.equal(a, b) for a, b in zip(before, _values(one), strict=True)):
            raise Fault("a copy does not train under pyro.infer.SVI")
        if not all(torch.equal(a, b) for a, b in zip(still, _values(other), strict=True)):
            raise Fault("training one copy changes the other")
    return "train independently"


def _values(pair: Pair) -> list[Tensor]:
    return [p.detach().clone() for p in pair.parameters()]


def _on_meta(pair: Pair, batch: Any) -> Callable[[], None]:
    """What a training step does, on the meta device."""
    exact = set()
    with torch.no_grad():
        guide, model = _traces(pair, batch)
        for name, site in _latents(guide).items():
            try:
                kl_divergence(site["fn"], model.nodes[name]["fn"])
                exact.add(name)
            except NotImplementedError:
                pass  # none registered: training samples it, by the log-densities that run() takes
    there = copy.deepcopy(pair).to("meta")
    moved = there.moved(batch)

    def run() -> None:
        guide, model = _traces(there, moved)
        guide.compute_log_prob()
        model.compute_log_prob()
        for name in exact:
            kl_divergence(guide.nodes[name]["fn"], model.nodes[name]["fn"])

    return run


def _learning(pair: Pair, batch: Any) -> str:
    pair = copy.deepcopy(pair)
    for module in pair.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimiser = torch.optim.Adam([p for p in pair.parameters() if p.requires_grad], lr=LR)
    losses = []
    for _ in range(STEPS):
        loss = _loss(pair, batch) / len(batch.images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    first, last = np.mean(losses[:5]), np.mean(losses[-5:])
    if not last < first:
        raise Fault(f"the loss goes from {first:.1f} to {last:.1f} nats in {STEPS} steps")
    return f"loss from {first:.1f} to {last:.1f} nats a particle in {STEPS} steps"
