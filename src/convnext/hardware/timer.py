"""Time callables without arguments, in turns.

Work on a GPU continues after a call returns, so the timer waits for the device.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from convnext.hardware.devices import wait_for

Call = Callable[[], object]
Result = TypeVar("Result")
CPU = torch.device("cpu")


def timed(call: Callable[[], Result], device: torch.device = CPU) -> tuple[Result, float]:
    """Call once; return the result, and the seconds until the device finished."""
    began = time.perf_counter()
    result = call()
    wait_for(device)
    return result, time.perf_counter() - began


def samples(
    calls: Sequence[Call],
    device: torch.device = CPU,
    *,
    rounds: int,
    min_rounds: int = 1,
    max_seconds: float = math.inf,
    warmup: int = 1,
    too_slow: float = math.inf,
) -> list[list[float]]:
    """Return the seconds of each call, measured in turns, so that all see the same machine.

    Args:
        calls: The calls to time.
        device: The device that they run on.
        rounds: Number of turns that count.
        min_rounds: Minimum number of turns, regardless of `max_seconds`.
        max_seconds: Time, including warm-up, after which no further turn starts.
        warmup: Number of turns at the start that allocate and compile, and do not count.
        too_slow: Stop after two turns if the last call is this many times slower than the first.
    """
    start = time.perf_counter()
    for _ in range(warmup):
        for call in calls:
            timed(call, device)
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(1, rounds + 1):
        for call, own in zip(calls, found, strict=True):
            own.append(timed(call, device)[1])
        if turn == 2 and min(found[-1]) > too_slow * min(found[0]):
            break
        if turn >= min_rounds and time.perf_counter() - start > max_seconds:
            break
    return found


def medians(
    calls: Sequence[Call],
    device: torch.device = CPU,
    *,
    rounds: int,
    min_rounds: int = 1,
    max_seconds: float = math.inf,
    warmup: int = 1,
    too_slow: float = math.inf,
) -> list[float]:
    """Return the median seconds of each call; see `samples` for the arguments."""
    found = samples(
        calls,
        device,
        rounds=rounds,
        min_rounds=min_rounds,
        max_seconds=max_seconds,
        warmup=warmup,
        too_slow=too_slow,
    )
    return [statistics.median(own) for own in found]


def samples_for(
    call: Call, device: torch.device = CPU, *, seconds: float, min_rounds: int = 1, warmup: int = 1
) -> list[float]:
    """Return the seconds of a call, repeated for `seconds` and at least `min_rounds` times."""
    for _ in range(warmup):
        timed(call, device)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < min_rounds or time.perf_counter() < end:
        found.append(timed(call, device)[1])
    return found
