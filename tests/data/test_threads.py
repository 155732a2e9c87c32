"""Tests of prefetching."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader

from convnext.data.threads import items_of, prefetch


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
    found = prefetch(range(10))
    assert next(found) == 0
    found.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_a_cpu_has_no_core_to_spare() -> None:
    loader = DataLoader(range(4), batch_size=None)  # type: ignore[arg-type]
    items = items_of(loader, torch.device("cpu"))
    assert type(items) is type(iter(loader))  # Nothing between the loader and its reader.
    assert list(items) == [0, 1, 2, 3]
    assert list(items_of(loader, torch.device("cuda"))) == [0, 1, 2, 3]
