"""The command line: a table of verbs. A verb's module is imported when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from convnext import __version__
from convnext.hardware.allocator import keep_freed_memory
from convnext.names import nearest
from convnext.training.faults import EXIT_AGAIN, InterruptedRun, LostProcessError

VERBS = {
    "train": "train a network on a folder of images, or on the built-in digits",
    "evaluate": "measure a trained network on a data set",
    "predict": "say what is on images",
    "roadmap": "the road from ResNet-50 to ConvNeXt, counted, or walked on your data",
    "compare": "networks side by side under one recipe: accuracy, cost, measured speed",
    "benchmark": "how fast networks are here, beside timm's form and the machine's limits",
    "export": "write a network as ONNX, OpenVINO or pt2, proven on real images",
    "convert": "turn a checkpoint into another layout",
    "models": "the networks, and the weights that are published for them",
    "data": "look at a data set and report what is wrong with it",
}

USAGE = """\
usage: convnext VERB ...

ConvNeXt and its relatives: train, evaluate, predict.

{verbs}

  convnext VERB --help    shows a verb's options and an example
  convnext --version

Start with `convnext train`: it trains on a small data set that comes along.
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
        print(
            USAGE.format(verbs="\n".join(f"  {v:<11}{text}" for v, text in VERBS.items())), end=""
        )
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        print(f"convnext {__version__}")
        return 0
    if verb not in VERBS:
        return _fail(f"there is no verb {verb!r}{nearest(verb, VERBS)}")
    try:
        result: int = importlib.import_module(f"convnext.commands.{verb}").run(rest)
        return result
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


def _fail(message: str, *, code: int = 2) -> int:
    print(f"convnext: {' '.join(message.split())}", file=sys.stderr)
    return code
