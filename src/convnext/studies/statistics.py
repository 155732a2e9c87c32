"""Statistics over seeds, as numbers and as a table.

Means, intervals, paired differences, and rank correlation with the paper.

Intervals are 95 percent Student's t intervals over seeds: they cover the variation of another seed
on the same validation images, not of other images. Comparisons are paired by seed, which determines
the order of the data and the augmentation of every image.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from convnext.studies.compare import FINISHED, Result

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `count` seeds; `std`, `low` and `high` are None for a single seed."""

    count: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference from another entry over their common seeds, in points."""

    to: str
    difference: Estimate
    p_value: float | None
    """The p-value of a two-sided paired t-test; None for a single seed."""
    words: str
    """"better", "worse", "no difference seen", "one seed", or "the same network"."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """An entry of a study, over its seeds."""

    first: Result
    """One of its rows, for the values common to all of them."""
    scores: Mapping[int, float]
    """The score of every finished seed, in percent."""
    states: Mapping[int, str]
    estimate: Estimate | None = None
    comparison: Comparison | None = None
    """The comparison with the entry that it departs from."""
    reasons: Sequence[str] = field(default_factory=tuple)


def summarize(results: Sequence[Result]) -> list[Summary]:
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


def estimate(
    values: Sequence[float], *, min_std: float = 0.0, minimum: float = 0.0, maximum: float = 100.0
) -> Estimate | None:
    """Return mean, standard deviation (at least `min_std`) and interval; None without values.

    The interval is cut at `minimum` and `maximum`, which no value can exceed; by default, those of
    percentages.
    """
    if not values:
        return None
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Estimate(count=1, mean=mean, std=None, low=None, high=None)
    from scipy import stats  # type: ignore[import-untyped]

    std = max(statistics.stdev(values), min_std)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * std / math.sqrt(count)
    low, high = max(mean - half, minimum), min(mean + half, maximum)
    return Estimate(count=count, mean=mean, std=std, low=low, high=high)


def compare(
    scores: Mapping[int, float],
    other: Mapping[int, float],
    *,
    to: str,
    num_val: int | None = None,
    same: bool = False,
) -> Comparison | None:
    """Compare two entries over their common seeds; None if there are none.

    Args:
        scores: Top-1 by seed.
        other: Top-1 by seed of the entry named `to`.
        to: The other entry.
        num_val: Number of validation images. Accuracies are multiples of one image, so the standard
            deviation is at least that of two rounded numbers: equal differences are not certain.
        same: Whether both are the same network with the same recipe.
    """
    differences = [scores[seed] - other[seed] for seed in sorted(scores.keys() & other.keys())]
    # Two numbers rounded to steps of s differ by an error of standard deviation s / sqrt(6).
    floor = 100 / num_val / math.sqrt(6) if num_val else 0.0
    difference = estimate(differences, min_std=floor, minimum=-100.0)
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
    """The rank correlation of our accuracies with the paper's."""

    spearman: float
    kendall: float
    count: int


