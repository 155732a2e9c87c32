"""Keep the memory that tensors give back, instead of asking the system for it again and again.

glibc maps every block above 32 MB afresh and unmaps it when it is freed, and the system fills each
page with zeros on first use. A network's larger activations are such blocks, several in every
layer: on a CPU a quarter of the time of ConvNeXt-T at batch 8 goes into it (LOG.md).
"""

from __future__ import annotations

import ctypes
import sys

# From malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next tensors; return whether that is known here.

    A process then stays as large as it has been at most. For glibc only (Linux); elsewhere, and
    with another allocator preloaded, nothing is changed.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl.
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
