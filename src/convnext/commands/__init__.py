"""One module per verb of the command line: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, NoReturn

from rich.console import Console


class Parser(argparse.ArgumentParser):
    """An argument parser of the house: an example in the help, one line for a mistake."""

    def __init__(self, verb: str, *, description: str, example: str) -> None:
        super().__init__(
            prog=f"convnext {verb}",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument(
            "--json", action="store_true", help="print one JSON object as the last line"
        )

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with exit code 2."""
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def console(*, as_json: bool) -> Console:
    """Return where to print for people: standard error when standard output carries JSON."""
    stream = sys.stderr if as_json else sys.stdout
    # A pipe has no width: rows that can be searched beat rows that fit on a screen.
    width = None if stream.isatty() or "COLUMNS" in os.environ else 160
    return Console(file=stream, highlight=False, width=width)


def print_json(value: Any) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(value), flush=True)
