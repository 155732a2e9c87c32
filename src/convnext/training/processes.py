"""The other processes of a run on several devices of one machine: started, watched and ended.

A run on several devices of one machine starts its other processes itself. They run only the
training, never the user's script, so that it works in a notebook too. If one of them fails, the
first process raises an exception; none is left over, and nothing ends the first one.
"""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from convnext.hardware.devices import Ranks
from convnext.hardware.system import keep_freed_memory
from convnext.training.faults import (
    BEAT_SECONDS,
    EXIT_AGAIN,
    EXIT_WHEN_LOST,
    SILENCE_SECONDS,
    DivergedError,
    InterruptedRun,
    LostProcessError,
    is_lost_process,
    lost_message,
)

HOST = "127.0.0.1"
# Paths are needed before anything can be imported.
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from convnext.training.processes import run_job; run_job()"
)
_KINDS: Mapping[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, TypeError, OSError, DivergedError)
}
"""Errors of another process that this one raises as they are; others are a RuntimeError."""


@contextmanager
def other_processes(count: int, job: Callable[[], object]) -> Iterator[TCPStore]:
    """Start the other processes of a run on this machine; none is left after the block.

    Args:
        count: The number of processes, this one included.
        job: What each of the others calls; it is pickled.

    Yields:
        The store by which all processes can connect.

    Raises:
        ValueError: If the job cannot be pickled.
        LostProcessError: If one of the processes died.
        Exception: The error of another process that failed first.
    """
    pickled = _pickled(job)
    store = TCPStore(HOST, 0, None, True, wait_for_workers=False)
    os.environ |= {"MASTER_ADDR": HOST, "MASTER_PORT": str(store.port)}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(count)}
    found: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for rank in range(1, count):
            found[rank] = _start(rank)
        for process in found.values():
            _send(process, pickled)
        _wait_until_ready(found, store)
        for process in found.values():
            threading.Thread(target=_abort_when_lost, args=(process,), daemon=True).start()
        yield store
        for process in found.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(SILENCE_SECONDS)
    except InterruptedRun:
        for process in found.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(SILENCE_SECONDS)
        raise
    except Exception as error:
        if not (isinstance(error, LostProcessError) or is_lost_process(error)):
            raise
        first = _first_error(found, store)
        if first is None:
            raise
        raise first from error
    finally:
        for process in found.values():
            process.kill()
            process.wait()
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()


def run_job() -> None:
    """Run the job that another process sent on standard input, as one of the ranks of its run."""
    EXIT_WHEN_LOST.set(True)
    keep_freed_memory()
    env = os.environ
    store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), None, False)
    gone = threading.Event()
    try:
        job = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_leave_with_parent, args=(gone,), daemon=True).start()
        job()
    except InterruptedRun:
        pass  # The first process reports it.
    except BaseException as error:
        lost = isinstance(error, LostProcessError) or is_lost_process(error)
        if not lost:
            kinds = [kind for kind in type(error).__mro__ if kind.__name__ in _KINDS]
            kind = kinds[0] if kinds else type(error)
            report = [kind.__name__, str(error), traceback.format_exc()]
            with suppress(RuntimeError):  # The first process, which holds the store, has exited.
                store.set(f"failed/{env['LOCAL_RANK']}", json.dumps(report))
        elif getattr(error, "should_print", False) or gone.wait(BEAT_SECONDS):
            text = str(error) if isinstance(error, LostProcessError) else lost_message(0, _ranks())
            print(f"convnext: {text}", file=sys.stderr, flush=True)
        # The peers of every connection are gone: a regular shutdown could wait forever.
        os._exit(EXIT_AGAIN if lost else 1)


def say_ready(store: TCPStore) -> None:
    """Tell the first process that this one is ready to connect, and wait until all are."""
    store.set(f"ready/{os.environ['LOCAL_RANK']}", "")
    store.wait(["go"], timedelta(days=1))


