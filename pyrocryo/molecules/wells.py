"""One-dimensional energies fitted to amplitudes by maximum likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import functional_call

from pyrocryo.priors import DoubleWell, Harmonic, SingleWell

__all__ = ["FORMS", "Fit", "FixedWell", "fitted"]

BINS = 50  # a standard deviation, of the histogram that stands for the frames
NODES = 512  # of the integral
KNOTS, EXTENT = 3, 3.0  # of a single well
TOL = 1e-8  # nats a frame
RIDGE = 1e-4  # nats a frame for the squares of the numbers of a single well
TAIL = 3.0  # standard deviations beyond the frames that the integral covers


class FixedWell(SingleWell):
    """A single well that is known: it neither trains nor starts anew.

    Args:
        steps: `(2, n)` the numbers of :class:`pyrocryo.priors.SingleWell`.
        **options: Of :class:`pyrocryo.priors.SingleWell`.
    """

    def __init__(self, steps: Tensor, **options: float) -> None:
        super().__init__(knots=steps.shape[1], **options)
        del self.steps
        self.register_buffer("steps", steps.clone())

    def reset_parameters(self) -> None:
        """Nothing: it is known."""

    def extra_repr(self) -> str:
        """All that decides its numbers."""
        told = ", ".join(f"{step:.5g}" for step in self.steps.flatten().tolist())
        return f"{super().extra_repr()}, steps=[{told}]"


@dataclass(frozen=True)
class Form:
    """Energies over k_B T of standardised amplitudes, given some numbers.

    Attributes:
        energy: Of the numbers and of `y`.
        starts: Numbers to start from.
        ridge: Whether each number beyond the first two costs.
    """

    energy: Callable[[Tensor, Tensor], Tensor]
    starts: tuple[tuple[float, ...], ...]
    ridge: bool = False


def _harmonic(numbers: Tensor, y: Tensor) -> Tensor:
    at, scale = numbers
    return 0.5 * ((y - at) * scale.exp()).square()


def _single(numbers: Tensor, y: Tensor) -> Tensor:
    steps = {"steps": numbers[2:].reshape(2, KNOTS)}
    return functional_call(_SINGLE, steps, ((y - numbers[0]) * numbers[1].exp(),))


def _double(numbers: Tensor, y: Tensor) -> Tensor:
    at, position, barrier, tilt = numbers
    x = (y - at) * (-position).exp()
    return barrier.exp() * (x.square() - 1).square() + tilt * x


_SINGLE = SingleWell(knots=KNOTS, extent=EXTENT).double()
FORMS = {
    "harmonic": Form(_harmonic, ((0.0, 0.0),)),
    "single well": Form(_single, ((0.0,) * (2 + 2 * KNOTS),), ridge=True),
    "double well": Form(
        _double, ((0.0, 0.0, 0.5, 0.0), (0.3, 0.0, 0.5, 0.5), (-0.3, 0.0, 0.5, -0.5))
    ),
}


@dataclass(frozen=True)
class Fit:
    """A form and its numbers.

    Attributes:
        kind: Key of ``FORMS``.
        numbers: Those of the form.
        reach: The integral of the density runs over ± this.
    """

    kind: str
    numbers: np.ndarray
    reach: float

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Log-density `(M,)` of standardised amplitudes `(M,)`."""
        with torch.no_grad():
            numbers = torch.as_tensor(self.numbers)
            energy = FORMS[self.kind].energy
            total = _log_sum(energy(numbers, _grid(self.reach)), self.reach)
            return (-energy(numbers, torch.as_tensor(y)) - total).numpy()

    def energy(self, kelvin: float, spread: float) -> tuple[nn.Module, float]:
        """The energy in K of amplitudes whose standard deviation is ``spread``, and its place.

        The place is in standard deviations from the mean.
        """
        at, scale = (float(number) for number in self.numbers[:2])
        if self.kind == "double well":
            barrier, tilt = math.exp(self.numbers[2]), float(self.numbers[3])
            wide = math.exp(scale) * spread
            return DoubleWell(kelvin * barrier, position=wide, tilt=kelvin * tilt), at
        stiffness = kelvin * math.exp(2 * scale) / spread**2
        if self.kind == "harmonic":
            return Harmonic(stiffness), at
        steps = torch.as_tensor(self.numbers[2:], dtype=torch.get_default_dtype())
        return FixedWell(
            steps.reshape(2, KNOTS), stiffness=stiffness, extent=EXTENT * spread / math.exp(scale)
        ), at


def fitted(kind: str, y: np.ndarray, start: np.ndarray | None = None) -> Fit:
    r"""The numbers of a form that maximise :math:`\sum_m -\epsilon(y_m) - M \ln Q`.

    Frames are counted in bins of a fiftieth of their standard deviation.

    Args:
        kind: "harmonic", "single well" or "double well".
        y: `(M,)` amplitudes of about zero mean and unit variance.
        start: Numbers to start from, such as those of nearly the same frames.
    """
    form = FORMS[kind]
    reach = float(np.abs(y).max()) + TAIL
    counts, edges = np.histogram(y, bins=int(2 * reach * BINS), range=(-reach, reach))
    held = counts > 0
    share = torch.as_tensor(counts[held] / len(y))
    middle = torch.as_tensor(0.5 * (edges[1:] + edges[:-1])[held])
    points = torch.cat([middle, _grid(reach)])

    def loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.tensor(numbers, requires_grad=True)
        energy = form.energy(theta, points)
        cost = share @ energy[: len(middle)] + _log_sum(energy[len(middle) :], reach)
        if form.ridge:
            cost = cost + RIDGE * theta[2:].square().sum()
        cost.backward()
        return float(cost.detach()), theta.grad.numpy()

    bounds = [(-reach, reach), (-3.0, 3.0)] + [(-6.0, 6.0)] * (len(form.starts[0]) - 2)
    found = [
        minimize(loss, np.array(first), jac=True, method="L-BFGS-B", bounds=bounds, tol=TOL)
        for first in (form.starts if start is None else (start.clip(*np.transpose(bounds)),))
    ]
    best = min(found, key=lambda one: one.fun)
    return Fit(kind, best.x, reach)


def _grid(reach: float) -> Tensor:
    return torch.linspace(-reach, reach, NODES, dtype=torch.float64)


def _log_sum(energy: Tensor, reach: float) -> Tensor:
    """The logarithm of the integral, of energies on the grid."""
    return (-energy).logsumexp(0) + math.log(2 * reach / (NODES - 1))
