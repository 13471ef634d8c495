"""Priors on frames of one molecule that start from N(0, I) and go on by independent steps."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.distributions.kl import register_kl
from torch.nn.functional import softplus

from pyrocryo.errors import InputError
from pyrocryo.joint_normal import JointNormal
from pyrocryo.priors.quadrature import resolved
from pyrocryo.rotated_normal import RotatedNormal

__all__ = ["Transition", "log_sum", "normal_log_prob"]


class Transition(dist.TorchDistribution):
    r"""One prior over T frames of a molecule, event shape `(T, K)`.

    .. math::
        p(z) = N(z_1; 0, I) \prod_{t > 1} \prod_k p_k(z_{t,k} - a_k z_{t-1,k})

    A prior of this kind is one file that gives the density of a step (:meth:`step_log_prob`), its
    draws (:meth:`step_sample`), its expected cost (:meth:`expected_cost`) or else the length
    :attr:`knee` for the quadrature, and `a` (:attr:`decay`) if it is not 1. Numbers that belong
    to the steps may be one for all, `(K,)`, or `(..., T - 1, K)`, one for each step, such as for
    uneven time stamps (:class:`pyrocryo.priors.Kinetics`); leading axes are the batch.

    The KL of a Gaussian posterior that is independent across frames and correlated within each
    is exact: under `q` the step of component `k` is :math:`N(m_t - a m_{t-1}, v_t + a^2 v_{t-1})`,
    with the marginal means and variances of the turned posterior, and the expected cost of that
    has a closed form or is an integral by quadrature.

    Args:
        dim: Size K of `z` in each frame.
        frames: Number of frames T, at least 2.
        plugin: Take each step from the posterior mean of the frame before, leaving out that
            frame's variance, as the SlowVAE was published; no bound on the evidence. Only the
            KL differs, so `check_prior` names it.
        validate_args: False takes tensors as they are, values unchecked: what is made of a
            module's parameters inside a step must not ask for values.
        **numbers: The numbers of the steps by their names, all positive; kept as attributes.

    Attributes:
        transition_weight: Weight γ of the transition terms in the KL, 1 for the exact ELBO; set
            by the trainer around the loss (:class:`pyrocryo.svi.Weights`), never by a model.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True
    transition_weight: float | Tensor = 1.0

    def __init__(
        self,
        dim: int,
        *,
        frames: int = 2,
        plugin: bool = False,
        validate_args: bool | None = None,
        **numbers: float | Tensor,
    ) -> None:
        if dim < 1:
            raise InputError(f"dim: expected at least one latent, got {dim}")
        if frames < 2:
            raise InputError(f"frames: a transition needs at least 2 frames, got {frames}")
        self.dim = dim
        self.frames = frames
        self.plugin = plugin
        batch = torch.Size()
        for name, given in numbers.items():
            kept = isinstance(given, Tensor) and given.is_floating_point()
            try:
                value = given if kept else torch.as_tensor(given, dtype=torch.get_default_dtype())
            except (TypeError, ValueError):
                raise InputError(f"{name}: expected numbers, got {given!r}") from None
            fits = value.dim() == 0 or value.shape[-1] == dim
            fits = fits and (value.dim() < 2 or value.shape[-2] in (1, frames - 1))
            good = validate_args is False or bool(((value > 0) & value.isfinite()).all())
            if not (fits and good):
                raise InputError(
                    f"{name}: expected one positive number or {dim} of them, or a tensor "
                    f"(..., {frames - 1}, {dim}) with a row for each step, got {given}"
                )
            value = value.expand(dim) if value.dim() < 2 else value
            setattr(self, name, value)
            batch = torch.broadcast_shapes(batch, value.shape[:-2])
        super().__init__(batch, torch.Size([frames, dim]), validate_args=validate_args)

    @classmethod
    def over(
        cls, dim: int, value: Tensor, interval: Tensor, exponent: float, **options: Any
    ) -> Transition:
        r"""The law of steps over ``interval`` `(..., T - 1)` (s) if in 1 s it has ``value``.

        By default the second argument is a length, which grows as :math:`\Delta t^h`.

        Args:
            dim: Size K of `z`.
            value: `(K,)`.
            interval: Seconds between frames.
            exponent: `h`; ½ makes the variance of a step grow with time.
            **options: What else the class takes, all numbers of its steps among it.
        """
        scale = value * interval.unsqueeze(-1) ** exponent
        return cls(dim, scale, frames=interval.shape[-1] + 1, validate_args=False, **options)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Transition:
        if torch.broadcast_shapes(self.batch_shape, batch_shape) != torch.Size(batch_shape):
            raise ValueError(f"batch {tuple(self.batch_shape)} does not expand to {batch_shape}")
        new = copy.copy(self)  # what it holds broadcasts
        super(Transition, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def with_transition_weight(self, weight: float | Tensor) -> Transition:
        """A copy whose KL counts transition terms ``weight`` times; `log_prob` is unchanged."""
        new = copy.copy(self)
        new.transition_weight = weight
        return new

    @property
    def decay(self) -> float | Tensor:
        """What is left of a frame in the mean of the next, `a`."""
        return 1.0

    @property
    def knee(self) -> Tensor:
        """How far from 0 the density of a step has its shape, for :meth:`expected_cost`."""
        raise self._lacks("knee, or expected_cost")

    def step_log_prob(self, step: Tensor) -> Tensor:
        """Log-density of each step, `(..., T - 1, K)`."""
        raise self._lacks("step_log_prob")

    def step_sample(self, shape: torch.Size) -> Tensor:
        """Steps of shape `(..., T - 1, K)`."""
        raise self._lacks("step_sample")

    def _lacks(self, what: str) -> TypeError:
        # not a NotImplementedError, which would make Pyro sample the KL
        return TypeError(f"{type(self).__name__}: a transition needs {what}")

    def expected_cost(self, mean: Tensor, sd: Tensor) -> Tensor:
        r""":math:`-E \ln p_k(x), x \sim N(m, s^2)`, elementwise; by quadrature (64 nodes)."""
        x, weights = resolved(mean, sd, self.knee.to(mean))
        return -(weights * self.step_log_prob(x)).sum(0)

    def log_steps(self, z: Tensor) -> Tensor:
        """Log-density of all frames after the first, in terms whose last two axes add up."""
        return self.step_log_prob(self.steps(z))

    def expected_steps(
        self, mean: Tensor, variance: Tensor, covariance: Tensor | float = 0.0
    ) -> Tensor:
        """Expected cost of the frames after the first, of marginal moments `(..., T, K)`.

        ``covariance`` `(..., T - 1, K)` is that of each frame with the next.
        """
        a = self._kept(mean)
        before = 0.0 if self.plugin else a * a * variance[..., :-1, :] - 2 * a * covariance
        sd = (variance[..., 1:, :] + before).sqrt()
        return self.expected_cost(self.steps(mean), sd)

    def steps(self, z: Tensor) -> Tensor:
        """Steps `(..., T - 1, K)` of frames `(..., T, K)`."""
        a = self._kept(z)
        return z.diff(dim=-2) if isinstance(a, float) else z[..., 1:, :] - a * z[..., :-1, :]

    def _kept(self, like: Tensor) -> float | Tensor:
        a = self.decay
        return a if isinstance(a, float) else a.to(like)

    def follow(self, first: Tensor) -> Tensor:
        """Draws all frames `(..., T, K)`, given the first `(..., 1, K)`."""
        steps = self.step_sample(torch.Size([*first.shape[:-2], self.frames - 1, self.dim]))
        if isinstance(self.decay, float):
            return torch.cat([first, steps], dim=-2).cumsum(dim=-2)
        a = self.decay.expand(steps.shape)
        frames = [first[..., 0, :]]
        for t in range(self.frames - 1):
            frames.append(a[..., t, :] * frames[-1] + steps[..., t, :])
        return torch.stack(frames, dim=-2)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError(f"{type(self).__name__} has samples without gradient")
        return self._drawn(sample_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self._drawn(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        first = -0.5 * (value[..., 0, :].square() + math.log(2 * math.pi)).sum(-1)
        total = first + self.log_steps(value).sum((-1, -2))
        return total.expand(torch.broadcast_shapes(self.batch_shape, total.shape))

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        shape = self._extended_shape(sample_shape)
        held = next(value for value in vars(self).values() if isinstance(value, Tensor))
        like = {"dtype": held.dtype, "device": held.device}
        return self.follow(torch.randn(*shape[:-2], 1, self.dim, **like))


def normal_log_prob(x: Tensor, sd: float | Tensor) -> Tensor:
    r""":math:`\ln N(x; 0, s^2)`, elementwise."""
    log_sd = sd.log() if isinstance(sd, Tensor) else math.log(sd)
    return -0.5 * ((x / sd).square() + math.log(2 * math.pi)) - log_sd


def log_sum(narrow: Tensor, wide: Tensor) -> Tensor:
    r""":math:`\ln(e^a + e^b)` where `b` is never very much smaller than `a`.

    As ``torch.logaddexp``, whose second derivatives are no numbers where `b` is much larger.
    """
    return wide + softplus(narrow - wide)


@register_kl(Independent, Transition)
def _kl(q: Independent, p: Transition) -> Tensor:
    """Of the first frame as of N(0, I); of the others the expected cost, less the entropies."""
    frame = q.base_dist
    if not isinstance(frame, RotatedNormal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError  # tells Pyro that the KL has to be sampled
    entropy = frame.entropy()
    square = frame.total_square[..., 0]
    first = 0.5 * (square + p.dim * math.log(2 * math.pi)) - entropy[..., 0]
    cost = p.expected_steps(frame.mean, frame.variance)
    steps = cost.sum((-1, -2)) - entropy[..., 1:].sum(-1)
    return first + p.transition_weight * steps


@register_kl(JointNormal, Transition)
def _kl_jointly(q: JointNormal, p: Transition) -> Tensor:
    """Frames that are correlated: steps are narrower, and entropy is that of all together."""
    if type(p).expected_steps is not Transition.expected_steps:
        raise NotImplementedError  # tells Pyro that the KL has to be sampled
    mean, variance = q.mean, q.variance
    square = mean[..., 0, :].square() + variance[..., 0, :]
    first = 0.5 * (square + math.log(2 * math.pi)).sum(-1)
    steps = p.expected_steps(mean, variance, q.step_covariance).sum((-1, -2))
    return first + p.transition_weight * steps - q.entropy()
