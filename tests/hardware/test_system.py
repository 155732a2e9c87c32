"""Freed memory is kept if the C library is known."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from convnext.hardware.system import keep_freed_memory

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
