"""What several seeds allow to say: means, intervals, paired differences, rank correlation.

Intervals are Student's, 95 percent, over seeds: they say what another seed would do on the same
validation images, and not what other images would. Comparisons are paired by seed, which fixes the
order of the data and the augmentation of every image.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from convnext.studies.results import FINISHED, Result

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `count` seeds; `std`, `low` and `high` are None for a single one."""

    count: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference to another entry over the seeds that both have, in points."""

    to: str
    difference: Estimate
    p_value: float | None
    """Of a two-sided paired t-test; None for a single seed."""
    words: str
    """"better", "worse", "no difference seen", "one seed", or "the same network"."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """An entry of a study, over its seeds."""

    first: Result
    """One of its rows, for what all of them share."""
    scores: Mapping[int, float]
    """Of every finished seed, in percent."""
    states: Mapping[int, str]
    estimate: Estimate | None = None
    comparison: Comparison | None = None
    """With the entry that it departs from."""
    reasons: Sequence[str] = field(default_factory=tuple)


def summarise(results: Sequence[Result]) -> list[Summary]:
    """Return a summary of every entry, in the order of the table."""
    by_entry: dict[str, list[Result]] = {}
    for result in results:
        by_entry.setdefault(result.entry, []).append(result)
    scores = {entry: _scores(rows) for entry, rows in by_entry.items()}
    summaries = []
    for entry, rows in by_entry.items():
        first = rows[0]
        other = scores.get(first.departs_from)
        summaries.append(
            Summary(
                first=first,
                scores=scores[entry],
                states={row.seed: row.state for row in rows},
                estimate=estimate(list(scores[entry].values())),
                comparison=None
                if other is None
                else compare(
                    scores[entry],
                    other,
                    to=first.departs_from,
                    num_val=first.num_val,
                    same=first.runs_as == by_entry[first.departs_from][0].runs_as,
                ),
                reasons=tuple(f"seed {row.seed}: {row.reason}" for row in rows if row.reason),
            )
        )
    return summaries


def estimate(values: Sequence[float], *, least_std: float = 0.0) -> Estimate | None:
    """Return mean, standard deviation (at least `least_std`) and interval; None of nothing."""
    if not values:
        return None
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Estimate(count=1, mean=mean, std=None, low=None, high=None)
    from scipy import stats  # type: ignore[import-untyped]

    std = max(statistics.stdev(values), least_std)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * std / math.sqrt(count)
    return Estimate(count=count, mean=mean, std=std, low=mean - half, high=mean + half)


def compare(
    scores: Mapping[int, float],
    other: Mapping[int, float],
    *,
    to: str,
    num_val: int | None = None,
    same: bool = False,
) -> Comparison | None:
    """Compare two entries over the seeds that both have; None where there are none.

    Args:
        scores: Top-1 by seed.
        other: Top-1 by seed of the entry named `to`.
        to: What the comparison is with.
        num_val: Validation images. Accuracies come in steps of one image: a spread below that of
            two rounded numbers is taken as that, so that equal differences are no certainty.
        same: Whether both are the same network under the same recipe.
    """
    differences = [scores[seed] - other[seed] for seed in sorted(scores.keys() & other.keys())]
    # Two numbers rounded to steps of s differ by an error of standard deviation s / sqrt(6).
    floor = 100 / num_val / math.sqrt(6) if num_val else 0.0
    difference = estimate(differences, least_std=floor)
    if difference is None:
        return None
    p_value = None
    if same:
        words = "the same network"
    elif difference.low is None or difference.high is None:
        words = "one seed"
    else:
        p_value = _p_value(difference)
        seen = difference.low > 0 or difference.high < 0
        words = ("better" if difference.mean > 0 else "worse") if seen else "no difference seen"
    return Comparison(to=to, difference=difference, p_value=p_value, words=words)


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """How far two staircases rank the same entries alike."""

    spearman: float
    kendall: float
    count: int


def correlate(summaries: Sequence[Summary]) -> Correlation | None:
    """Return the rank correlation of our means with the paper's accuracies.

    None with fewer than three networks that have both, or where one of the two does not vary.
    Entries that share their runs with another count once.
    """
    from scipy import stats

    pairs = [
        (s.estimate.mean, s.first.paper_top1)
        for s in summaries
        if s.estimate is not None
        and s.first.paper_top1 is not None
        and s.first.runs_as == s.first.entry
    ]
    ours, papers = [[pair[i] for pair in pairs] for i in range(2)]
    if len(pairs) < 3 or len(set(ours)) == 1 or len(set(papers)) == 1:
        return None
    return Correlation(
        spearman=float(stats.spearmanr(ours, papers).statistic),
        kendall=float(stats.kendalltau(ours, papers).statistic),
        count=len(pairs),
    )


def _scores(rows: Sequence[Result]) -> dict[int, float]:
    return {row.seed: row.score for row in rows if row.state == FINISHED and row.score is not None}


def _p_value(difference: Estimate) -> float:
    from scipy import stats

    assert difference.std is not None
    if difference.std == 0:
        return 0.0 if difference.mean else 1.0
    t = difference.mean / (difference.std / math.sqrt(difference.count))
    return float(2 * stats.t.sf(abs(t), difference.count - 1))
