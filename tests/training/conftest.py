"""Fixtures of the tests that start processes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Runs


@pytest.fixture(autouse=True)
def hangups_are_not_ignored() -> Iterator[None]:
    """Let SIGHUP through where the tests themselves were started with nohup."""
    hangup = getattr(signal, "SIGHUP", None)
    before = signal.getsignal(hangup) if hangup else None
    if before == signal.SIG_IGN and hangup:
        signal.signal(hangup, signal.SIG_DFL)
    yield
    if before == signal.SIG_IGN and hangup:
        signal.signal(hangup, signal.SIG_IGN)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Start runs; kill the remaining processes at the end."""
    found = Runs(tmp_path)
    yield found
    for process in found.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
