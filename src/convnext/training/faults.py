"""The faults of a long run, classified by how the run responds to them.

Torch is imported only where it is needed: the command line catches these errors and starts without
torch.
"""

from __future__ import annotations

import errno
import re
from contextvars import ContextVar

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
