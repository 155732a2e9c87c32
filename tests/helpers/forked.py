"""`python -m convnext` as a fork of a process that has imported its libraries already.

A new interpreter spends several seconds of processor time on imports alone.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, reduction
from typing import Any
from unittest import mock

import numpy as np

# Elsewhere a fork of a process that has loaded libraries may hang, or does not exist.
CAN_FORK = sys.platform == "linux"
PRELOADED = [
    "convnext.cli",
    "convnext.cli.arguments",
    "convnext.api.roadmap",
    "convnext.api.training",
    "convnext.reports.report",
    "convnext.tasks.classification.task",
    "convnext.tasks.detection.task",
    "convnext.tasks.factory",
    "convnext.tasks.segmentation.task",
    "torch.utils.tensorboard",
]
# `convnext.cli.main` sets them too, but the libraries read them when they are imported.
READ_ON_IMPORT = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


class ForkedCommand:
    """A running command, with what the tests use of `subprocess.Popen`.

    Args:
        arguments: The words after `convnext`.
        environment: All environment variables.
    """

    stdout = None

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        multiprocessing.set_forkserver_preload(PRELOADED)
        with mock.patch.dict(os.environ, READ_ON_IMPORT):
            forkserver.ensure_running()
        self.output, printed = os.pipe()
        given = (list(arguments), dict(environment), Descriptor(printed))
        self.process = multiprocessing.get_context("forkserver").Process(target=_run, args=given)
        self.process.start()
        os.close(printed)
        assert self.process.pid is not None
        self.pid = self.process.pid
        with suppress(ProcessLookupError):  # It has ended.
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("convnext", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return what the command and its children print, until the last of them has ended."""
        end = time.monotonic() + (timeout or 3600)
        parts = []
        while True:
            ready, _, _ = select.select([self.output], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise subprocess.TimeoutExpired("convnext", timeout or 0, b"".join(parts))
            part = os.read(self.output, 1 << 16)
            if not part:
                break
            parts.append(part)
        self.wait(max(end - time.monotonic(), 1))
        return b"".join(parts).decode(), None


class Descriptor:
    """An open file that is passed to a process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (reduction.DupFd(self.number),)


def _detach(sent: Any) -> int:
    number: int = sent.detach()
    return number


def _run(arguments: list[str], environment: dict[str, str], printed: int) -> None:
    """Become the command: a session, an environment, streams and a `__main__` of its own."""
    os.setsid()
    # The command starts processes as a new interpreter would, not as this one was started.
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.clear()
    os.environ |= environment
    np.random.seed()  # Forks would share the state that numpy drew when it was imported.
    for stream in (1, 2):
        os.dup2(printed, stream)
    os.close(printed)
    sys.argv = ["convnext", *arguments]
    runpy.run_module("convnext", run_name="__main__", alter_sys=True)
