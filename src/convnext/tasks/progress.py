"""The progress bar of everything that goes through images one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(
    title: str, total: int, console: Console | None
) -> Iterator[Callable[[int], None]]:
    """Show a bar on `console`, where there is one, while the block lasts.

    Yields:
        What to call with the number of images that were dealt with.
    """
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=console is None,
    ) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda count: progress.advance(bar, count)
