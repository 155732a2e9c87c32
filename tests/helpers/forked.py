"""`python -m convnext` as a fork of a process that has imported its libraries already.

A new interpreter spends several seconds of processor time on imports alone.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

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
        printed: The file for standard output and standard error.
    """

    stdout = None

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], printed: Path
    ) -> None:
        self.printed = printed
        printed.touch()
        multiprocessing.set_forkserver_preload(PRELOADED)
        with mock.patch.dict(os.environ, READ_ON_IMPORT):
            forkserver.ensure_running()
        given = (list(arguments), dict(environment), str(printed))
        self.process = multiprocessing.get_context("forkserver").Process(target=_run, args=given)
        self.process.start()
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
        self.wait(timeout)
        return self.printed.read_text(encoding="utf-8"), None


def _run(arguments: list[str], environment: dict[str, str], printed: str) -> None:
    """Become the command: a session, an environment, streams and a `__main__` of its own."""
    os.setsid()
    # The command starts processes as a new interpreter would, not as this one was started.
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.clear()
    os.environ |= environment
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    sys.argv = ["convnext", *arguments]
    runpy.run_module("convnext", run_name="__main__", alter_sys=True)
