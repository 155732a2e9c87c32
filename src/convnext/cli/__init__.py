"""The command line: arguments in, a verb of `convnext.api` called, lines and an exit code out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from convnext import __version__
from convnext.cli.verbs import VERBS
from convnext.hardware.system import keep_freed_memory
from convnext.names import nearest
from convnext.training.faults import EXIT_AGAIN, EXIT_WHEN_LOST, InterruptedRun, LostProcessError

__all__ = ["VERBS", "main"]

USAGE = """\
usage: convnext VERB ...

ConvNeXt and its relatives: train, evaluate, predict.

{verbs}

  convnext VERB --help    shows a verb's options and an example
  convnext --version

Start with `convnext train`: it trains on a small bundled data set.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code.

    0, 2 for a mistake of the user's, 1 for a failed run, 75 for a run to be started again.
    """
    # Threads of OpenMP spin while they wait. Where anything else runs on the machine, a network on
    # two cores is then ten times slower (LOG.md). Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # When a process of a run is lost, the others' C++ would print pages before our one line.
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
    except BrokenPipeError:  # Whoever read our output has had enough, as `head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except InterruptedRun as error:
        # The others have nothing to add: neither words nor a code, which their launcher would take
        # for a failure of theirs.
        return _fail(str(error), code=EXIT_AGAIN) if error.speaks else 0
    except LostProcessError as error:
        if error.speaks:
            _fail(str(error))
        # The other end of every connection is gone: closing them in order could wait for ever.
        os._exit(EXIT_AGAIN)
    except ArithmeticError as error:  # A run that diverged is nobody's wrong option.
        return _fail(str(error), code=1)
    except (ValueError, OSError) as error:
        if os.environ.get("CONVNEXT_DEBUG"):
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    finally:
        EXIT_WHEN_LOST.reset(exits)


def _run(name: str, argv: list[str]) -> int:
    """Call the function of a verb with what the arguments say; print its result if asked to."""
    import json

    from convnext.cli.arguments import call_of
    from convnext.progress import console_of

    call = call_of(name, argv)
    out = console_of(True, stderr=call.as_json)
    result: Any = call.function(**call.arguments, progress=out)
    summary = getattr(result, "summary", None)
    if callable(summary):  # A stream of predictions: images are read and predicted here.
        result = summary()
        result.print(out)
    if call.as_json:
        told = getattr(result, "evaluation", result)  # Of scores, all that was measured.
        print(json.dumps(told.to_dict()), flush=True)
    return int(getattr(result, "exit_code", 0))


def _fail(message: str, *, code: int = 2) -> int:
    print(f"convnext: {' '.join(message.split())}", file=sys.stderr)
    return code
