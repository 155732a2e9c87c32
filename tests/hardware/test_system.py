"""Freed memory is kept if the C library is known; the cores of a process are counted."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from convnext.hardware import system
from convnext.hardware.system import available_cores, cpu_quota, keep_freed_memory

# Blocks of 64 MB, which glibc maps afresh every time.
COUNT = """
import resource, sys
import numpy as np
from convnext.hardware.system import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(20):
    block = np.empty(2**26, np.uint8)
    block[::4096] = 1
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_pages_are_not_asked_for_again() -> None:
    # Huge pages, which numpy requests, would hide the difference.
    env = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    faults = {}
    for how in ("keep", "leave"):
        command = [sys.executable, "-c", COUNT, how]
        ran = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        faults[how] = int(ran.stdout)
    assert faults["keep"] < faults["leave"] / 2


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [(None, 6), (2.5, 2), (0.5, 1), (64.0, 6)])
def test_available_cores(monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(system, "cpu_quota", lambda: quota)
    assert available_cores() == cores
