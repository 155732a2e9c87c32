"""Calls that only some operating systems have. The only other one is `atomic.sync_folder`.

Every function works on every system, and documents its result where the call is missing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

# From malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

# SLURM sends SIGUSR1 before a time limit (`#SBATCH --signal=USR1@120`); Windows does not have it.
_STOP_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP_NAMES if hasattr(signal, name))
"""The signals of this system that stop a run."""
CHILD_ENDED: signal.Signals | None = getattr(signal, "SIGCHLD", None)
"""The signal that a child process has ended; None on Windows."""


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory for new tensors; return whether that is possible.

    By default, glibc maps every block above 32 MB separately and unmaps it when it is freed, and
    the system zeroes each page on first use. The larger activations of a network are such blocks:
    on a CPU, ConvNeXt-T at batch size 8 spends a quarter of its time on this (LOG.md). With this
    setting the process stays at its peak size. It applies to glibc only (Linux), and not with
    another preloaded allocator.
    """
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except AttributeError:  # musl.
            return False
        return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    else:
        return False


def peak_resident_bytes() -> float:
    """Return the peak resident set size of this process in bytes; 0 if the system has no figure."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), "VmHWM: 0 kB")
        return 1024 * float(peak.split()[1])
    if sys.platform == "win32":
        return 0.0
    else:
        import resource

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # In bytes on macOS.


def free_memory() -> int | None:
    """Return the bytes that this process can still allocate; None if the system has no figure."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    elif sys.platform != "win32" and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (group / "memory.current").is_file():
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":  # The limit of a container.
            found.append(max(0, int(limit) - int((group / "memory.current").read_text())))
    return min(found, default=None)


def cpu_facts() -> tuple[str, str]:
    """Return the processor's model and its instruction flags; empty if the system lists none."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if info.is_file():
        with info.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, colon, value = line.partition(":")
                if not colon:  # The end of the first processor; the others are the same.
                    break
                fields[name.strip()] = value.strip()
    flags = fields.get("flags") or fields.get("Features", "")  # On x86 and on ARM.
    return fields.get("model name", ""), " ".join(sorted(flags.split()))
