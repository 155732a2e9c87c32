"""Helpers of the data set reports: read every item once, and print tables in one style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.data.threads import for_each

BAR = 24
"""Length of the longest bar in characters."""
MAX_ROWS = 60
"""Maximum number of classes in a table."""
T = TypeVar("T")
Job = TypeVar("Job")


def read_all(
    jobs: Sequence[Job], read: Callable[[Job], T], title: str, *, console: Console | None = None
) -> list[T]:
    """Return the result of `read` for every job, in order, with a few threads and a bar."""
    found: dict[int, T] = {}

    def read_one(number: int) -> None:
        found[number] = read(jobs[number])

    for_each(read_one, len(jobs), title, console=console)
    return [found[number] for number in range(len(jobs))]


def plain_table(first: str, *others: str) -> Table:
    """Return a table without lines: a column of names, shortened if needed, then numbers."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(first, overflow="ellipsis", max_width=30, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def class_table(columns: Sequence[str], rows: Sequence[tuple[str, float, Sequence[str]]]) -> Table:
    """Return a table with a row per class: its name, cells, and a bar for its number."""
    table = plain_table("class", *columns)
    table.add_column("")
    largest = max((value for _, value, _ in rows), default=0)
    for name, value, cells in rows[:MAX_ROWS]:
        table.add_row(escape(name), *cells, bar(value, largest))
    if len(rows) > MAX_ROWS:
        table.caption = f"the first {MAX_ROWS} of {len(rows):,} classes"
    return table


def bar(value: float, largest: float) -> str:
    """Return a bar that is longest for `largest`, and never empty for a value above 0."""
    return "█" * max(round(BAR * value / (largest or 1)), 1 if value else 0)


def print_notes(notes: Iterable[str], console: Console) -> None:
    """Print notes on how the data was read."""
    for note in notes:
        console.print(f"note: {note}", markup=False)


def list_sizes(sizes: Mapping[str, int]) -> str:
    """Return the most frequent sizes and the number of other sizes."""
    common = list(sizes.items())
    more = f", and {len(common) - 4:,} other sizes" if len(common) > 4 else ""
    return ", ".join(f"{size} ({count:,})" for size, count in common[:4]) + more


def print_numbered(lines: Iterable[str], console: Console) -> None:
    """Print numbered lines."""
    for number, line in enumerate(lines, 1):
        console.print(f" {number} {line}", markup=False, soft_wrap=True)
