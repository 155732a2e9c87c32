"""What only some operating systems have: this is the only module that calls it.

Every function works everywhere, and says what it returns where the system has no such call.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# From malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

# SIGUSR1 is what SLURM sends before a time limit (`#SBATCH --signal=USR1@120`); Windows has none.
_STOP_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP_NAMES if hasattr(signal, name))
"""The signals of this system that ask a process to stop."""
CHILD_ENDED: signal.Signals | None = getattr(signal, "SIGCHLD", None)
"""The signal that a child process has ended; None on Windows."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next tensors; return whether it could.

    glibc maps every block above 32 MB from scratch and unmaps it when it is freed, and the system
    fills each page with zeros on first use. A network's larger activations are such blocks, several
    in every layer: on a CPU a quarter of the time of ConvNeXt-T at batch 8 goes into it (LOG.md).
    The process then stays at its peak size. For glibc only (Linux); elsewhere, and with another
    allocator preloaded, nothing is changed.
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
    """Return the peak resident set of this process in bytes; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), "VmHWM: 0 kB")
        return 1024 * float(peak.split()[1])
    if sys.platform == "win32":
        return 0.0
    else:
        import resource

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # Bytes on macOS.


@contextmanager
def main_script_runs_once() -> Iterator[None]:
    """Keep processes that begin within the block from importing the user's script again.

    Where processes are spawned, as on Windows and macOS, each imports the script that started it. A
    script without an `if __name__ == "__main__"` guard would train again in every one of them. The
    processes of data loaders need nothing from it.
    """
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if main is None or path is None or getattr(main, "__spec__", None) is not None:
        yield  # A module run by `python -m`, or no script at all.
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = path


def free_memory() -> int | None:
    """Return the bytes that this process can still get; None where the system does not tell."""
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
    """Return the processor's model and its instruction flags, empty where the system has none."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if info.is_file():
        with info.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, colon, value = line.partition(":")
                if not colon:  # The first processor is described; the others are alike.
                    break
                fields[name.strip()] = value.strip()
    flags = fields.get("flags") or fields.get("Features", "")  # On x86 and on ARM.
    return fields.get("model name", ""), " ".join(sorted(flags.split()))
