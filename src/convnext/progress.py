"""Where verbs print, and the progress bar of everything that goes through images one by one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def console_of(progress: bool | Console, *, stderr: bool = False) -> Console:
    """Return the console that a verb prints to.

    Args:
        progress: True for standard output, False for nowhere, or a console, which is returned.
        stderr: Take standard error instead.
    """
    if isinstance(progress, Console):
        return progress
    stream = sys.stderr if stderr else sys.stdout
    # A pipe has no width: rows that can be searched beat rows that fit on a screen.
    width = None if stream.isatty() or "COLUMNS" in os.environ else 160
    return Console(file=stream, highlight=False, width=width, quiet=not progress)


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
        disable=console is None or console.quiet,
    ) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda count: progress.advance(bar, count)


def counted(items: Iterable[Item], advance: Callable[[int], None]) -> Iterator[Item]:
    """Yield items, and tell `advance` of each one when its turn is over."""
    for item in items:
        yield item
        advance(1)


def notes(console: Console | None) -> Callable[[str], None]:
    """Return what prints a line above the bar, where there is a console."""
    if console is None or console.quiet:
        return lambda _: None
    return lambda line: console.print(line, style="dim", markup=False, highlight=False)
