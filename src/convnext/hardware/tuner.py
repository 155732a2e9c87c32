"""Search for the fastest of several ways to compute the same thing, and the timer of that search.

The tuner knows only callables: how to build a candidate, how to compare its outputs with the
reference, and how to time it against the best one so far. It skips candidates that fail to build or
to run, or whose outputs differ, and notes the reason. Work on a GPU continues after a call returns,
so the timer waits for the device.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from convnext.hardware.devices import wait_for
from convnext.names import short_time

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


def medians(found: Sequence[Sequence[float]]) -> list[float]:
    """Return the median of the seconds of each call from `samples`."""
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


Built = TypeVar("Built")
Choice = TypeVar("Choice")

BUDGET_S = 60.0
NUM_TIMED = 5


@dataclass(frozen=True)
class Candidate(Generic[Choice, Built]):
    """One way to compute it.

    Attributes:
        choice: The candidate as data; `str` of it is its name in notes.
        build: Builds the object to compare and time; may raise any exception.
        pays_for_building: Whether the time for building counts, because each use builds it again.
    """

    choice: Choice
    build: Callable[[], Built]
    pays_for_building: bool = False


@dataclass(frozen=True)
class Parity:
    """How far a candidate's outputs are from the reference.

    Attributes:
        difference: Distance of the outputs, in the unit of the tolerance.
        tolerance: The maximum difference.
        failure: Another reason to reject the candidate.
        remark: A remark for its note.
    """

    difference: float
    tolerance: float
    failure: str = ""
    remark: str = ""

    @property
    def reason(self) -> str:
        """The reason to reject the candidate; empty if there is none."""
        if not self.difference <= self.tolerance:  # Also rejects NaN.
            return f"outputs differ by {self.difference:.1e}"
        return self.failure


@dataclass(frozen=True)
class Trial(Generic[Choice]):
    """The measurements of a candidate.

    Attributes:
        choice: The candidate's choice.
        seconds: Median seconds of a call; None if it fails or is wrong.
        difference: Difference from the reference; None if it fails.
        build_seconds: Seconds for building and comparing.
        failure: The reason for its rejection; empty if it was not rejected.
    """

    choice: Choice
    seconds: float | None
    difference: float | None
    build_seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Verdict(Generic[Choice, Built]):
    """The result of a search: the fastest candidate.

    Attributes:
        choice: The candidate's choice.
        built: The built candidate.
        ratio: Speedup over the baseline.
        trials: All candidates that were tried, beginning with the baseline.
    """

    choice: Choice
    built: Built
    ratio: float
    trials: tuple[Trial[Choice], ...]


def tune(
    baseline: Candidate[Choice, Built],
    candidates: Iterable[Candidate[Choice, Built]],
    *,
    measure: Callable[[Sequence[Built]], Sequence[float]],
    compare: Callable[[Choice, Built], Parity] | None = None,
    budget_s: float = math.inf,
    num_calls: float = math.inf,
    min_gain: float = 0.0,
    unit: str = "",
    note: Callable[[str], None] = lambda _: None,
) -> Verdict[Choice, Built]:
    """Build, compare and time candidates one after the other, and return the fastest one.

    Args:
        baseline: The choice if nothing is faster. It must work: its errors are raised.
        candidates: The other candidates, most promising first.
        measure: Returns the median seconds of one built candidate, or of two in turns
            (`convnext.hardware.tuner.medians`). Turns see the same machine, so candidates are
            compared by their ratio to the best one so far.
        compare: Compares a built candidate with the reference; by default all count as correct.
        budget_s: Seconds after which no further candidate is tried.
        num_calls: Expected number of calls, over which the time for building is spread.
        min_gain: Fraction of the time that a candidate must save to replace the best one.
        unit: Text after the baseline's time in its note.
        note: Called with each line of progress.
    """
    began = time.perf_counter()
    best, best_built = baseline.choice, baseline.build()
    best_s = best_cost = plain_s = measure([best_built])[0]
    trials = [Trial(best, plain_s, 0.0, 0.0)]
    note(f"{best}: {short_time(plain_s)}{unit}")
    for candidate in candidates:
        if time.perf_counter() - began > budget_s:
            note(f"{candidate.choice} and later candidates: not tried after {budget_s:.0f} s")
            break
        at = time.perf_counter()
        built = best_built  # Frees the last candidate before the next is built.
        difference: float | None = None
        remark = ""
        try:
            built = candidate.build()
            if compare is not None:
                parity = compare(candidate.choice, built)
                difference, remark = parity.difference, parity.remark
                if parity.reason:
                    raise ArithmeticError(parity.reason)
            build_s = time.perf_counter() - at
            pair = measure([best_built, built])
        except Exception as error:  # A compiler may raise anything; try the other candidates.
            failure = first_line(error)
            took = time.perf_counter() - at
            trials.append(Trial(candidate.choice, None, difference, took, failure))
            note(f"{candidate.choice}: {failure}")
            continue
        # Measured against the best at the same time, since the load of the machine varies.
        seconds = best_s * pair[1] / pair[0]
        trials.append(Trial(candidate.choice, seconds, difference, build_s))
        note(
            f"{candidate.choice}: {short_time(seconds)}, {plain_s / seconds:.2f} times as fast"
            + remark
        )
        paid = time.perf_counter() - at if candidate.pays_for_building else 0.0
        cost = seconds + paid / num_calls
        if cost < best_cost * (1 - min_gain):
            best, best_built, best_s, best_cost = candidate.choice, built, seconds, cost
    return Verdict(best, best_built, plain_s / best_s, tuple(trials))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
