"""Work in a few threads: many items at once, or the next item while the last one is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

T = TypeVar("T")


def for_each(
    work: Callable[[int], None],
    count: int,
    title: str,
    *,
    console: Console | None = None,
    threads: int | None = None,
) -> None:
    """Call `work` with 0 .. count - 1 in a few threads, with a progress bar on `console`.

    The default number of threads suits the processor; work that waits for a network needs more.
    """
    threads = min(threads or min(8, os.cpu_count() or 1), max(count, 1))
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    visible = console is not None and console.is_terminal
    with Progress(*columns, console=console, disable=not visible, transient=True) as progress:
        bar = progress.add_task(title, total=count)

        def run(indices: Iterable[int]) -> None:
            for index in indices:
                work(index)
                progress.advance(bar)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, [range(first, count, threads) for first in range(threads)]))


def items_of(loader: DataLoader[Any], device: torch.device) -> Iterable[Any]:
    """Return the items of a loader, prefetching one unless that slows down the network.

    On a CPU it would: decoding for 4 s on one of two cores cost a network 12 s, because its threads
    wait for each other (LOG.md). A loader with worker processes prefetches already.
    """
    return loader if device.type == "cpu" or loader.num_workers else prefetch(loader)


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Yield items in order, while a thread makes the next one.

    Decoding and the layers of a network release the interpreter lock, so both run in parallel. An
    exception from making an item is raised where the item would be yielded.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # It is not the end marker.
