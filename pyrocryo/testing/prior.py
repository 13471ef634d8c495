"""``check_prior``: whether a prior is what a pair expects of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrocryo.context import bound, called, wanted
from pyrocryo.errors import InputError
from pyrocryo.testing.checks import Checks, Fault, mapped, seeded, tensors
from pyrocryo.testing.importance import Draws
from pyrocryo.testing.kl import check_kl, posterior
from pyrocryo.testing.rehearsal import Rehearsal

__all__ = ["check_prior"]

STEP = 1e-2  # of finite differences, in conditional standard deviations


def check_prior(
    prior: Any,
    *,
    context: Mapping[str, Tensor] | None = None,
    dim: int | None = None,
    frames: int | None = None,
    seed: int = 0,
) -> dict[str, str]:
    r"""Checks everything that a pair, its guide and its trainer expect of a prior.

    ``event shape``: `(K,)` or `(T, K)`, of samples and of `log_prob`. ``expand``: the type
    survives, else a registered KL is silently not used inside a plate. ``support``: a density on
    all of :math:`R^d`, where Gaussian guides put mass. ``gradient``: in `z`, in the prior's
    parameters and, if `has_rsample`, through samples. ``normalisation``: :math:`\int p = 1`, by
    importance sampling. ``samples``: follow `log_prob`. ``device`` and ``capture``: all tensors
    move, and none is asked for its value, so that a step can be recorded; that samples stay
    behind is told, but is no fault, as training draws none. ``KL``: a registered one against
    Monte Carlo.

    Args:
        prior: What :class:`pyrocryo.Pair` takes: a Pyro distribution, or a function or module
            that returns one and whose parameters are named as particle fields.
        context: Tensors by the names of those fields, a particle a row.
        dim: Expected K.
        frames: Expected T; a prior of event shape `(K,)` is then taken for each frame.
        seed: Of everything that is drawn.

    Returns:
        What was measured, by check.

    Raises:
        CheckFailed: If there are faults; names them all.
        InputError: If ``prior`` is no prior, or ``context`` not what it asks for.
    """
    build, name = _builder(prior, context or {})
    checks = Checks(name)
    with seeded(seed):
        made: dict[str, Any] = {}
        draws = cache(lambda: Draws(made["law"]))
        checks.run("event shape", lambda: _event_shape(build, dim, frames, made))
        law = made.get("law")
        checks.run("expand", lambda: _expand(law), needs=("event shape",))
        checks.run("support", lambda: _support(draws()), needs=("event shape",))
        checks.run("gradient", lambda: _gradient(draws(), prior), needs=("support",))
        checks.run("normalisation", lambda: draws().normalisation(), needs=("support",))
        checks.run("samples", lambda: draws().samples(), needs=("support",))
        checks.run("KL", lambda: check_kl(draws()), needs=("expand", "normalisation"))
        exact = checks.passed.get("KL", "").startswith("closed form")
        on_meta = cache(lambda: [*map(Rehearsal, _on_meta(prior, context or {}, law, exact))])
        checks.run("device", lambda: _device(*on_meta()), needs=("gradient",))
        checks.run("capture", lambda: on_meta()[0].capture(), needs=("device",))
    return checks.result()


def _builder(prior: Any, context: Mapping[str, Tensor]) -> tuple[Callable[..., Any], str]:
    """A function of the context that makes the law, and what to call the prior."""
    name = called(prior)
    if not isinstance(prior, dist.Distribution) and not callable(prior):
        raise InputError(f"prior: expected a distribution or a function, got {prior!r}")
    fields = wanted(prior)
    if missing := [field for field in fields if field not in context]:
        raise InputError(
            f"context: the prior {name} needs {', '.join(missing)}; give "
            f"context={{{', '.join(f'{field!r}: a tensor' for field in missing)}}}"
        )
    if unknown := sorted(set(context) - set(fields)):
        raise InputError(f"context: the prior {name} does not ask for {', '.join(unknown)}")
    values = {field: torch.as_tensor(value) for field, value in context.items()}

    def build(change: Callable[[Tensor], Tensor] = lambda value: value) -> Any:
        if isinstance(prior, dist.Distribution):
            return prior
        return prior(**{field: change(value) for field, value in values.items()})

    return build, name


def _event_shape(
    build: Callable[..., Any], dim: int | None, frames: int | None, made: dict[str, Any]
) -> str:
    with pyro.validation_enabled(True):
        law = build()
    if not isinstance(law, dist.Distribution):
        raise Fault(f"the prior returned {type(law).__name__}, not a Pyro distribution")
    event, batch = tuple(law.event_shape), tuple(law.batch_shape)
    if not 1 <= len(event) <= 2:
        raise Fault(
            f"{event} with batch shape {batch}, expected (K,) or (T, K); .to_event(1) turns a "
            "batch of K into an event"
        )
    if dim is not None and event[-1] != dim:
        raise Fault(f"{event}, expected K = {dim}")
    if frames is not None and len(event) == 2 and event[0] != frames:
        raise Fault(f"{event}, expected T = {frames}")
    _shapes(law, event)
    if frames is not None and len(event) == 1 and batch:  # as Pair.prior_of makes it
        many = build(lambda value: value.unsqueeze(1).expand(-1, frames, *value.shape[1:]))
        if tuple(many.batch_shape) != (*batch[:1], frames):
            raise Fault(
                f"with {frames} frames, a context of shape {(*batch[:1], frames)} gives batch "
                f"shape {tuple(many.batch_shape)}"
            )
        _shapes(many, event)
    made["law"] = mapped(law)
    return f"{event}, batch {batch}"


def _shapes(law: Any, event: tuple[int, ...]) -> None:
    law, lead = mapped(law), (7, *law.batch_shape)
    with torch.no_grad():
        z = law.sample((7,))
        if tuple(z.shape) != (*lead, *event):
            raise Fault(f"sample((7,)) has shape {tuple(z.shape)}, expected {(*lead, *event)}")
        if not z.isfinite().all():
            raise Fault("samples are not finite")
        log_prob = law.log_prob(z)
    if tuple(log_prob.shape) != lead:
        raise Fault(
            f"log_prob of samples {tuple(z.shape)} has shape {tuple(log_prob.shape)}, expected "
            f"{lead}: it sums over the event's axes {tuple(range(-len(event), 0))}, no more, no "
            "fewer"
        )


def _expand(law: Any) -> str:
    shape = (3, *law.batch_shape)
    wide = law.expand(torch.Size(shape))
    if isinstance(wide, dist.ExpandedDistribution) or type(wide) is not type(law):
        raise Fault(
            f"{type(law).__name__} becomes {type(wide).__name__} (has it no expand?), so a "
            "registered KL is not used inside a plate"
        )
    if tuple(wide.batch_shape) != shape or wide.event_shape != law.event_shape:
        raise Fault(f"expand({shape}) has batch shape {tuple(wide.batch_shape)}")
    wide = mapped(wide)
    with torch.no_grad():
        z = wide.sample()
        if tuple(z.shape) != (*shape, *law.event_shape):
            raise Fault(f"expand({shape}) has samples of shape {tuple(z.shape)}")
        if not torch.allclose(wide.log_prob(z), law.log_prob(z), rtol=1e-4, atol=1e-4):
            raise Fault("log_prob differs after expand")
    return f"stays {type(law).__name__}"


def _support(draws: Draws) -> str:
    law = draws.law
    constraint = law.support
    if not constraint.check(law.sample((1000,))).all():
        raise Fault(f"samples are outside of the support {constraint}")
    if (inner := bound(law)) is not None:
        raise Fault(f"{inner}: but Gaussian guides put mass everywhere; expected all real numbers")
    x, one = draws.x[:500], torch.eye(draws.dim, dtype=torch.double).unsqueeze(1)
    points = [2 * draws.centre - x, torch.zeros_like(x[:1])]
    for far in (-12, -6, -3, 3, 6, 12):
        points += [x[:20] + far * draws.scale, draws.centre + far * draws.scale * one]
    z = torch.cat(points)
    bad = ~draws.log_prob(z).isfinite()
    if bad.any():
        n, row = bad.nonzero()[0].tolist()
        where = [round(value, 3) for value in z[n, row].tolist()]
        found = draws.log_prob(z)[n, row].item()
        raise Fault(f"log_prob is {found} at z = {where}: Gaussian guides put mass everywhere")
    return "all real numbers"


def _gradient(draws: Draws, prior: Any) -> str:
    law = draws.law
    z = law.sample((64,)).detach().requires_grad_()
    total = law.log_prob(z).sum()
    parameters = {}
    if isinstance(prior, nn.Module):
        parameters = {n: p for n, p in prior.named_parameters() if p.requires_grad}
    found = [None] * (1 + len(parameters))
    if total.requires_grad:
        found = torch.autograd.grad(total, [z, *parameters.values()], allow_unused=True)
    if found[0] is None:
        raise Fault("log_prob is cut off from z: detached, or computed outside of torch")
    for name, gradient in zip(("z", *parameters), found, strict=True):
        if gradient is None:
            raise Fault(f"log_prob is cut off from the parameter {name}")
        if not gradient.isfinite().all():
            raise Fault(f"of log_prob in {name} is not finite")
    if not found[0].any():
        raise Fault("of log_prob in z is zero everywhere")
    with torch.no_grad():
        step = (draws.factor @ torch.randn(64, draws.rows, draws.dim, 1).double()).view(z.shape)
        step = (STEP * step).to(z)
        slope = (found[0] * step).flatten(-len(law.event_shape)).sum(-1)
        rise = (law.log_prob(z + step) - law.log_prob(z - step)) / 2
        error = (slope - rise).abs() / (slope.abs() + rise.abs()).clamp_min(1e-12)
    if error.median() > 0.2:
        raise Fault("of log_prob in z is not its slope; is a part of it detached?")
    if not law.has_rsample:
        return "of log_prob; samples without gradient"
    return f"of log_prob and {_samples_gradient(law)}"


def _samples_gradient(law: Any) -> str:
    """Whether samples are attached to what the law holds; copies of that as leaves."""
    leaves = []

    def leaf(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1]

    attached = mapped(law, leaf)
    if not leaves:
        return "samples (no tensors to attach them to)"
    z = attached.rsample((64,))
    found = [None]
    if z.requires_grad:
        found = torch.autograd.grad(z.sum(), leaves, allow_unused=True)
    found = [gradient for gradient in found if gradient is not None]
    if not found:
        raise Fault("has_rsample is True, but samples are cut off from the prior's parameters")
    if not all(gradient.isfinite().all() for gradient in found):
        raise Fault("of rsample in the prior's parameters is not finite")
    return "samples"


def _device(step: Rehearsal, sampling: Rehearsal) -> str:
    """What training needs must move; sampling, which only predictions need, is told of."""
    moves = step.device()
    try:
        sampling.device()
    except Fault as fault:
        return f"log_prob moves, but sampling on a GPU will fail: {fault}"
    return moves


def _on_meta(
    prior: Any, context: Mapping[str, Tensor], law: Any, exact_kl: bool
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What a training step does with the prior, and sampling, on the meta device."""
    meta = torch.device("meta")
    moved = prior
    if isinstance(prior, nn.Module):
        moved = copy.deepcopy(prior).to(meta)
    elif isinstance(prior, dist.Distribution):
        moved = mapped(prior, lambda value: value.detach().to(meta))
    build, _ = _builder(moved, {n: torch.as_tensor(v).to(meta) for n, v in context.items()})
    shape, dtype = (5, *law.batch_shape, *law.event_shape), law.sample().dtype
    z = torch.empty(shape, dtype=dtype, device=meta)
    place = torch.zeros(law.batch_shape + law.event_shape, dtype=dtype)
    q = mapped(posterior(law, place, place + 1), lambda value: value.to(meta))

    def step() -> None:
        there = mapped(build())
        there.log_prob(z)
        if exact_kl:
            kl_divergence(q, there.expand((3, *law.batch_shape)))

    def sampling() -> None:
        there = mapped(build())
        if any(value.is_meta for value in tensors(there)):  # else nothing says where to sample
            there.sample((5,))

    return step, sampling
