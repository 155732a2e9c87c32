"""The timer: the order and the number of calls; no test depends on real time."""

from __future__ import annotations

import pytest

from convnext.hardware import tuner
from convnext.hardware.tuner import medians, samples, samples_for, timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only a test advances, through its only entry."""
    now = [0.0]
    monkeypatch.setattr(tuner.time, "perf_counter", lambda: now[0])
    return now


def taking(clock: list[float], *seconds: float):
    """Return a call that takes these seconds in turn, and a counter of its calls."""
    calls: list[int] = []

    def call() -> None:
        clock[0] += seconds[min(len(calls), len(seconds) - 1)]
        calls.append(1)

    return call, calls


def test_a_result_comes_with_its_seconds(clock: list[float]) -> None:
    def call() -> str:
        clock[0] += 2.5
        return "done"

    assert timed(call) == ("done", 2.5)


def test_calls_take_turns_and_the_first_turns_do_not_count(clock: list[float]) -> None:
    order: list[str] = []

    def call(name: str, seconds: float):
        def run() -> None:
            clock[0] += seconds if len(order) >= 4 else 100.0
            order.append(name)

        return run

    found = samples([call("a", 1.0), call("b", 2.0)], rounds=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert found == [[1.0] * 3, [2.0] * 3]


def test_medians_are_not_means(clock: list[float]) -> None:
    call, _ = taking(clock, 9.0, 1.0, 50.0, 2.0)
    assert medians(samples([call], rounds=3)) == [2.0]


def test_turns_end_with_their_time_but_not_before_the_least(clock: list[float]) -> None:
    call, calls = taking(clock, 10.0)
    assert samples([call], rounds=5, max_seconds=15.0) == [[10.0]]
    assert samples([call], rounds=5, min_rounds=3, max_seconds=15.0) == [[10.0] * 3]
    assert len(calls) == 2 + 4


def test_what_cannot_win_is_timed_twice(clock: list[float]) -> None:
    fast, _ = taking(clock, 1.0)
    slow, calls = taking(clock, 2.0)
    found = samples([fast, slow], rounds=5, too_slow=1.5)
    assert [len(own) for own in found] == [2, 2]
    assert len(calls) == 3
    assert [len(own) for own in samples([fast, slow], rounds=5, too_slow=2.5)] == [5, 5]


def test_a_call_is_repeated_for_a_time(clock: list[float]) -> None:
    call, _ = taking(clock, 7.0, 1.0)
    assert samples_for(call, seconds=3.5) == [1.0] * 4
    assert samples_for(call, seconds=0.0, min_rounds=3) == [1.0] * 3


def test_no_turns_time_nothing() -> None:
    call, calls = taking([0.0], 1.0)
    assert samples([call], rounds=0, warmup=0) == [[]]
    assert calls == []