def correlate(summaries: Sequence[Summary]) -> Correlation | None:
    """Return the rank correlation of our means with the paper's accuracies.

    None with fewer than three networks that have both, or if one of the two does not vary. Entries
    that share their runs count once.
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


Column = tuple[str, int, Any, Callable[[Summary], str]]


def print_study(results: Sequence[Result], console: Console) -> None:
    """Print one row per entry; narrow terminals get fewer columns."""
    summaries = summarize(results)
    columns = [
        column
        for column in COLUMNS
        if column[1] <= console.width and any(column[3](summary) for summary in summaries)
    ]
    table = Table(box=None, header_style="bold")
    for header, _, justify, _ in columns:
        header = header.format(score=results[0].metric_label)
        table.add_column(header, justify=justify, no_wrap=header != "what changes")
    group = summaries[0].first.group
    for summary in summaries:
        if summary.first.group != group:
            table.add_row()
        group = summary.first.group
        table.add_row(*(cell(summary) for *_, cell in columns))
    console.print(table)
    console.print(notes(results), style="dim", markup=False)


def notes(results: Sequence[Result]) -> str:
    """Return the notes below the table."""
    seeds = len({result.seed for result in results})
    said = [
        f"{results[0].metric_label} is that of the last step on the validation images, over "
        f"{seeds} seed{'s'[: seeds != 1]}; ± is one standard deviation.",
        *measured_on(results),
    ]
    if seeds > 1:
        said.append(
            "Differences are paired by seed; the brackets hold 95 % intervals (Student's t) over "
            "seeds, not over images."
        )
    if any(result.paper_top1 is not None for result in results):
        name = next(result.paper_name for result in results if result.paper_top1 is not None)
        whose = f"{name}, " if results[0].regime else ""
        said.append(f"The column paper has the paper's accuracies ({whose}ImageNet-1K), not ours.")
    found = correlate(summarize(results))
    if found is not None:
        said.append(
            f"Rank correlation with the paper's accuracies: Spearman {found.spearman:+.2f}, "
            f"Kendall {found.kendall:+.2f} over {found.count} networks."
        )
    unfinished = sum(result.state != FINISHED for result in results)
    if unfinished:
        said.append(f"{unfinished} of {len(results)} runs are missing.")
    return "\n".join(said)


def measured_on(results: Sequence[Result]) -> list[str]:
    """Return sentences with the images, split, precision and backend of the scores."""
    entries: dict[str, list[str]] = {}
    for result in results:
        if result.score is not None:
            words = result.conditions or "precision and backend were not recorded"
            own = entries.setdefault(words, [])
            own += [result.entry] * (result.entry not in own)
    if len(entries) < 2:
        return [f"Measured by training's own validation: {words}." for words in entries]
    return [
        f"Measured by training's own validation: {words} ({', '.join(names)})."
        for words, names in entries.items()
    ]


def shorten(value: float) -> str:
    """Return a count as 28.59 M or 4.46 G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def mean_and_std(estimate: Estimate | None) -> str:
    """Return "81.97 ± 0.06"."""
    if estimate is None:
        return ""
    return f"{estimate.mean:.2f}" + ("" if estimate.std is None else f" ± {estimate.std:.2f}")


def difference(summary: Summary) -> str:
    """Return "+0.50 [0.21, 0.79]"."""
    found = summary.comparison
    if found is None or found.words == "the same network":
        return ""
    d = found.difference
    return f"{d.mean:+.2f}" + ("" if d.low is None else f" [{d.low:+.2f}, {d.high:+.2f}]")


def _name(summary: Summary) -> str:
    is_roadmap = summary.first.regime and summary.first.study == "roadmap"
    return summary.first.entry + (" (not kept)" if is_roadmap and not summary.first.kept else "")


def _words(summary: Summary) -> str:
    lost = [state for state in summary.states.values() if state not in (FINISHED, "waiting")]
    if lost:
        return f"{len(lost)} {lost[0]}"
    if summary.estimate is None:
        return "not trained yet"
    return summary.comparison.words if summary.comparison else ""


def _count(name: str) -> Callable[[Summary], str]:
    def cell(summary: Summary) -> str:
        value = getattr(summary.first, name)
        return "" if value is None else shorten(value)

    return cell


def _speed(name: str) -> Callable[[Summary], str]:
    def cell(summary: Summary) -> str:
        value = getattr(summary.first, name)
        return "" if value is None else f"{value:,.0f}"

    return cell


def _megabytes(summary: Summary) -> str:
    value = summary.first.train_memory
    return "" if value is None else f"{value / 1e6:,.0f}"


def _changes(summary: Summary) -> str:
    """Return how a network differs, unless that repeats its name."""
    first = summary.first
    return "" if first.what == first.entry else first.what


def _paper(summary: Summary) -> str:
    value = summary.first.paper_top1
    return "" if value is None else f"{value:.2f}"


# Header, the narrowest terminal that shows the column, alignment, and the cell of a summary.
COLUMNS: tuple[Column, ...] = (
    ("network", 0, "left", _name),
    ("what changes", 130, "left", _changes),
    ("params", 90, "right", _count("params")),
    ("MACs", 70, "right", _count("macs")),
    ("train/s", 110, "right", _speed("train_images_per_s")),
    ("infer/s", 100, "right", _speed("infer_images_per_s")),
    ("train MB", 140, "right", _megabytes),
    ("{score} %", 0, "right", lambda summary: mean_and_std(summary.estimate)),
    ("difference", 80, "right", difference),
    ("", 60, "left", _words),
    ("paper", 75, "right", _paper),
)
