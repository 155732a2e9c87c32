"""The command line: parses arguments, calls a function of `convnext.api`, returns an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from convnext import __version__
from convnext.cli.verbs import VERBS
from convnext.hardware.system import keep_freed_memory
from convnext.names import nearest, printable
from convnext.training.faults import (
    EXIT_AGAIN,
    EXIT_WHEN_LOST,
    InterruptedRun,
    LostProcessError,
    ReportError,
)

__all__ = ["VERBS", "main"]

USAGE = """\
usage: convnext VERB ...

Train, evaluate, use and export ConvNeXt and related networks.

{verbs}

  convnext VERB --help    shows a verb's options and an example
  convnext --version

To start, run `convnext train`: it trains on a small bundled data set.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code.

    The code is 0 on success, 2 for a usage error, 1 for a failed run, and 75 for an interrupted run
    that should be started again.
    """
    # With `>&-` there is no stream, and the next file that is opened would take its place.
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    # OpenMP threads spin while they wait. If anything else runs on a machine with two cores, that
    # makes a network ten times slower (LOG.md). torch reads the variable on its first import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # If a process of a run dies, C++ code in the others would print pages before our one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    keep_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, VERBS)) + 2
        lines = (f"  {name:<{width}}{verb.summary}" for name, verb in VERBS.items())
        print(USAGE.format(verbs="\n".join(lines)), end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        print(f"convnext {__version__}")
        return 0
    if name not in VERBS:
        return _fail(f"there is no verb {name!r}{nearest(name, VERBS)}")
    exits = EXIT_WHEN_LOST.set(True)
    try:
        return _run(name, rest)
    except BrokenPipeError:  # The reader of our output closed it, as `head` does.
        return 141
    except InterruptedRun as error:
        # Only one process reports it. The launcher would take an exit code of the others for
        # a failure.
        return _fail(str(error), code=EXIT_AGAIN) if error.should_print else 0
    except LostProcessError as error:
        if error.should_print:
            _fail(str(error))
        # The peers of every connection are gone: a regular shutdown could wait forever.
        os._exit(EXIT_AGAIN)
    except (ArithmeticError, ReportError) as error:  # Not usage errors: a run failed.
        if os.environ.get("CONVNEXT_DEBUG"):
            raise
        return _fail(_as_given(error, rest), code=1)
    except (ValueError, OSError) as error:
        if os.environ.get("CONVNEXT_DEBUG"):
            raise
        return _fail(_as_given(error, rest))
    except KeyboardInterrupt:
        return _fail("stopped", code=130)
    finally:
        EXIT_WHEN_LOST.reset(exits)
        _leave_closed_streams()


def _run(name: str, argv: list[str]) -> int:
    """Call the function of a verb with the parsed arguments; with --json, print its result."""
    import json

    from convnext.api.settings import ON_COMMAND_LINE
    from convnext.cli.arguments import call_of
    from convnext.progress import console_of

    call = call_of(name, argv)
    out = console_of(True, stderr=call.as_json)
    here = ON_COMMAND_LINE.set(True)
    try:
        result: Any = call.function(**call.arguments, progress=out)
    finally:
        ON_COMMAND_LINE.reset(here)
    summary = getattr(result, "summary", None)
    if callable(summary):  # A stream of predictions reads and predicts the images here.
        result = summary()
        result.print(out)
    if call.as_json:
        full = getattr(result, "evaluation", result)  # All measurements, not only the scores.
        print(json.dumps(full.to_dict()), flush=True)
    return int(getattr(result, "exit_code", 0))


def _as_given(error: Exception, argv: Sequence[str]) -> str:
    """Return an error's message with the short options that the user wrote."""
    from convnext.api.settings import as_given
    from convnext.cli.parser import option_name

    names = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
    return as_given(str(error), names, option_name) if names else str(error)


def _fail(message: str, *, code: int = 2) -> int:
    # Nobody may be left to read it.
    with suppress(OSError):
        line = f"convnext: {printable(' '.join(message.split()))}"
        print(line, file=sys.stderr, flush=True)
    return code


def _leave_closed_streams() -> None:
    """Let what cannot be written to a closed stream go, so that it does not change the exit code.

    On exit, Python would try again, and report the failure.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
