"""The search for the fastest of several ways to compute the same thing.

It knows neither networks nor engines, only callables: how a candidate is built, whether it computes
what it should, and how long it takes beside the best one so far. What fails to build or to run, or
computes something else, is passed over with its reason; speed counts only where outputs agree.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Built = TypeVar("Built")
Choice = TypeVar("Choice")

BUDGET_S = 60.0
NUM_TIMED = 5


@dataclass(frozen=True)
class Candidate(Generic[Choice, Built]):
    """One way to compute it.

    Attributes:
        choice: What is chosen, as data; its text is the name in notes.
        build: Returns what is then compared and timed; it may raise anything.
        pays_for_building: Whether building counts against it, for it is paid again when it is used.
    """

    choice: Choice
    build: Callable[[], Built]
    pays_for_building: bool = False


@dataclass(frozen=True)
class Parity:
    """How far a candidate is from the reference.

    Attributes:
        difference: Distance of what it computes, in the unit of the tolerance.
        tolerance: The largest difference that is accepted.
        failure: Another reason to refuse it.
        remark: What else a note tells of it.
    """

    difference: float
    tolerance: float
    failure: str = ""
    remark: str = ""

    @property
    def reason(self) -> str:
        """Why it is refused; empty if it is not."""
        if not self.difference <= self.tolerance:  # NaN is no agreement.
            return f"outputs differ by {self.difference:.1e}"
        return self.failure


@dataclass(frozen=True)
class Trial(Generic[Choice]):
    """What was found out about a candidate.

    Attributes:
        choice: The candidate's.
        seconds: Median of a call; None where it fails or is wrong.
        difference: From the reference; None where it fails.
        build_seconds: What building and comparing took.
        failure: Why it is out; empty if it is not.
    """

    choice: Choice
    seconds: float | None
    difference: float | None
    build_seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Verdict(Generic[Choice, Built]):
    """The fastest candidate, and what the search found.

    Attributes:
        choice: The candidate's.
        built: What its builder returned.
        ratio: How many times as fast as the baseline.
        trials: Every candidate that was tried, the baseline first.
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
        baseline: What is used if nothing is faster. It must work: its errors are the caller's.
        candidates: The others, most promising first.
        measure: Returns the median seconds of what was built, of one or of two in turns
            (`convnext.hardware.timer.medians`). Two see the same machine, so candidates are
            compared by ratios to the best one so far.
        compare: Compares what was built with the reference; without it all count as correct.
        budget_s: Seconds after which no further candidate is tried.
        num_calls: Calls that are ahead, over which candidates pay for their building.
        min_gain: Share of the time that a candidate must save to replace the best one.
        unit: Follows the seconds of the baseline in its note.
        note: Called with progress, a line at a time.
    """
    began = time.perf_counter()
    best, best_built = baseline.choice, baseline.build()
    best_s = best_cost = plain_s = measure([best_built])[0]
    trials = [Trial(best, plain_s, 0.0, 0.0)]
    note(f"{best}: {1000 * plain_s:.0f} ms{unit}")
    for candidate in candidates:
        if time.perf_counter() - began > budget_s:
            note(f"{candidate.choice} and what follows: not tried, {budget_s:.0f} s are over")
            break
        at = time.perf_counter()
        built = best_built  # Lets go of the last one before the next is built.
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
        except Exception as error:  # A compiler may fail in any way; there are other candidates.
            failure = first_line(error)
            took = time.perf_counter() - at
            trials.append(Trial(candidate.choice, None, difference, took, failure))
            note(f"{candidate.choice}: {failure}")
            continue
        # Against the best in the same minute, whatever else the machine does.
        seconds = best_s * pair[1] / pair[0]
        trials.append(Trial(candidate.choice, seconds, difference, build_s))
        note(
            f"{candidate.choice}: {1000 * seconds:.0f} ms, {plain_s / seconds:.2f} times as fast"
            + remark
        )
        paid = time.perf_counter() - at if candidate.pays_for_building else 0.0
        cost = seconds + paid / num_calls
        if cost < best_cost * (1 - min_gain):
            best, best_built, best_s, best_cost = candidate.choice, built, seconds, cost
    return Verdict(best, best_built, plain_s / best_s, tuple(trials))


def first_line(error: Exception) -> str:
    """Return what an error says first, or its name if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
