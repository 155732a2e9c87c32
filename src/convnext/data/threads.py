"""Work in a few threads: many items at once, or the next one while the last one is used."""

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

    By default there are as many threads as the processor has use for; work that waits for a network
    may want more.
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
