"""Calls that only some operating systems have. `atomic` and `documents` have others, for files.

Every function works on every system, and documents its result where the call is missing. The
signals that stop a run are here too: it finishes its step, saves its state, and exits.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import platformdirs

# From malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

# SLURM sends SIGUSR1 before a time limit (`#SBATCH --signal=USR1@120`); Windows does not have it.
_STOP_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP_NAMES if hasattr(signal, name))
"""The signals of this system that stop a run."""
HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""The signal that the terminal was closed; None on Windows."""
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


def available_cores() -> int:
    """Return the cores that this process may use: those of its affinity, within its CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # Not on every system.
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the CPU quota of this control group in cores, as containers have; None without one.

    Args:
        root: Where the system mounts control groups, of version 2 or 1.
    """
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (root / "cpu/cpu.cfs_period_us").read_text(encoding="ascii")
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # No such file, or "max": no quota.
        return None
    return cores if cores > 0 else None


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


def leave_signals_to_parent(_worker: int = 0) -> None:
    """Make a data loader process ignore stop signals, so that the last step gets its data.

    Except SIGTERM, with which the loader itself ends its processes.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """Catches stop signals in its block: `received` is the name of the first one, or None.

    A second SIGINT raises KeyboardInterrupt as usual.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.on_stop: Callable[[str], None] | None = None
        """Called with the name of a signal; it may raise an exception in the main thread."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                # A command that was started with nohup keeps ignoring the signal.
                if number != HANG_UP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._take)
            # After a program has used a loader of torch with processes, torch's handler raises an
            # error when one of any loader dies, in the middle of anything.
            before: Any = CHILD_ENDED and signal.getsignal(CHILD_ENDED)
            if CHILD_ENDED and getattr(before, "__module__", "").startswith("torch."):
                self._before[CHILD_ENDED] = signal.signal(CHILD_ENDED, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # Python cannot restore a handler that C code has set.
                signal.signal(number, handler)
        self._before.clear()

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
        if self.on_stop is not None:
            self.on_stop(self.received)


def cache_folder() -> Path:
    """Return the cache folder of this package."""
    root = os.environ.get("XDG_CACHE_HOME")  # On all systems, not only on Linux.
    folder = Path(root, "convnext") if root else platformdirs.user_cache_path("convnext", False)
    # For a user without a home folder, as in some containers, the path begins with "~".
    return folder if folder.is_absolute() else Path(tempfile.gettempdir()) / "convnext"
