"""A prior at several conditions at once, in double precision, with its derivatives."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrocryo.context import called, wanted
from pyrocryo.errors import InputError
from pyrocryo.testing.checks import mapped

__all__ = ["Laws", "in_double", "made_double", "values_of"]

STEP = 1e-5  # of the slope that autograd's is compared with, in standard deviations
WRONG = 1e-2  # relative error of a slope, in the median, that is no rounding


@contextmanager
def in_double(seed: int) -> Iterator[None]:
    """Double precision by default, and draws from ``seed``; both as they were afterwards."""
    before = torch.get_default_dtype()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            torch.set_default_dtype(torch.float64)
            yield
    finally:
        torch.set_default_dtype(before)


def made_double(prior: Any) -> Any:
    """A copy of a module in double precision, without gradients; other priors as they are."""
    if not isinstance(prior, nn.Module):
        return prior
    return copy.deepcopy(prior).cpu().double().eval().requires_grad_(False)


def values_of(
    prior: Any, conditions: Mapping[str, Sequence[Any]] | Sequence[Any] | None
) -> dict[str, Tensor]:
    """Conditions by field, `(L, ...)` each.

    Raises:
        InputError: If ``prior`` is none, or they are not what it wants.
    """
    if not isinstance(prior, Distribution) and not callable(prior):
        raise InputError(f"prior: expected a distribution or a function, got {prior!r}")
    fields = [] if isinstance(prior, Distribution) else wanted(prior)
    name = called(prior)
    wants = " and ".join(fields) or "no field"
    if conditions is None:
        conditions = {}
    if not isinstance(conditions, Mapping):
        if len(fields) != 1:
            raise InputError(
                f"conditions: the prior {name} wants {wants}; expected lists by field, got "
                f"{type(conditions).__name__}"
            )
        conditions = {fields[0]: conditions}
    if missing := [field for field in fields if field not in conditions]:
        raise InputError(
            f"conditions: the prior {name} wants {wants}, but {' and '.join(missing)} is missing; "
            f"give {{{', '.join(f'{field!r}: [...]' for field in fields)}}}"
        )
    # a parameter with a default is never told to a prior by a pair either
    if unknown := [field for field in conditions if field not in fields]:
        raise InputError(f"conditions: the prior {name} wants {wants}, not {unknown[0]}")
    values = {}
    for field, given in conditions.items():
        given = given.detach().cpu() if isinstance(given, Tensor) else given
        try:
            array = np.asarray(given)
            good = array.dtype.kind in "biuf" and array.ndim > 0 and np.isfinite(array).all()
        except ValueError:  # rows of unequal lengths
            good = False
        if not good or not len(array):
            raise InputError(f"conditions: {field}: expected a list of finite numbers: {given!r}")
        values[field] = torch.as_tensor(array)
    counts = {field: len(value) for field, value in values.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {field}" for field, count in counts.items())
        raise InputError(f"conditions: expected as many values of each field, got {told}")
    if not values:
        return values
    rows = torch.cat([value.double().reshape(len(value), -1) for value in values.values()], dim=1)
    _, first = np.unique(rows.numpy(), axis=0, return_index=True)  # particles share conditions
    return {field: value[np.sort(first)] for field, value in values.items()}


class Laws:
    r"""The laws :math:`p(z | u_l)`, l = 1 ... L.

    Args:
        prior: As made by :func:`made_double`.
        values: Of its fields, as of :func:`values_of`; ``{}`` for none.
        dim: Expected size K of `z`.

    Attributes:
        event: `(K,)` or `(T, K)`.
        dim: K.
        count: L.
        names: What to call each condition.

    Raises:
        InputError: If the prior does not give such laws.
    """

    def __init__(self, prior: Any, values: Mapping[str, Tensor], dim: int | None = None) -> None:
        self.name = called(prior)
        self.prior, self.values = prior, dict(values)
        self.names = _names(values)
        self.count = len(next(iter(values.values()))) if values else 1
        law = _called(prior, values, self.name)
        if not isinstance(law, Distribution):
            raise InputError(
                f"prior: {self.name} returned {type(law).__name__}, not a distribution"
            )
        event, batch = tuple(law.event_shape), tuple(law.batch_shape)
        if len(event) not in (1, 2):
            raise InputError(
                f"prior: {self.name} has event shape {event}; expected (K,) or (T, K); "
                ".to_event(1) turns a batch of K into an event"
            )
        if dim is not None and event[-1] != dim:
            raise InputError(f"dim: {dim} was given, but the prior is over {event[-1]} latents")
        if batch not in ((), (1,), (self.count,)):
            raise InputError(
                f"prior: {self.name} has batch shape {batch} at {self.count} conditions; expected "
                f"{(self.count,) if values else ()}"
            )
        self.event, self.dim = event, event[-1]
        self.law = mapped(law, _exact)
        for part, value in vars(self.law).items():  # networks that a law computes with
            if isinstance(value, nn.Module):
                self.law.__dict__[part] = made_double(value)
        self._inside = _support(law)

    @property
    def bounded(self) -> bool:
        """Whether the support ends somewhere."""
        return self._inside is not None

    def only(self, rows: Sequence[int]) -> Laws:
        """The same prior at some of its conditions."""
        kept = list(rows)
        return Laws(self.prior, {field: value[kept] for field, value in self.values.items()})

    def log_prob(self, z: Tensor) -> Tensor:
        """Of `z` `(..., *event)` at every condition, `(..., L)`; -inf outside of the support."""
        axis = -1 - len(self.event)
        return self.own(z.unsqueeze(axis).expand(*z.shape[: axis + 1], self.count, *self.event))

    def own(self, z: Tensor) -> Tensor:
        """Of `z` `(..., L, *event)`, each at its condition, `(..., L)`."""
        found = self.law.log_prob(z).expand(z.shape[: -len(self.event)])
        return found if self._inside is None else found.masked_fill(~self._inside(z), -math.inf)

    def sample(self, count: int, seed: int | None = None) -> Tensor:
        """Draws at each condition, `(count, L, *event)`; from ``seed``, where one is given."""
        try:
            with torch.no_grad(), torch.random.fork_rng(enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                z = self.law.sample((count,)).double()
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise InputError(f"prior: {self.name} cannot be sampled: {error}") from None
        if not z.isfinite().all():
            raise InputError(f"prior: {self.name} has samples that are not finite")
        if z.dim() == 1 + len(self.event):  # one law for all conditions
            z = z.unsqueeze(1)
        return z.expand(count, self.count, *self.event)

    def mixture(self, count: int) -> Tensor:
        """Draws from all conditions alike, `(count, *event)`."""
        z = self.sample(math.ceil(count / self.count)).flatten(0, 1)
        return z[torch.randperm(len(z))[:count]]

    def gradients(self, z: Tensor) -> Tensor:
        r""":math:`\nabla \ln p(z | u_l)`, `(N, L, *event)`."""
        return self._gradients(z)[1].detach()

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients `(N, L, K)` and Hessians `(N, L, K, K)` of each frame's `z` `(N, K)`."""
        x, slope = self._gradients(z, twice=True)
        rows = [
            self._second(slope[..., k], x) if slope.requires_grad else torch.zeros_like(x)
            for k in range(self.dim)
        ]
        return slope.detach(), torch.stack(rows, dim=-2)

    def _second(self, slope: Tensor, x: Tensor) -> Tensor:
        if not slope.requires_grad:
            return torch.zeros_like(x)
        (found,) = torch.autograd.grad(slope.sum(), x, retain_graph=True, allow_unused=True)
        return torch.zeros_like(x) if found is None else found.detach()

    def mixed(self, z: Tensor, i: tuple[int, int], j: tuple[int, int]) -> Tensor:
        """Of frames `(N, T, K)`, the second derivative in entries ``i`` and ``j``, `(N, L)`."""
        x, slope = self._gradients(z, twice=True)
        return self._second(slope[..., *i], x)[..., *j]

    def _gradients(self, z: Tensor, twice: bool = False) -> tuple[Tensor, Tensor]:
        x = z.unsqueeze(1).expand(len(z), self.count, *self.event).clone().requires_grad_()
        try:
            total = self.law.log_prob(x)
        except (RuntimeError, TypeError) as error:
            told = f"prior: log_prob of {self.name} fails in double precision: {error}"
            raise InputError(told) from error
        if not total.isfinite().all():
            raise InputError(
                f"prior: log_prob of {self.name} is {total[~total.isfinite()][0].item()} at one "
                "of its own samples"
            )
        slope = None
        if total.requires_grad:
            (slope,) = torch.autograd.grad(total.sum(), x, create_graph=twice, allow_unused=True)
        if slope is None:
            raise InputError(
                f"prior: log_prob of {self.name} cannot be differentiated: it is detached, or "
                "computed outside of torch"
            )
        if not slope.isfinite().all():
            raise InputError(f"prior: the gradient of log_prob of {self.name} is not finite")
        return x, slope

    def checked(self, z: Tensor) -> None:
        """Compares the gradient with differences of ``log_prob``.

        Raises:
            InputError: If it is not their slope, such as where a part of it is detached.
        """
        along = z.std(dim=0) * torch.randn_like(z) * STEP
        slope = (self.gradients(z) * along.unsqueeze(1)).flatten(2).sum(-1)
        with torch.no_grad():
            rise = (self.log_prob(z + along) - self.log_prob(z - along)) / 2
        error = (slope - rise).abs() / (slope.abs() + rise.abs()).clamp_min(1e-300)
        if error.nanmedian() > WRONG:
            raise InputError(
                f"prior: the gradient of log_prob of {self.name} is not its slope; is a part of "
                "it detached?"
            )


