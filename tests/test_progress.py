"""Progress bars are for terminals; files and pipes get text only."""

from __future__ import annotations

import io

from rich.console import Console

from convnext.progress import progress_bar


def printed(console: Console, stream: io.StringIO) -> str:
    with progress_bar("predicting", 2, console) as advance:
        advance(1)
        console.print("a line")
        advance(1)
    return stream.getvalue()


def test_a_bar_leaves_nothing_in_a_file() -> None:
    stream = io.StringIO()
    assert printed(Console(file=stream, width=80), stream) == "a line\n"


def test_a_terminal_shows_the_bar() -> None:
    stream = io.StringIO()
    text = printed(Console(file=stream, width=80, force_terminal=True), stream)
    assert "predicting" in text
    assert "2/2" in text
