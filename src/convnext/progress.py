"""The progress bar of long work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(
    title: str, total: int, console: Console | None
) -> Iterator[Callable[[int], None]]:
    """Show a bar on a console, None for no bar; call what this yields with how much was done."""
    with Progress(
        TextColumn(title),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=console is None,
    ) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda count: progress.advance(bar, count)