def _exact(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.double() if value.is_floating_point() else value


def _names(values: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What to call each condition: "" where there is but one, without a field."""
    told: list[list[str]] = []
    for field, value in values.items():
        rows = value.reshape(len(value), -1).tolist()
        shown = [", ".join(f"{x:.4g}" for x in row[:4]) + ", ..." * (len(row) > 4) for row in rows]
        told.append([f"{field} {x}" if value.dim() == 1 else f"{field} ({x})" for x in shown])
    return tuple(", ".join(parts) for parts in zip(*told, strict=True)) or ("",)


def _called(prior: Any, values: Mapping[str, Tensor], name: str) -> Any:
    if isinstance(prior, Distribution):
        return prior
    exact = {field: value.double() for field, value in values.items()}
    whole = {f: v.double() if v.is_floating_point() else v.long() for f, v in values.items()}
    tries = [exact] if all(v.is_floating_point() for v in values.values()) else [exact, whole]
    while True:  # whole numbers may be classes, that index a table
        try:
            return _at(prior, tries.pop(0))
        except (IndexError, TypeError, RuntimeError, ValueError) as error:
            if not tries:
                told = f"prior: {name} cannot be asked at these conditions: {error}"
                raise InputError(told) from error


def _at(prior: Any, values: Mapping[str, Tensor]) -> Any:
    if not isinstance(prior, PyroModule):
        return prior(**values)
    with pyro.get_param_store().scope():  # as pairs call it
        return prior(**values)


def _support(law: Any) -> Callable[[Tensor], Tensor] | None:
    """Whether points are inside the support; None where all are, or nobody can tell."""
    try:
        far = torch.full((*law.batch_shape, *law.event_shape), 1e3)
        everywhere = all(law.support.check(point).all() for point in (far, -far))
    except (NotImplementedError, AttributeError, RuntimeError):
        return None
    return None if everywhere else law.support.check
