"""A prior at several conditions at once, asked for nothing but samples and log-densities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocryo.context import wanted
from pyrocryo.errors import InputError

__all__ = ["Laws", "gradient"]


class Laws:
    r""":math:`p(z | u_l)` at L conditions, in double precision where the prior allows.

    Points outside the support have log-density -inf.

    Args:
        prior: What :class:`pyrocryo.Pair` takes: a Pyro distribution, or a function or module
            that returns one and whose parameters are named as particle fields.
        conditions: Arrays `(L, ...)` by the names of these fields; of a prior that wants one
            field, the array alone. None for a prior that wants none.

    Attributes:
        count: L.
        dim: K.
        frames: T, or None for laws of event shape `(K,)`.
        exact: Whether in double precision.
        names: What to call each condition.

    Raises:
        InputError: If ``prior`` is no prior, or ``conditions`` are not what it asks for.
    """

    def __init__(self, prior: Any, conditions: Any = None) -> None:
        if not isinstance(prior, dist.Distribution) and not callable(prior):
            raise InputError(f"prior: expected a distribution or a function, got {prior!r}")
        self.prior = copy.deepcopy(prior)
        self.name = getattr(prior, "__name__", type(prior).__name__)
        if isinstance(self.prior, nn.Module):
            self.prior.requires_grad_(False)
        self.conditions = _fields(self.name, wanted(prior), conditions)
        self._law = law = self._built()
        event, batch = tuple(law.event_shape), tuple(law.batch_shape)
        expected = next(((len(value),) for value in self.conditions.values()), ())
        if not 1 <= len(event) <= 2 or batch != expected:
            raise InputError(
                f"prior: {self.name} has event shape {event} and batch shape {batch}; expected "
                f"(K,) or (T, K) and {expected}; .to_event(1) turns a batch of K into an event"
            )
        self.count = batch[0] if batch else 1
        self.dim = event[-1]
        self.frames = event[0] if len(event) == 2 else None
        self.names = [self._named(row) for row in range(self.count)]
        self.law, self.exact = self._exact()

    def _built(self) -> Any:
        if isinstance(self.prior, dist.Distribution):
            return self.prior
        with torch.no_grad(), pyro.get_param_store().scope():
            law = self.prior(**self.conditions)
        if not isinstance(law, dist.Distribution):
            raise InputError(
                f"prior: {self.name} returned {type(law).__name__}, not a Pyro distribution"
            )
        return law

    def _exact(self) -> tuple[Any, bool]:
        """The law in double precision and True; False where its parts cannot be doubled."""
        law, z = _mapped(self._law, Tensor.double), self.sample(2)
        z = z if self._law.batch_shape else z.squeeze(1)
        try:
            law.log_prob(z)
        except (RuntimeError, TypeError):
            return _mapped(self._law, lambda value: value), False
        return law, True

    def _named(self, row: int) -> str:
        parts = []
        for name, value in self.conditions.items():
            numbers = value[row].flatten().tolist()
            shown = ", ".join(f"{number:.4g}" for number in numbers[:4])
            shown += ", ..." if len(numbers) > 4 else ""
            parts.append(f"{name} {shown}" if len(numbers) == 1 else f"{name} ({shown})")
        return ", ".join(parts)

    def only(self, rows: Sequence[int]) -> Laws:
        """The same prior at some of its conditions."""
        if not self.conditions:
            return self
        kept = list(rows)
        return Laws(self.prior, {name: value[kept] for name, value in self.conditions.items()})

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draws `(n, L, [T,] K)`."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            z = self._law.sample((n,)).double()
        return z.reshape(n, -1, *self._law.event_shape)

    def own(self, z: Tensor, *, inside: bool = False) -> Tensor:
        """Log-densities `(..., L)` of `z` `(..., L, [T,] K)`, each at its own condition.

        Args:
            z: Points.
            inside: Take it that all are inside the support, which saves time.
        """
        x = z if self.exact else z.to(torch.get_default_dtype())
        x = x if self.law.batch_shape else x.squeeze(-len(self.law.event_shape) - 1)
        value = self.law.log_prob(x).to(z.dtype)
        if not inside:
            value = torch.where(self.law.support.check(x.detach()), value, -torch.inf)
        return value if self.law.batch_shape else value.unsqueeze(-1)

    def log_prob(self, z: Tensor, *, inside: bool = False) -> Tensor:
        """Log-densities `(..., L)` of `z` `(..., [T,] K)` at all conditions; as :meth:`own`."""
        axis = -1 - len(self.law.event_shape)
        shape = list(z.shape)
        shape.insert(z.dim() + axis + 1, self.count)
        return self.own(z.unsqueeze(axis).expand(shape), inside=inside)


def gradient(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Gradients `(..., K)` at `z` `(..., K)` of a function to `(...)`.

    A graph of it is kept where `z` has one.
    """
    keep = z.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        x = z if keep else z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=keep)
    return slope


def _fields(name: str, fields: list[str], conditions: Any) -> dict[str, Tensor]:
    """Conditions by field, as tensors, checked."""
    if conditions is not None and not isinstance(conditions, Mapping):
        if len(fields) != 1:
            raise InputError(
                f"conditions: expected a mapping with the fields that {name} wants, "
                f"{', '.join(fields) or 'none'}; got {type(conditions).__name__}"
            )
        conditions = {fields[0]: conditions}
    given = dict(conditions or {})
    if set(given) != set(fields):
        raise InputError(
            f"conditions: the prior {name} wants {', '.join(fields) or 'no fields'}, got "
            f"{', '.join(given) or 'none'}"
        )
    made = {}
    for field in fields:
        value = given[field]
        value = (
            value.detach().cpu()
            if isinstance(value, Tensor)
            else torch.as_tensor(np.asarray(value))
        )
        if value.dim() < 1 or not len(value):
            raise InputError(f"conditions: {field} needs a row for each condition, got {value}")
        made[field] = value.to(torch.get_default_dtype()) if value.is_floating_point() else value
    if len({len(value) for value in made.values()}) > 1:
        lengths = {field: len(value) for field, value in made.items()}
        raise InputError(f"conditions: expected as many rows of every field, got {lengths}")
    return made


def _mapped(law: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a distribution with its tensors changed and its checks off, and of its parts."""
    new = copy.copy(law)
    for name, value in vars(law).items():
        if isinstance(value, Tensor):
            new.__dict__[name] = change(value.detach()) if value.is_floating_point() else value
        elif isinstance(value, torch.distributions.Distribution):
            new.__dict__[name] = _mapped(value, change)
    new._validate_args = False
    return new
