"""What a prior or a guide wants to know of each particle, and where a prior's numbers live."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrocryo.errors import InputError

__all__ = ["bound", "called", "for_each_frame", "latent_size", "on_device", "takes", "wanted"]


def called(prior: Any) -> str:
    """What to call a prior in messages."""
    return getattr(prior, "__name__", type(prior).__name__)


def wanted(prior: Any) -> list[str]:
    """Names of the particle fields that a prior or guide wants.

    Its parameters without a default; or, of a prior that is told what to look at only when it is
    made and takes it as keywords, its attribute ``fields``, a list of names.
    """
    if isinstance(prior, dist.Distribution):
        return []
    if isinstance(fields := getattr(prior, "fields", None), list):
        return list(fields)
    call = prior.forward if isinstance(prior, nn.Module) else prior
    parameters = inspect.signature(call).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def takes(module: nn.Module, name: str) -> bool:
    """Whether the forward of a module has a parameter of this name, with a default or without."""
    return name in inspect.signature(module.forward).parameters


def on_device(distribution: Any, device: torch.device) -> Any:
    """A distribution whose tensors live on ``device``; a module's would move with the pair."""
    if device.type == "cpu":
        return distribution
    moved = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor):
            moved.__dict__[name] = value.to(device)
        elif isinstance(value, torch.distributions.Distribution):
            moved.__dict__[name] = on_device(value, device)
    return moved


def bound(law: Any) -> Any:
    """What a law holds its numbers to; None for all real ones, and where it does not say."""
    try:
        inner = law.support
    except NotImplementedError:  # as laws that declare no support do
        return None
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    free = isinstance(inner, type(constraints.real)) or constraints.is_dependent(inner)
    return None if free else inner


def for_each_frame(value: Tensor, lead: torch.Size) -> Tensor:
    """What is known of a molecule `(B, ...)`, for each of its frames `(B, T, ...)`."""
    return value.unsqueeze(1).expand(*lead, *value.shape[1:])


def latent_size(prior: Any, dim: int | None) -> int:
    """Size K of `z`, from the prior or as given."""
    if isinstance(prior, type):
        raise InputError(
            f"prior: expected a distribution or a function, got the class {prior.__name__}; call "
            "it with its numbers"
        )
    if isinstance(prior, dist.Distribution):
        if not 1 <= len(prior.event_shape) <= 2:
            raise InputError(
                f"prior: {type(prior).__name__} has event shape {tuple(prior.event_shape)}; "
                "expected (K,) or (T, K); .to_event(1) turns a batch of K into an event"
            )
        found = prior.event_shape[-1]
    elif callable(prior):
        found = getattr(prior, "dim", dim)
    else:
        raise InputError(f"prior: expected a distribution or a function, got {prior!r}")
    if found is None:
        raise InputError("dim: a prior given as a function needs the size of z, Pair(..., dim=K)")
    if dim is not None and dim != found:
        raise InputError(f"dim: {dim} was given, but the prior is over {found} latents")
    return int(found)
