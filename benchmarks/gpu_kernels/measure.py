"""Time functions side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

NUM_ROUNDS = 7
SECONDS = 0.02
"""Approximate seconds per function and round; a single launch is too short to be timed."""
NUM_MOST = 200

Timer = Callable[[Mapping[str, Callable[[], object]], torch.device], dict[str, float]]


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = NUM_ROUNDS,
    seconds: float = SECONDS,
) -> dict[str, float]:
    """Return the median seconds of a call of each function, over rounds in which all take turns.

    A GPU is timed by its own events. Warm-up (tuning, allocation) does not count.
    """
    counts = {}
    for name, function in functions.items():
        function()
        function()
        once = seconds_of(function, 1, device)
        counts[name] = max(1, min(NUM_MOST, round(seconds / max(once, 1e-7))))
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(seconds_of(function, counts[name], device))
    return {name: statistics.median(values) for name, values in found.items()}


def seconds_of(function: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the mean seconds of a call over `count` consecutive calls."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(count):
            function()
        return (time.perf_counter() - began) / count
    event: Any = torch.cuda.Event
    begin, end = (event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(count):
        function()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / count
