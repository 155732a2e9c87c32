"""The next item is made while the last one is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

T = TypeVar("T")


def items_of(loader: DataLoader[Any], device: torch.device) -> Iterable[Any]:
    """Return what a loader yields, one ahead if that takes nothing from the network.

    On a CPU it would: a network whose threads wait for each other lost 12 s to 4 s of decoding on
    one of two cores (LOG.md). Processes of the loader work ahead already.
    """
    return loader if device.type == "cpu" or loader.num_workers else ahead(loader)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items in their order, each of which a thread has made meanwhile, one ahead.

    Decoding an image lets go of the interpreter, and so do the layers of a network: on one machine
    they run beside each other. What making an item raises is raised where it would be yielded.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # It is no end.