def _ranks() -> Ranks:
    return Ranks(int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]))


def _pickled(job: Callable[[], object]) -> bytes:
    """Pickle a job.

    Raises:
        ValueError: If that is impossible, or needs a class that only the user's script has.
    """
    try:
        pickled = pickle.dumps(job)
    except Exception as error:
        raise ValueError(
            "training on several devices sends the network to other processes, but it cannot be "
            f"pickled: {error}"
        ) from error
    texts = [value for _, value, _ in pickletools.genops(pickled) if isinstance(value, str)]
    if "__main__" in texts:
        own = texts[texts.index("__main__") + 1]
        raise ValueError(
            f"the network uses {own} of this script or notebook, which the other processes of the "
            "run do not execute; move it to a module that they can import, such as networks.py, or "
            "train on one device"
        )
    return pickled


def _start(rank: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, json.dumps(sys.path)],
        env=os.environ | {"LOCAL_RANK": str(rank)},
        stdin=subprocess.PIPE,
    )


def _send(process: subprocess.Popen[bytes], pickled: bytes) -> None:
    """Send a job; standard input stays open, so that its end says that this process has exited."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # It has died, which is found out below.
        process.stdin.write(pickled)
        process.stdin.flush()


def _wait_until_ready(found: Mapping[int, subprocess.Popen[bytes]], store: TCPStore) -> None:
    """Wait until all processes are ready to connect.

    Raises:
        LostProcessError: If one of them died.
        Exception: The error of one that failed.
    """
    while not store.check([f"ready/{rank}" for rank in found]):
        if ended := [rank for rank, process in found.items() if process.poll() is not None]:
            lost = LostProcessError(lost_message(ended[0], Ranks(0, len(found) + 1)))
            raise _first_error(found, store) or lost
        time.sleep(0.02)
    store.set("go", "")


def _first_error(found: Mapping[int, subprocess.Popen[bytes]], store: TCPStore) -> Exception | None:
    """Return why the other processes failed, once one of them has ended; None if none has."""
    end = time.monotonic() + 2 * BEAT_SECONDS
    count = len(found) + 1
    while time.monotonic() < end and all(p.poll() in (None, EXIT_AGAIN) for p in found.values()):
        time.sleep(0.02)
    for rank in found:
        if store.check([f"failed/{rank}"]):
            name, text, trace = json.loads(store.get(f"failed/{rank}"))
            kind = _KINDS.get(name)
            own = text if kind is not None else f"{name}: {text}"
            error = (kind or RuntimeError)(f"process {rank} of the {count} of this run: {own}")
            error.add_note(f"In process {rank}:\n{trace}")
            return error
    for rank, process in found.items():
        code = process.poll()
        if code not in (None, 0, EXIT_AGAIN):
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            message = f"{lost_message(rank, Ranks(0, count))} (it ended with {how})"
            return LostProcessError(message)
    return None


def _abort_when_lost(process: subprocess.Popen[bytes]) -> None:
    """End the collectives of this process once another one has failed.

    Gloo's fail by themselves. NCCL's would wait for minutes, and torch would then end the process.
    """
    if process.wait() and dist.is_initialized() and dist.get_backend() == "nccl":
        from torch.distributed.distributed_c10d import _abort_process_group

        time.sleep(BEAT_SECONDS)  # The error of a collective says more, if there is one.
        with suppress(RuntimeError, ValueError, AssertionError):  # The group has ended.
            _abort_process_group()


def _leave_with_parent(gone: threading.Event) -> None:
    """Exit when the first process has exited, in case that nothing else notices it."""
    # Not through sys.stdin, whose lock a waiting thread would hold while the interpreter exits.
    while os.read(0, 4096):
        pass
    gone.set()
    time.sleep(5 * BEAT_SECONDS)
    print(f"convnext: {lost_message(0, _ranks())}", file=sys.stderr, flush=True)
    os._exit(EXIT_AGAIN)
