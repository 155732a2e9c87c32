"""Decoded images in one block of memory that worker processes share."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from convnext.data.images import BadImage
from convnext.data.threads import for_each
from convnext.hardware.system import free_memory

# A cache may take this share of the memory that is free now.
BUDGET_SHARE = 0.5
# Assumed if the system does not report its free memory.
FALLBACK_MEMORY = 4 * 2**30

Pixels = NDArray[np.uint8]


class ImageCache:
    """Images of different shapes, (H, W, C) or (C, H, W), one after the other.

    Forked worker processes read the same memory. For spawned ones, torch moves the block to shared
    memory when it sends them the data set.
    """

    def __init__(self, shapes: NDArray[np.int64]) -> None:
        """Reserve room for images of `shapes` (n, 3)."""
        self.shapes = shapes
        self.ends = np.cumsum(shapes.prod(axis=1))
        self.block = torch.empty(int(self.ends[-1]), dtype=torch.uint8)
        self.bad: dict[int, str] = {}
        """The reason why an image is missing, by its index."""

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Pixels:
        """Return a view of an image, which must not be modified."""
        shape = self.shapes[index]
        end = int(self.ends[index])
        return self.block.numpy()[end - int(shape.prod()) : end].reshape(shape)

    def fill(self, load: Callable[[int], Pixels], *, console: Console | None = None) -> None:
        """Load all images in a few threads; those that raise BadImage are recorded in `bad`."""

        def load_one(index: int) -> None:
            try:
                self[index][...] = load(index)
            except BadImage as error:
                self.bad[index] = error.reason

        for_each(load_one, len(self), "reading images", console=console)


def memory_budget(workers: int = 0) -> int:
    """Return how many bytes a cache for `workers` processes may take on this machine now."""
    free = free_memory() or FALLBACK_MEMORY
    shm = Path("/dev/shm")
    if workers and not _forks() and shm.is_dir():  # Containers often have no more than 64 MB.
        free = min(free, shutil.disk_usage(shm).free)
    return int(free * BUDGET_SHARE)


def _forks() -> bool:
    """Tell whether worker processes will be forked, without fixing the start method."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    return (chosen or multiprocessing.get_all_start_methods()[0]) == "fork"
