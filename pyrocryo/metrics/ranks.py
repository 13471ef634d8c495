"""Models compared over seeds and metrics: paired differences, and groups that do not differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import mannwhitneyu, t, wilcoxon

from pyrocryo.errors import InputError

__all__ = ["PairedDifference", "RankGroups", "paired_differences", "rank_groups"]

DRAWS = 10_000  # of the bootstrap
LOWER = (
    "angle_deg", "pose_error_deg", "pose_error_frame_deg", "pose_error_given_deg", "pose_flips",
    "pose_leak", "shift_error_angstroms",
)  # fmt: skip


@dataclass(frozen=True)
class PairedDifference:
    """Differences `a - b` over seeds.

    Attributes:
        mean: Their mean.
        sd: Their standard deviation over seeds.
        interval: 95 % interval of the mean, by Student's t.
        bootstrap: 95 % interval of the mean, percentiles of means over seeds redrawn.
        wins_a: Seeds where `a` is larger.
        wins_b: Seeds where `b` is larger.
        p: Of Wilcoxon's signed-rank test, two-sided; 1 without a difference. Below 6 seeds it
            cannot reach .05.
        seeds: How many pairs were compared (those with a NaN are left out).
    """

    mean: float
    sd: float
    interval: tuple[float, float]
    bootstrap: tuple[float, float]
    wins_a: int
    wins_b: int
    p: float
    seeds: int


@dataclass(frozen=True)
class RankGroups:
    """Ranks of models (1 is best; models of one group share the mean of their ranks).

    Attributes:
        ranks: Metric → model → rank.
        groups: Metric → groups of models, best first.
        p: Metric → (model, model) → p, corrected for all pairs of the metric (Holm).
        mean_rank: Model → mean rank over metrics.
    """

    ranks: dict[str, dict[str, float]]
    groups: dict[str, list[list[str]]]
    p: dict[str, dict[tuple[str, str], float]]
    mean_rank: dict[str, float]


def paired_differences(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, seed: int = 0
) -> PairedDifference:
    """How much larger `a` is than `b`, seed by seed.

    Args:
        a: A metric's values `(S,)`, one a seed.
        b: `(S,)`, of the same seeds in the same order.
        seed: Draws the bootstrap.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"a and b: expected the same seeds (S,), got {a.shape} and {b.shape}")
    difference = (a - b)[np.isfinite(a - b)]
    n = len(difference)
    if n < 2:
        raise InputError(f"a and b: expected at least 2 seeds with finite values, got {n}")
    mean, sd = difference.mean(), difference.std(ddof=1)
    half = t.ppf(0.975, n - 1) * sd / np.sqrt(n)
    redrawn = np.random.default_rng(seed).choice(difference, (DRAWS, n)).mean(axis=1)
    low, high = np.quantile(redrawn, [0.025, 0.975])
    return PairedDifference(
        float(mean),
        float(sd),
        (float(mean - half), float(mean + half)),
        (float(low), float(high)),
        int((difference > 0).sum()),
        int((difference < 0).sum()),
        _signed_rank(difference),
        n,
    )


def rank_groups(
    models: Mapping[str, Mapping[str, Sequence[float] | np.ndarray]],
    *,
    lower: Sequence[str] = LOWER,
    paired: bool = True,
    alpha: float = 0.05,
) -> RankGroups:
    """Ranks models on every metric, those that do not differ sharing a rank, and averages.

    Models are ordered by their means. The best opens a group, and those after it join as long as
    they do not differ significantly from the group's first; the next opens a new group. Tests are
    Wilcoxon's on differences of the same seeds (NaNs left out), or Mann and Whitney's, corrected
    by Holm for all pairs of models within a metric; on fewer than 6 seeds Wilcoxon's cannot reach
    .05. (After the comparison of models over metrics in Klindt et al. 2020; the grouping by tests
    is ours.)

    Args:
        models: Model → metric → values `(S,)`, one a seed (``per_seed`` of a table). Metrics that
            not every model has, with two finite values at least, are left out.
        lower: Metrics of which less is better; without it those of
            :func:`pyrocryo.metrics.report`.
        paired: Whether the models' seeds are the same, in the same order.
        alpha: Level of the tests.
    """
    if len(models) < 2:
        raise InputError(f"models: expected at least 2, got {len(models)}")
    if not 0 < alpha < 1:
        raise InputError(f"alpha: expected a number in (0, 1), got {alpha}")
    names = list(models)
    ranks, groups, p = {}, {}, {}
    for metric in models[names[0]]:
        values = {m: np.asarray(models[m].get(metric, ()), dtype=np.float64) for m in names}
        lengths = {len(v) for v in values.values()}
        if 0 in lengths:  # not every model has it
            continue
        if paired and len(lengths) > 1:
            raise InputError(f"models: {metric}: expected the same seeds, got {sorted(lengths)}")
        if paired:  # means and tests over the same seeds
            sound = np.isfinite(list(values.values())).all(axis=0)
            values = {m: v[sound] for m, v in values.items()}
        if min(np.isfinite(v).sum() for v in values.values()) < 2:
            continue
        test = _paired if paired else _unpaired
        pairs = list(combinations(names, 2))
        corrected = _holm([test(values[one], values[other]) for one, other in pairs])
        p[metric] = dict(zip(pairs, corrected, strict=True))
        sign = 1 if metric in lower else -1
        order = sorted(names, key=lambda m: sign * np.nanmean(values[m]))  # noqa: B023
        groups[metric] = _grouped(order, p[metric], alpha)
        ranks[metric] = _ranks(groups[metric])
    if not ranks:
        raise InputError("models: no metric has two finite values for every model")
    mean = {m: float(np.mean([of_metric[m] for of_metric in ranks.values()])) for m in names}
    return RankGroups(ranks, groups, p, mean)


def _grouped(
    order: list[str], p: Mapping[tuple[str, str], float], alpha: float
) -> list[list[str]]:
    groups: list[list[str]] = []
    for model in order:
        first = groups[-1][0] if groups else model
        between = p.get((first, model), p.get((model, first), 1.0))
        if groups and between >= alpha:
            groups[-1].append(model)
        else:
            groups.append([model])
    return groups


def _ranks(groups: list[list[str]]) -> dict[str, float]:
    ranks, before = {}, 0
    for group in groups:
        ranks |= dict.fromkeys(group, before + (len(group) + 1) / 2)
        before += len(group)
    return ranks


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction."""
    order = np.argsort(p)
    factor = np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(factor * np.asarray(p)[order]), 1)
    return corrected.tolist()


def _paired(a: np.ndarray, b: np.ndarray) -> float:
    return _signed_rank((a - b)[np.isfinite(a - b)])


def _unpaired(a: np.ndarray, b: np.ndarray) -> float:
    return float(mannwhitneyu(a[np.isfinite(a)], b[np.isfinite(b)]).pvalue)


def _signed_rank(difference: np.ndarray) -> float:
    difference = difference[difference != 0]  # the test is exact without them
    if not len(difference):
        return 1.0
    return float(wilcoxon(difference).pvalue)
