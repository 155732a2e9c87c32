"""The console that commands print to, and the progress bar for loops over images."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from convnext.names import printable

Item = TypeVar("Item")


class _Printable:
    """A renderable whose text is printable."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text), style)


class _PrintableHook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Printable(renderable) for renderable in renderables]


def safe_console(console: Console) -> Console:
    """Make a console print control characters as escapes, and return it."""
    console.push_render_hook(_PrintableHook())
    return console


def console_of(progress: bool | Console, *, stderr: bool = False) -> Console:
    """Return the console that a command prints to.

    Args:
        progress: True for standard output, False for no output, or a console, which is returned.
        stderr: Use standard error instead.

    Raises:
        TypeError: If `progress` is anything else.
    """
    if isinstance(progress, Console):
        return progress
    if not isinstance(progress, bool):
        raise TypeError(f"progress is True, False or a rich Console, not {progress!r}")
    stream = sys.stderr if stderr else sys.stdout
    # A pipe has no width; wide rows stay on one line, so that they can be searched.
    width = None if stream.isatty() or "COLUMNS" in os.environ else 160
    return safe_console(Console(file=stream, highlight=False, width=width, quiet=not progress))


class _Lasting:
    """A text stream to which writing never fails."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.is_closed = False
        """Whether its reader, or the terminal, is gone."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if self.is_closed:
            return
        try:
            act()
        except OSError as error:  # A full disk may have space again for the next line.
            self.is_closed = error.errno in (errno.EPIPE, errno.EIO, errno.EBADF)


@contextmanager
def lasting_output(console: Console) -> Iterator[None]:
    """Let printing to a console never fail in the block; `is_closed` tells why nothing is shown.

    Otherwise, rich ends the process when the reader of its output is gone, as after `| head`.
    """
    before = console.file
    console.file = _Lasting(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        console.file = before


def is_closed(console: Console) -> bool:
    """Whether the reader of a console is gone, within `lasting_output`."""
    return isinstance(console.file, _Lasting) and console.file.is_closed


@contextmanager
def progress_bar(
    title: str, total: int, console: Console | None
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on `console`, if it is a terminal or a notebook, during the block.

    Elsewhere, as in a pipe or a log file, even a bar that is removed would leave an empty line.

    Yields:
        A callback that takes the number of images done.
    """
    is_shown = console is not None and (console.is_terminal or console.is_jupyter)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=console is None or console.quiet or not is_shown,
    ) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda count: progress.advance(bar, count)


def counted(items: Iterable[Item], advance: Callable[[int], None]) -> Iterator[Item]:
    """Yield items, and call `advance` after each one."""
    for item in items:
        yield item
        advance(1)


def notes(console: Console | None) -> Callable[[str], None]:
    """Return a function that prints a line above the bar, or does nothing without a console."""
    if console is None or console.quiet:
        return lambda _: None
    return lambda line: console.print(line, style="dim", markup=False, highlight=False)
