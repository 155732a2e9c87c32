"""The faults of a long run, classified by how the run responds to them, and its heartbeat.

If one process stops responding, all leave with one message: a collective may wait many minutes for
a dead process, especially on GPUs. The heartbeat runs in a separate thread over its own small
store, and ends the waiting processes.

Torch is imported only where it is needed: the command line catches these errors and starts without
torch.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from convnext.hardware.devices import Ranks

# "Temporary failure" of sysexits.h: the same command, started again, resumes the run.
EXIT_AGAIN = 75

EXIT_WHEN_LOST: ContextVar[bool] = ContextVar("exit_when_lost", default=False)
"""Whether this process exits at once when another process of its run is lost.

The command line sets it, because a collective may wait many minutes for a lost process. A program
that calls this package is never ended by it: there, the collective raises after its own timeout.
"""

_NO_MEMORY = re.compile(
    r"can't allocate memory|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED|MPS backend out of memory"
)
_LOST_PROCESS = re.compile(
    r"(?:closed|reset) by \w+|connection (?:was )?(?:closed|refused|reset)|broken pipe|"
    r"remote process|socket timeout|timed out waiting|NCCL|heartbeat|gloo",
    re.IGNORECASE,
)


class DivergedError(ArithmeticError):
    """The loss or a weight is no longer finite."""


class InterruptedRun(Exception):  # noqa: N818 - nothing failed, so this is not an error
    """A signal asked the run to end; its state is saved."""

    def __init__(self, message: str, *, should_print: bool = True) -> None:
        super().__init__(message)
        self.should_print = should_print
        """Whether this process reports it to the user."""


class LostProcessError(RuntimeError):
    """Another process of the run is lost, and this one cannot continue without it."""

    def __init__(self, message: str, *, should_print: bool = True) -> None:
        super().__init__(message)
        self.should_print = should_print
        """Whether this process, of all that detect the loss, reports it to the user."""


class ReportError(RuntimeError):
    """Training is complete and saved, but its final evaluation or its report failed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device ran out of memory. On a CPU, torch raises a plain RuntimeError."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))
    )


def is_single_value(error: BaseException) -> bool:
    """Whether a batch norm in training got one value per channel, for which torch has no name."""
    return isinstance(error, ValueError) and "more than 1 value per channel" in str(error)


def is_lost_worker(error: BaseException) -> bool:
    """Whether a process of the data loader died, for example by the out-of-memory killer."""
    # An error that a worker raised names the worker too, but not its process id.
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def is_lost_process(error: BaseException) -> bool:
    """Whether a collective failed because another process is lost."""
    import torch

    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and bool(_LOST_PROCESS.search(str(error)))
    )


