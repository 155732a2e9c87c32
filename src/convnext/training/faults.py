"""What can go wrong in a run of days, told apart by what is to be done about it.

Torch is imported where it is needed: the command line knows these errors and starts without it.
"""

from __future__ import annotations

import errno
import re
from contextvars import ContextVar

# "Temporary failure" of sysexits.h: start the same command again and the run goes on.
EXIT_AGAIN = 75

EXIT_WHEN_LOST: ContextVar[bool] = ContextVar("exit_when_lost", default=False)
"""Whether this process exits at once when another process of its run has gone.

The command line sets it, for a collective whose peer is gone may wait for many minutes. In a
program of someone else's it is not ours to end: the collective raises in its own time.
"""

_NO_MEMORY = re.compile(
    r"can't allocate memory|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED|MPS backend out of memory"
)
_LOST_PROCESS = re.compile(
    r"closed by peer|reset by peer|connection (?:was )?(?:closed|refused|reset)|broken pipe|"
    r"remote process|socket timeout|timed out waiting|NCCL|heartbeat|gloo",
    re.IGNORECASE,
)


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


class InterruptedRun(Exception):  # noqa: N818 - nothing is wrong, so it is no Error
    """The run was asked to end; its state is saved."""

    def __init__(self, message: str, *, speaks: bool = True) -> None:
        super().__init__(message)
        self.speaks = speaks
        """Whether this is the process that tells the user."""


class LostProcessError(RuntimeError):
    """Another process of the run has gone, and this one cannot go on without it."""

    def __init__(self, message: str, *, speaks: bool = True) -> None:
        super().__init__(message)
        self.speaks = speaks
        """Whether this is the process that tells the user, of all that have the same to tell."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had no room for a batch. On a CPU, torch raises a plain RuntimeError."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))
    )


def is_lost_worker(error: BaseException) -> bool:
    """Whether a process of the data loader died, as by the system's out-of-memory killer."""
    # An error that a worker raised, and lived on, names it too, but not by its process.
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def is_lost_process(error: BaseException) -> bool:
    """Whether a collective failed because a process at its other end has gone."""
    import torch

    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and bool(_LOST_PROCESS.search(str(error)))
    )


def is_full_disk(error: BaseException) -> bool:
    """Whether a file could not be written for want of room. Safetensors raises its own error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    from safetensors import SafetensorError

    text = str(error)
    return isinstance(error, SafetensorError) and bool(
        re.search(r"os error (28|122|27)\b|No space left|quota", text)
    )
