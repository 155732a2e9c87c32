"""Work beside the main thread: many items at once, the next while one is used, or in processes."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convnext.hardware.system import CHILD_ENDED

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from convnext.hardware.devices import Ranks

T = TypeVar("T")
# How long to wait for the report of the death of a process whose connection broke.
REPORT_SECONDS = 5.0
# The memory through which processes pass tensors, on Linux.
SHARED_MEMORY = Path("/dev/shm")
_HIDING = threading.RLock()
# Seconds between updates of a progress bar.
_REFRESH = 0.1


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

        def run(indices: range) -> None:
            # A lock for every item would cost more than small items do.
            due, done = time.monotonic() + _REFRESH, 0
            for index in indices:
                work(index)
                done += 1
                if visible and time.monotonic() > due:
                    progress.advance(bar, done)
                    due, done = time.monotonic() + _REFRESH, 0

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, [range(first, count, threads) for first in range(threads)]))


def place_files(pairs: Sequence[tuple[Path, Path]], title: str, console: Console | None) -> bool:
    """Link or copy files; return whether all are links."""
    copied = []
    for parent in {target.parent for _, target in pairs}:
        parent.mkdir(parents=True, exist_ok=True)

    def put(index: int) -> None:
        origin, target = pairs[index]
        try:
            os.link(origin.resolve(), target)
        except OSError:  # Another file system, or one without hard links.
            shutil.copy2(origin, target)
            copied.append(index)

    for_each(put, len(pairs), title, console=console)
    return not copied


def items_of(loader: DataLoader[Any], device: torch.device) -> Iterable[Any]:
    """Return the items of a loader, prefetching one unless that slows down the network.

    On a CPU it would: decoding for 4 s on one of two cores cost a network 12 s, because its threads
    wait for each other (LOG.md). A loader with worker processes prefetches already.
    """
    if device.type == "cpu" or loader.num_workers:
        return start_workers(loader)
    return prefetch(loader)


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return an iterator of a loader, whose worker processes do not import the user's script.

    If a worker process dies, for example by the out-of-memory killer, the iterator raises a
    RuntimeError that begins with "DataLoader worker", whatever the process was doing. If the shared
    memory is full, it raises an OSError.
    """
    if loader.num_workers and SHARED_MEMORY.is_dir():
        loader.collate_fn = _Shared(loader.collate_fn)
    with main_script_runs_once(), _deaths_raise():
        try:
            items = iter(loader)
        except OSError as error:  # A process that is started not by a fork may die before it reads.
            if not loader.num_workers or not _is_broken_connection(error):
                raise
            raise _closed(error) from error
    return _watched(items) if loader.num_workers else items


class _Shared:
    """Moves the tensors of a batch to shared memory, in the process that makes them.

    torch would do so in a thread of that process, where an error is only printed, and the batch
    would be awaited forever.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Any) -> Any:
        batch = self.collate(items)
        _share(batch)
        return batch


def _share(value: Any) -> None:
    """Move the tensors in a value of lists, tuples, mappings and data classes to shared memory."""
    import torch

    if isinstance(value, torch.Tensor):
        value.share_memory_()  # type: ignore[no-untyped-call]
    elif isinstance(value, list | tuple):
        for item in value:
            _share(item)
    elif isinstance(value, dict):
        for item in value.values():
            _share(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            _share(getattr(value, field.name))


def _watched(items: Iterator[T]) -> Iterator[T]:
    """Yield items of worker processes; raise the error about a dead one only while waiting.

    The sockets of a process close a moment before the system reports its death, so that a broken
    connection counts as a death.
    """
    end = object()
    while True:
        broken: BaseException | None = None
        with _deaths_raise():
            _raise_if_dead()
            try:
                item = next(items, end)
            except (EOFError, OSError, RuntimeError) as error:
                if "shared memory" in str(error) and SHARED_MEMORY.is_dir():
                    raise _small_shared_memory() from error
                if not _is_broken_connection(error):
                    raise
                broken = error
            if broken is not None:
                _await_report()
                raise _closed(broken)
        if item is end:
            return
        yield item  # type: ignore[misc]  # It is not the end marker.


def _closed(error: BaseException) -> RuntimeError:
    return RuntimeError(f"DataLoader worker (pid unknown) closed its connection: {error!r}")


def _small_shared_memory() -> OSError:
    usage = shutil.disk_usage(SHARED_MEMORY)
    return OSError(
        f"the processes of the data loader pass images through {SHARED_MEMORY}, which has "
        f"{usage.total / 1e6:,.4g} MB, of which {usage.free / 1e6:,.4g} MB are free: too little. "
        "Give it more (docker run --shm-size 8g), or use --loader.workers 0"
    )


def _is_broken_connection(error: BaseException) -> bool:
    """Whether the connection to a worker process broke; an error that it raised names it."""
    text = str(error)
    if text.startswith("Caught ") and "in pin memory thread" not in text.partition("\n")[0]:
        return False
    if isinstance(error, RuntimeError):
        return "items of ancdata" in text
    return isinstance(error, EOFError | ConnectionError | FileNotFoundError)


def _await_report() -> None:
    """Wait for the report of a death, which says why and may not come later, in another place."""
    end = time.monotonic() + REPORT_SECONDS
    while time.monotonic() < end:
        _raise_if_dead()
        time.sleep(0.05)


def _raise_if_dead() -> None:
    from torch._C import _error_if_any_worker_fails

    _error_if_any_worker_fails()


@contextmanager
def _deaths_raise() -> Iterator[None]:
    """Let the death of a worker process raise an error in the main thread, in the block alone.

    The handler that torch installs for good raises anywhere, for example inside a write of
    TensorBoard, which swallows it. Without any handler, a half-sent item would be awaited forever.
    """
    if CHILD_ENDED is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(CHILD_ENDED)

    def report(number: int, frame: FrameType | None) -> None:
        _raise_if_dead()
        if callable(before):
            before(number, frame)

    signal.signal(CHILD_ENDED, report)
    try:
        yield
    finally:
        signal.signal(CHILD_ENDED, signal.SIG_DFL if before is None else before)


def rank_items(
    dataset: Any, ranks: Ranks, device: torch.device, *, workers: int = 0
) -> Iterator[tuple[Any, bool]]:
    """Yield this process's items of a data set one by one, and whether each is its own.

    Every process gets equally many items, since the network may be sharded over them; those that
    fill up belong to others.
    """
    from torch.utils.data import DataLoader

    from convnext.hardware.system import leave_signals_to_parent

    mine = list(range(ranks.rank, len(dataset), ranks.count))
    num_spare = math.ceil(len(dataset) / ranks.count) - len(mine)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=[*mine, *range(num_spare)],
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=leave_signals_to_parent,
    )
    for i, item in enumerate(items_of(loader, device)):
        yield item, i < len(mine)


def _identity(item: Any) -> Any:
    return item


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


@contextmanager
def main_script_runs_once() -> Iterator[None]:
    """Keep processes that start within the block from importing the user's script again.

    A spawned process imports the script that started it, or the module of `python -m`. Without an
    `if __name__ == "__main__"` guard it would train again. Processes that need nothing from the
    script are therefore started while its name is hidden. Threads take turns.
    """
    main = sys.modules.get("__main__") or ModuleType("__main__")
    with _HIDING:
        hidden = {name: vars(main).get(name) for name in ("__file__", "__spec__")}
        main.__dict__.pop("__file__", None)
        main.__spec__ = None
        try:
            yield
        finally:
            main.__dict__.update({k: v for k, v in hidden.items() if v is not None})
