"""Tests of prefetching, and of the processes of loaders."""

from __future__ import annotations

import multiprocessing.reduction
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convnext.data import threads
from convnext.data.threads import items_of, prefetch, start_workers
from convnext.hardware.system import StopSignals
from convnext.training.faults import is_lost_worker


def test_items_come_in_order_and_all() -> None:
    assert list(prefetch(range(20))) == list(range(20))
    assert list(prefetch([])) == []
    assert list(prefetch([None, None])) == [None, None]


def test_the_next_item_is_made_while_the_last_one_is_worked_on() -> None:
    made = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for i, event in enumerate(made):
            event.set()
            yield i

    for i in prefetch(items()):
        if i + 1 < len(made):
            assert made[i + 1].wait(timeout=30)
        if i + 2 < len(made):  # One item is prefetched, not all of them.
            assert not made[i + 2].is_set()


def test_errors_come_where_their_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("a disk is gone")

    found = prefetch(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="a disk is gone"):
        next(found)


def test_leaving_early_ends_the_thread() -> None:
    before = set(threading.enumerate())  # Interrupted runs of other tests may still end theirs.
    found = prefetch(range(10))
    assert next(found) == 0
    started = set(threading.enumerate()) - before
    assert [t.name.startswith("prefetch") for t in started] == [True]
    found.close()
    assert not started & set(threading.enumerate())


def test_a_cpu_has_no_core_to_spare() -> None:
    loader = DataLoader(range(4), batch_size=None)  # type: ignore[arg-type]
    items = items_of(loader, torch.device("cpu"))
    assert type(items) is type(iter(loader))  # Nothing between the loader and its reader.
    assert list(items) == [0, 1, 2, 3]
    assert list(items_of(loader, torch.device("cuda"))) == [0, 1, 2, 3]


class Fragile(Dataset[Tensor]):
    """Tensors of a process that ends at one of them, in a way that has a name."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        if index == 5:
            getattr(self, self.how)()
        return torch.full((3,), index)

    def nothing(self) -> None:
        pass

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def raises(self) -> None:
        raise ConnectionResetError(104, "a storage closed the connection")

    def closed(self, *, reset: bool = False) -> None:
        """End while a tensor is handed over: the socket closes first."""

        def send_handle(connection: Any, *_: Any) -> None:
            if reset:  # What the kernel does with a socket that has unread data.
                with socket.socket(fileno=os.dup(connection.fileno())) as copy:
                    now = struct.pack("ii", 1, 0)
                    copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            connection.close()
            time.sleep(0.3)
            os._exit(9)

        multiprocessing.reduction.send_handle = send_handle  # type: ignore[attr-defined]

    def reset(self) -> None:
        self.closed(reset=True)


needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")


@needs_fork
@pytest.mark.parametrize("how", ["killed", "closed", "reset"])
def test_a_process_that_dies_in_any_way_is_reported_in_one_way(how: str) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    items = start_workers(DataLoader(Fragile(how), batch_size=None, num_workers=1))
    with pytest.raises(RuntimeError, match=r"^DataLoader worker"):
        list(items)
    assert signal.getsignal(signal.SIGCHLD) == before


class NeverStarts:
    """A loader whose processes die before they are complete."""

    num_workers, collate_fn = 1, staticmethod(list)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        raise self.error


def test_a_process_that_dies_while_it_starts_is_reported_like_others() -> None:
    loader: Any = NeverStarts(BrokenPipeError(32, "Broken pipe"))
    with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid unknown\) closed") as caught:
        start_workers(loader)
    assert is_lost_worker(caught.value)
    loader = NeverStarts(PermissionError("not allowed"))
    with pytest.raises(PermissionError):
        start_workers(loader)


def test_an_error_in_a_process_is_no_death() -> None:
    items = start_workers(DataLoader(Fragile("raises"), batch_size=None, num_workers=1))
    with pytest.raises(ConnectionResetError, match="Caught ConnectionResetError"):
        list(items)


def test_a_connection_that_breaks_without_a_report_is_a_death(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "REPORT_SECONDS", 0.1)
    errors = [EOFError(), ConnectionResetError(104, "reset"), FileNotFoundError(2, "no socket")]
    errors.append(RuntimeError("received 0 items of ancdata"))
    errors.append(EOFError("Caught EOFError in pin memory thread for device 0."))
    for error in errors:

        def items(error: Exception = error) -> Iterator[int]:
            yield 1
            raise error

        watched = threads._watched(items())
        assert next(watched) == 1
        with pytest.raises(RuntimeError, match=r"^DataLoader worker .* closed its connection"):
            next(watched)


def test_too_little_shared_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SHARED_MEMORY", tmp_path)
    for text in (
        "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory",
    ):

        def items(text: str = text) -> Iterator[int]:
            yield 1
            raise RuntimeError(text)

        watched = threads._watched(items())
        next(watched)
        with pytest.raises(OSError, match=r"which has .* MB are free: too little.*--shm-size"):
            next(watched)


@dataclass
class Target:
    boxes: Tensor


def nested(items: Any) -> Any:
    first = torch.ones(2)
    return [first, {"a": (torch.ones(3),)}, Target(torch.ones(4)), "text", 5]


@needs_fork
def test_tensors_are_shared_where_an_error_is_reported() -> None:
    first, second, target, *rest = threads._Shared(nested)([])
    assert all(t.is_shared() for t in (first, second["a"][0], target.boxes))
    assert rest == ["text", 5]


def kill(pid: int) -> None:
    """Kill a child process, and wait until the system has reported that."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@needs_fork
def test_a_process_that_dies_meanwhile_disturbs_nothing_else() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    # A loader of torch alone leaves a handler that raises anywhere; in a run, it is put aside.
    list(DataLoader(Fragile("nothing"), batch_size=None, num_workers=1))
    try:
        with StopSignals():
            items = start_workers(DataLoader(Fragile("nothing"), batch_size=None, num_workers=2))
            assert int(next(items)[0]) == 0
            children = Path("/proc/self/task").glob("*/children")
            pids = {int(pid) for path in children for pid in path.read_text().split()}
            for pid in pids:
                if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    kill(pid)
            time.sleep(0.05)  # A handler that raises would do so here.
            with pytest.raises(RuntimeError, match=r"^DataLoader worker .*Killed"):
                next(items)
    finally:
        signal.signal(signal.SIGCHLD, before)


@needs_fork
def test_a_run_is_not_disturbed_by_the_handler_of_a_loader_of_torch() -> None:
    before = signal.getsignal(signal.SIGCHLD)

    def handler(*_: object) -> None:
        raise RuntimeError("a process of another loader has died")

    handler.__module__ = "torch.utils.data._utils.signal_handling"
    signal.signal(signal.SIGCHLD, handler)
    try:
        with StopSignals():
            pid = os.fork()
            if pid == 0:
                os._exit(9)
            os.waitpid(pid, 0)
        assert signal.getsignal(signal.SIGCHLD) == handler
    finally:
        signal.signal(signal.SIGCHLD, before)
