"""The results of a study for the terminal: costs, accuracies, and what may be said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from convnext.studies.results import FINISHED, Result
from convnext.studies.statistics import Estimate, Summary, correlate, summarise

Column = tuple[str, int, Any, Callable[[Summary], str]]


def print_study(results: Sequence[Result], console: Console) -> None:
    """Print a row per entry; a narrow terminal sees fewer columns."""
    summaries = summarise(results)
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
    """Return what a reader of the table must know."""
    seeds = len({result.seed for result in results})
    said = [
        f"{results[0].metric_label} is that of the last step on the validation images, over "
        f"{seeds} seed{'s'[: seeds != 1]}; ± is one standard deviation."
    ]
    if seeds > 1:
        said.append(
            "Differences are paired by seed; the brackets hold 95 % intervals (Student's t) over "
            "seeds, not over images."
        )
    if any(result.paper_top1 is not None for result in results):
        name = next(result.paper_name for result in results if result.paper_top1 is not None)
        whose = f"{name}, " if results[0].regime else ""
        said.append(
            f"The column paper is the paper's ({whose}ImageNet-1K), none of it measured here."
        )
    found = correlate(summarise(results))
    if found is not None:
        said.append(
            f"Rank correlation with the paper's accuracies: Spearman {found.spearman:+.2f}, "
            f"Kendall {found.kendall:+.2f} over {found.count} networks."
        )
    unfinished = sum(result.state != FINISHED for result in results)
    if unfinished:
        said.append(f"{unfinished} of {len(results)} runs are missing.")
    return "\n".join(said)


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
    on_road = summary.first.regime and summary.first.study == "roadmap"
    return summary.first.entry + (" (not kept)" if on_road and not summary.first.kept else "")


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


def _paper(summary: Summary) -> str:
    value = summary.first.paper_top1
    return "" if value is None else f"{value:.2f}"


# Header, the narrowest terminal that shows the column, alignment, and the cell of a summary.
COLUMNS: tuple[Column, ...] = (
    ("network", 0, "left", _name),
    ("what changes", 130, "left", lambda summary: summary.first.what),
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