def is_full_disk(error: BaseException) -> bool:
    """Whether a file could not be written on a full disk. Safetensors has its own error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    from safetensors import SafetensorError

    text = str(error)
    return isinstance(error, SafetensorError) and bool(
        re.search(r"os error (28|122|27)\b|No space left|quota", text)
    )


BEAT_SECONDS = 2.0
# Long enough for a machine that swaps, short enough that all processes leave within a minute.
SILENCE_SECONDS = 30.0


class Heartbeat:
    """Send heartbeats and watch the other processes in the block; a single process does nothing.

    Args:
        ranks: The processes of the run.
        silence: Seconds without a heartbeat after which a process counts as lost.
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self.ranks, self.silence = ranks, silence
        self._exits = EXIT_WHEN_LOST.get()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._round = time.monotonic()
        if ranks.count > 1:
            self._store = _shared_store(ranks)

    def __enter__(self) -> Heartbeat:
        if self.ranks.count > 1:
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()
            threading.Thread(target=self._watch, name="watch", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is None:
            return
        in_order = kind is None or issubclass(kind, InterruptedRun)
        self._end.set()
        self._thread.join(timeout=2 * BEAT_SECONDS)
        # A process that failed notifies the others, which would wait for it forever.
        key = f"left/{self.ranks.rank}" if in_order else "lost"
        with suppress(RuntimeError):  # The first process, which holds the store, may have exited.
            self._store.set(key, f"{self.ranks.rank}")
            if self.ranks.is_first and in_order:
                others = [f"left/{rank}" for rank in range(1, self.ranks.count)]
                self._store.wait(others, timedelta(seconds=self.silence))

    def lost(self, cause: BaseException) -> LostProcessError:
        """Return the error for a collective that failed; only one process should print it."""
        what = str(cause).strip().partition("\n")[0][:200]
        try:
            self._store.check(["lost"])
            reporter = 0
        except RuntimeError:
            reporter = 1
        message = f"{lost_message(None, self.ranks)} ({what})"
        return LostProcessError(message, should_print=self.ranks.rank == reporter)

    def _run(self) -> None:
        last = dict.fromkeys(range(self.ranks.count), (b"", time.monotonic()))
        count = 0
        while not self._end.wait(BEAT_SECONDS):
            count += 1
            self._round = time.monotonic()
            try:
                self._store.set(f"beat/{self.ranks.rank}", f"{count}")
                silent = self._silent(last)
            except RuntimeError:
                # The first process leaves last, because the store ends with it.
                self._leave(0)
                return
            if silent is not None:
                self._leave(silent)

    def _watch(self) -> None:
        """Leave when a round does not end: a machine that froze or lost power never answers."""
        while not self._end.wait(BEAT_SECONDS):
            if time.monotonic() - self._round > self.silence:
                self._leave(0, store_answers=False)

    def _silent(self, last: dict[int, tuple[bytes, float]]) -> int | None:
        """Return a process that has been silent for too long and has not left in order."""
        now = time.monotonic()
        # The first watches all others; they watch the first, which reports losses to them.
        for rank in range(self.ranks.count) if self.ranks.is_first else (0,):
            if rank == self.ranks.rank:
                continue
            beat = self._get(f"beat/{rank}")
            if beat != last[rank][0]:
                last[rank] = (beat, now)
            elif now - last[rank][1] > self.silence and not self._get(f"left/{rank}"):
                return rank
        lost = self._get("lost")
        return int(lost) if lost else None

    def _get(self, key: str) -> bytes:
        value: bytes = self._store.get(key) if self._store.check([key]) else b""
        return value

    def _leave(self, lost: int, *, store_answers: bool = True) -> None:
        if self._end.is_set():
            return
        if self.ranks.is_first and store_answers:
            self._store.set("lost", str(lost))
        reporter = 1 if lost == 0 else 0
        if self.ranks.rank == reporter:
            print(f"convnext: {lost_message(lost, self.ranks)}", file=sys.stderr, flush=True)
        time.sleep(2 * BEAT_SECONDS if self.ranks.is_first else 0)
        if self._exits:
            # The main thread waits in a collective; only exiting ends it at once.
            os._exit(EXIT_AGAIN)
        self._end.set()


def lost_message(lost: int | None, ranks: Ranks) -> str:
    """Return the message about a lost process, and how to resume; None if it is not known."""
    which = "a process" if lost is None else f"process {lost}"
    return (
        f"{which} of the {ranks.count} of this run was lost, so the run ends; at most "
        "--run.save_every steps have to be repeated. Start the same command with --resume and "
        "--output; torchrun --max-restarts does so automatically"
    )


def _shared_store(ranks: Ranks) -> TCPStore:
    """Return a store that the first process holds and all processes connect to."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    patience = timedelta(seconds=60)
    store = None
    if ranks.is_first:
        # Port 0 means any free port.
        store = TCPStore("0.0.0.0", 0, None, True, patience, wait_for_workers=False)
    # The launcher's name for the first machine, if it sets one.
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    port = ranks.broadcast_object(store.port if store else None)
    return store or TCPStore(host, port, None, False, patience)
