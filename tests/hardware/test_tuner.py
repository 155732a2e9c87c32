"""The tuner finds the fastest correct candidate and reports its measurements."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from convnext.hardware import tuner
from convnext.hardware.tuner import Candidate, Parity, Verdict, tune

SECONDS = {"base": 1.0, "fast": 0.5, "slow": 2.0, "wrong": 0.01, "close": 0.96, "compiled": 0.8}


def candidate(name: str, *, pays: bool = False) -> Candidate[str, str]:
    def build() -> str:
        if name == "fails":
            raise RuntimeError("no such operator\nand pages of what a compiler has to say")
        return name

    return Candidate(name, build, pays_for_building=pays)


def measure(built: Sequence[str]) -> list[float]:
    return [SECONDS[name] for name in built]


def compare(choice: str, built: str) -> Parity:
    assert choice == built
    return Parity(float("nan") if built == "wrong" else 1e-6, 1e-4, remark=" and right")


def search(*names: str, **options: object) -> Verdict[str, str]:
    options = {"measure": measure, "compare": compare} | options
    return tune(candidate("base"), map(candidate, names), **options)  # type: ignore[arg-type]


def test_the_fastest_that_agrees_wins() -> None:
    lines: list[str] = []
    found = search("slow", "wrong", "fails", "fast", note=lines.append, unit=" a batch")
    assert (found.choice, found.built, found.ratio) == ("fast", "fast", 2.0)
    assert [t.choice for t in found.trials] == ["base", "slow", "wrong", "fails", "fast"]
    failures = {t.choice: (t.seconds, t.failure) for t in found.trials if t.failure}
    assert failures == {
        "wrong": (None, "outputs differ by nan"),
        "fails": (None, "no such operator"),
    }
    assert lines == [
        "base: 1,000 ms a batch",
        "slow: 2,000 ms, 0.50 times as fast and right",
        "wrong: outputs differ by nan",
        "fails: no such operator",
        "fast: 500 ms, 2.00 times as fast and right",
    ]


def test_candidates_are_compared_in_the_same_minute() -> None:
    """The machine becomes twice as slow after the baseline: ratios count, not seconds."""
    slowdown = [1.0]

    def on_a_busy_machine(built: Sequence[str]) -> list[float]:
        times = [slowdown[0] * SECONDS[name] for name in built]
        slowdown[0] *= 4
        return times

    found = search("fast", "close", measure=on_a_busy_machine)
    assert found.choice == "fast"
    assert found.ratio == pytest.approx(2.0)
    assert found.trials[1].seconds == pytest.approx(0.5)


def test_another_reason_refuses_too() -> None:
    found = search("fast", compare=lambda *_: Parity(0.0, 1.0, failure="finds half of it"))
    assert found.choice == "base"
    assert found.trials[1].failure == "finds half of it"


def test_small_gains_do_not_count_where_some_are_asked_for() -> None:
    assert search("close").choice == "close"
    assert search("close", min_gain=0.08).choice == "base"


def test_building_is_paid_for_over_the_calls_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(tuner.time, "perf_counter", lambda: now[0])

    def build() -> str:
        now[0] += 10.0
        return "compiled"

    for pays, num_calls, best in (
        (True, 20, "base"),
        (True, 100, "compiled"),
        (False, 20, "compiled"),
    ):
        option = Candidate("compiled", build, pays_for_building=pays)
        found = tune(candidate("base"), [option], measure=measure, num_calls=num_calls)
        assert found.choice == best, (pays, num_calls)


def test_the_budget_ends_the_search() -> None:
    lines: list[str] = []
    found = search("fast", "slow", budget_s=-1.0, note=lines.append)
    assert found.choice == "base"
    assert len(found.trials) == 1
    assert lines[-1] == "fast and later candidates: not tried after -1 s"


def test_a_baseline_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no such operator"):
        tune(candidate("fails"), [candidate("fast")], measure=measure)
