"""Before training: how much a prior can say about its axes, through the noise of the images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrocryo.errors import InputError

__all__ = ["Power", "power", "turn_of"]

BLIND = 1e-3  # nats a molecule, without noise, below which a prior counts as rotation invariant
PROPOSED = (128, 512, 2048)  # draws of z for each molecule, twice: more where these are too few
BUDGET = 512_000  # draws for all the molecules that the information is averaged over
WIDTHS = (1.0, 4.0)  # variances of the proposals' prior, of that of the prior itself
EFFECTIVE = 5.0  # draws that all molecules but a few must have, for the information to be given
POOR = 0.05  # share of molecules that may have fewer
DRAWS = 1000  # fewest draws of z that a gap is judged from
SURE = 2.0  # standard errors
AT_ONCE = 2_000_000  # numbers held at once

Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Power:
    """What turning the axes of `z` costs, and how many molecules notice.

    Attributes:
        degrees: Angles θ of the turns.
        gap: Nats a molecule that each turn costs the prior term of the ELBO, where posteriors are
            as wide as ``sd`` says.
        gap_se: Standard errors of that, from the draws.
        information: Nats a molecule by which each turn lowers the likelihood of the images: what
            data can show at most. Equal to ``gap`` without noise, far below it with much; nan
            where it could not be computed.
        information_se: Standard errors of that.
        noiseless: The gap at 45° without any noise.
        invariant: Whether the prior cannot see turns at all (within its standard error).
        ratio: Log-likelihood ratio that ``pairs_needed`` is for.
        sentence: All this in words.
    """

    degrees: tuple[float, ...]
    gap: tuple[float, ...]
    gap_se: tuple[float, ...]
    information: tuple[float, ...]
    information_se: tuple[float, ...]
    noiseless: float
    invariant: bool
    ratio: float
    sentence: str

    @property
    def nats(self) -> float:
        """The gap at 45°."""
        return self.gap[self.degrees.index(45.0)]

    @property
    def pairs_needed(self) -> dict[float, float]:
        """Molecules whose images tell each turn from the true axes, by ``ratio`` nats.

        From the information; where that is not known, from the gap, which makes it too few.
        Infinite where it is no more than two standard errors.
        """
        gaps = zip(self.gap, self.gap_se, strict=True)
        told = zip(self.information, self.information_se, strict=True)
        return _needed(self.degrees, list(gaps), list(told), self.invariant, self.ratio)

    @property
    def pairs_per_nat(self) -> float:
        """Molecules for one nat, at 45°."""
        return self.pairs_needed[45.0] / self.ratio


def power(
    prior: Any,
    sd: float | Sequence[float] | Tensor = 0.0,
    *,
    degrees: Sequence[float] = (10.0, 22.5, 45.0),
    ratio: float = 3.0,
    pooled: bool = True,
    draws: int = 100_000,
    seed: int = 0,
) -> Power:
    r"""What turning the axes of a prior costs, at a given precision of `z`; before any training.

    .. math:: G(\theta) = E[\ln p(z + n) - \ln p(R_\theta(z + n))], \quad
              I(\theta) = E\Big[\ln \frac{\tilde p(y)}{\tilde p_\theta(y)}\Big], \quad y = z + n

    with `z` from the prior, `n` Gaussian, :math:`\tilde p(y) = E_n[p(y - n)]` the law of what is
    seen and :math:`\tilde p_\theta` that of the model with turned axes. `G` (``gap``) is what the
    prior term of an ELBO charges, with posteriors as wide as `n`; it is the force on a rotation
    layer. `I` (``information``) is a KL divergence of marginal likelihoods: N molecules bring N·I
    nats, and no method gets more. For Laplace steps (K = 2, 45°), per pair and by the noise of an
    *increment* in Laplace scales (a frame's is smaller by √2): noise 0 / .5 / 1 / 2 / 4, `G` .121
    / .089 / .054 / .020 / .005, `I` .121 / .067 / .025 / .003 / .00005.

    Where components are seen with unequal precision `G` has a part that has nothing to do with
    steps: Gaussians of standard deviations :math:`s_1, s_2` (of an increment) under Laplace steps
    of rate λ charge :math:`\lambda \sqrt{2/\pi} (\sqrt{2 (s_1^2 + s_2^2)} - s_1 - s_2)` for 45°.
    It can align axes, whatever the steps of the data; `I` is free of it.

    Works from ``sample`` and ``log_prob`` alone. Turns are those in the planes of two components,
    either way round, all frames together; the cheapest counts (by `G`, and picked by the draws
    that `G` is then averaged over, so a little low where several cost the same). `I` is by
    importance sampling from the posteriors under Gaussian priors of the same covariance, as it is
    and turned, with two sets of draws to take out their noise. Below 1 nat it is taken in the
    form :math:`E[\tilde p_\theta / \tilde p - 1 - \ln (\tilde p_\theta / \tilde p)]`, which varies
    less. Errors of two components that go together (off-diagonals of the images' Fisher
    information) are not known here: ``sd`` takes them as independent.

    Args:
        prior: A distribution over the frames of one molecule, event shape `(T, K)` (or `(K,)`).
        sd: Standard deviation with which the images of one frame alone tell `z`
            (:func:`pyrocryo.identify.posterior_sd`), a number, `(K,)` or `(T, K)`. A posterior's
            own, s, contains its prior: under one of unit variance give (s⁻² − 1)^(-1/2).
        degrees: Angles; 45 is always among them.
        ratio: Log-likelihood ratio, in nats, that counts as told.
        pooled: Try turns of whitened `z` too (by the standard deviations of its components).
        draws: Draws of `z` for the gap, at least 1000.
        seed: Seed of all draws.

    Raises:
        InputError: If the prior is no distribution of such a shape or its support ends somewhere,
            or a number is out of range.
    """
    event = tuple(getattr(prior, "event_shape", ()))
    if len(event) not in (1, 2) or not hasattr(prior, "log_prob"):
        raise InputError(
            f"prior: expected a distribution of event shape (T, K) or (K,), got {prior!r}"
        )
    if tuple(prior.batch_shape):
        raise InputError(
            f"prior: expected that of one molecule, got batch shape {tuple(prior.batch_shape)}"
        )
    if event[-1] < 2:
        raise InputError("prior: one latent has no axes that could be turned")
    if draws < DRAWS:
        raise InputError(f"draws: expected at least {DRAWS}, got {draws}")
    if not ratio > 0:
        raise InputError(f"ratio: expected a positive number of nats, got {ratio}")
    try:
        noise = torch.as_tensor(sd, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"sd: expected standard deviations, got {sd!r}") from None
    if noise.dim() > len(event) or not (noise.isfinite() & (noise >= 0)).all():
        raise InputError(f"sd: expected standard deviations, at least 0, got {sd}")
    try:
        noise = noise.expand(event)
    except RuntimeError:
        raise InputError(
            f"sd: expected a number, ({event[-1]},) or {event}, got shape {tuple(noise.shape)}"
        ) from None
    angles = tuple(sorted({float(a) for a in degrees} | {45.0}))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        z = prior.sample((draws,))
        noise = noise.to(z)
        seen = z + noise * torch.randn_like(z)
        scales = [torch.ones_like(z[0])]
        if pooled:
            scales.append(z.flatten(0, -2).std(dim=0).expand(event))
        planes = list(itertools.product(scales, itertools.permutations(range(event[-1]), 2)))
        still, clean = _logs(prior, seen), _logs(prior, z)
        gaps, turns = [], []
        for angle in angles:
            each = [turn_of(angle, *plane, scale) for scale, plane in planes]
            costs = [still - _logs(prior, turn(seen)) for turn in each]
            best = min(range(len(each)), key=lambda n: costs[n].mean().item())
            gaps.append(_mean(costs[best]))
            turns.append(each[best])
        costs = [
            _mean(clean - _logs(prior, turn_of(45.0, *plane, scale)(z))) for scale, plane in planes
        ]
        noiseless = min(costs)[0]
        invariant = min(cost + SURE * error for cost, error in costs) <= BLIND
        told = gaps
        if noise.any() and invariant:
            told = [(0.0, 0.0)] * len(angles)
        elif noise.any():
            for proposed in PROPOSED:
                few = seen[: BUDGET // proposed]
                told = _information(prior, z, few, noise, turns, proposed)
                if not any(math.isnan(nats) for nats, _ in told):
                    break
    gap, gap_se = zip(*gaps, strict=True)
    information, information_se = zip(*told, strict=True)
    needed = _needed(angles, gaps, told, invariant, ratio)
    reading = _reading(needed, dict(zip(angles, told, strict=True)), noiseless, invariant, ratio)
    return Power(
        angles, gap, gap_se, information, information_se, noiseless, invariant, ratio, reading
    )


def turn_of(degrees: float, i: int, j: int, scale: Tensor) -> Turn:
    """Turns components `i` and `j` of `z` / ``scale``, from i to j."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def turn(z: Tensor) -> Tensor:
        white = z / scale
        turned = white.clone()
        turned[..., i] = c * white[..., i] - s * white[..., j]
        turned[..., j] = s * white[..., i] + c * white[..., j]
        return turned * scale

    return turn


def _logs(prior: Any, z: Tensor) -> Tensor:
    try:
        logs = prior.log_prob(z)
        inside = bool(logs.isfinite().all())
    except ValueError:  # of distributions that check what they are given
        inside = False
    if not inside:
        raise InputError(
            "prior: expected a density above 0 everywhere, as turned or noisy z can lie anywhere"
        )
    return logs


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    values = values.double()
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def _information(
    prior: Any, z: Tensor, seen: Tensor, noise: Tensor, turns: Sequence[Turn], proposed: int
) -> list[tuple[float, float]]:
    """The KL divergence from each turned model, of what is seen; mean and standard error."""
    flat = z.flatten(1).double()
    spread = noise.flatten().double().clamp_min(1e-6)
    size = len(spread)
    one = torch.eye(size, dtype=flat.dtype, device=flat.device)
    # of z, and of what each turn takes to z
    sources = [flat]
    for turn in turns:
        matrix = turn(one.unflatten(1, z.shape[1:])).flatten(1)
        sources.append(torch.linalg.solve(matrix, flat, left=False))
    laws = [_posterior(s, width, spread) for s in sources for width in WIDTHS]
    count = max(1, proposed // len(laws))
    logs, effective = [], []
    for part in seen.flatten(1).double().split(max(1, AT_ONCE // (4 * proposed * size))):
        loc = [centre + (part - centre) @ gain.T for centre, gain, _ in laws]
        halves = []
        for _ in range(2):
            normal = torch.randn(
                len(laws), len(part), count, size, dtype=flat.dtype, device=flat.device
            )
            drawn = torch.cat(
                [
                    mean[:, None] + each @ root.T
                    for mean, each, (*_, root) in zip(loc, normal, laws, strict=True)
                ],
                dim=1,
            )
            density = torch.stack(
                [
                    _normal(drawn - mean[:, None], root)
                    for mean, (*_, root) in zip(loc, laws, strict=True)
                ]
            ).logsumexp(0)
            likely = -0.5 * ((part[:, None] - drawn) / spread).square().sum(-1)
            points = drawn.to(z).unflatten(-1, z.shape[1:])
            seen_by = [points, *(turn(points) for turn in turns)]  # the model and the turned ones
            weight = torch.stack([prior.log_prob(each).double() for each in seen_by])
            weight = weight + likely - density
            effective.append((2 * weight.logsumexp(-1) - (2 * weight).logsumexp(-1)).exp())
            own, *turned = weight.logsumexp(-1)
            halves.append(torch.stack([own - other for other in turned]))
        logs.append(torch.stack(halves))
    first, second = torch.cat(logs, dim=-1)  # (turns, molecules) each
    middle, apart = (first + second) / 2, (first - second) / 2
    # E[e^-d - 1 + d] of the true d, less what the noise of the mean of two adds; the mean of e^-d
    # is 1, but where d is large that of a sample is not
    divergence = torch.expm1(-middle) + middle - 0.5 * (-middle).exp() * apart.square()
    divergence = torch.where(middle.mean(-1, keepdim=True) > 1, middle, divergence)
    least = torch.cat(effective, dim=-1).quantile(POOR, dim=-1)
    known = (least[0] >= EFFECTIVE) & (least[1:] >= EFFECTIVE)
    means = [_mean(row) for row in divergence]
    # below 0 only where no draw came near the mass
    return [
        (nats, error) if good and nats >= -2 * SURE * error else (math.nan, math.nan)
        for (nats, error), good in zip(means, known.tolist(), strict=True)
    ]


def _posterior(flat: Tensor, width: float, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of z, gain, and root of the covariance, under a Gaussian prior like ``flat``."""
    within = width * torch.atleast_2d(flat.T.cov())
    gain = torch.linalg.solve(within + spread.square().diag(), within).T
    # (1 - G) C (1 - G)' + G S G', which rounding leaves positive
    one = torch.eye(len(spread), dtype=flat.dtype, device=flat.device)
    left = (one - gain) @ within @ (one - gain).T + (gain * spread.square()) @ gain.T
    return flat.mean(dim=0), gain, torch.linalg.cholesky(left + 1e-12 * left.trace() * one)


def _normal(error: Tensor, root: Tensor) -> Tensor:
    """Log-density of N(0, L L'), but for a constant."""
    white = torch.linalg.solve_triangular(root, error.mT, upper=False)
    return -0.5 * white.square().sum(-2) - root.diagonal().log().sum()


def _needed(
    degrees: Sequence[float],
    gaps: Sequence[tuple[float, float]],
    told: Sequence[tuple[float, float]],
    invariant: bool,
    ratio: float,
) -> dict[float, float]:
    if invariant:
        return dict.fromkeys(degrees, math.inf)
    known = [gap if math.isnan(own[0]) else own for gap, own in zip(gaps, told, strict=True)]
    return {
        angle: ratio / nats if nats > SURE * error else math.inf
        for angle, (nats, error) in zip(degrees, known, strict=True)
    }


def _count(molecules: float) -> str:
    """Two digits of a number of molecules."""
    if not 1 <= molecules < 1e6:
        return f"{max(molecules, 1):.2g}"
    return str(int(float(f"{molecules:.1e}")))


def _reading(
    needed: dict[float, float],
    told: dict[float, tuple[float, float]],
    noiseless: float,
    invariant: bool,
    ratio: float,
) -> str:
    if invariant:
        return (
            "The prior cannot see rotations of z (or of whitened z): no number of molecules "
            "identifies its axes."
        )
    nats, error = told[45.0]
    if math.isnan(nats):
        least = f", and at least {_count(needed[45.0])} molecules are needed"
        return (
            f"Turning the axes by 45° costs {noiseless:.2g} nats a molecule without noise; what "
            "is left of it through the noise could not be computed"
            f"{least if math.isfinite(needed[45.0]) else ''}."
        )
    if nats <= SURE * error:
        return (
            f"Turning the axes by 45° costs {noiseless:.2g} nats a molecule without noise, but "
            f"less than {max(nats, 0) + SURE * error:.1g} through it: hardly any number of "
            "molecules will tell."
        )
    angle = min(needed)
    more = f", one by {angle:g}° from {_count(needed[angle])}"
    if angle == 45.0 or math.isinf(needed[angle]):
        more = ""
    return (
        f"Turning the axes by 45° costs {nats:.2g} nats a molecule ({noiseless:.2g} without "
        f"noise): it can be told, by {ratio:g} nats, from {_count(needed[45.0])} molecules "
        f"on{more}."
    )
