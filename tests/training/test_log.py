"""The log of a run: append-only, intact after a crash, monotonic, and silent in other ranks."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convnext.training.log import RunLog, read_metrics
from convnext.training.trackers import Tracker


class Clock:
    """A `time.perf_counter` that is advanced by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Collector:
    """A Lightning logger that records scalars and fails from a given step."""

    def __init__(self, gone_at: int = 10**9) -> None:
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.gone_at = gone_at

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if step >= self.gone_at:
            raise ConnectionError("gone")
        self.sent.append((step, metrics))

    def save(self) -> None: ...

    def finalize(self, status: str) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("convnext.training.log.time.perf_counter", clock)
    return clock


@pytest.fixture
def printed() -> Console:
    return Console(file=io.StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def write_run(log: RunLog, first: int, last: int, clock: Clock | None = None) -> None:
    """Begin at a step and log the following ones, each of 4 images and 2 seconds."""
    log.begin_at(first, 4 * first)
    log.start(num_steps=10, steps_per_epoch=5, first_step=first)
    for step in range(first + 1, last + 1):
        if clock is not None:
            clock.now += 2.0
        log.stepped(step, 4)
        log.trained(step, loss=1 / step, lr=1e-3)


def raw_rows(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl", raw=True)


def scalars(folder: Path, tag: str) -> list[int]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_a_resumed_run_appends_and_its_rows_are_those_of_one_run(
    tmp_path: Path, printed: Console, clock: Clock
) -> None:
    log = RunLog(tmp_path, printed)
    write_run(log, 0, 6, clock)
    log.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    clock.now += 1000.0
    log = RunLog(tmp_path, printed)
    write_run(log, 4, 8, clock)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["images"] for row in rows] == [4 * s for s in range(1, 9)]
    assert [row["seconds"] for row in rows] == [2.0 * s for s in range(1, 9)]
    assert [row["step"] for row in raw_rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]
    assert raw_rows(tmp_path)[6]["kind"] == "resume"
    assert scalars(tmp_path, "train/loss") == list(range(1, 9))
    assert "Resuming at step 4." in text(printed)


def test_a_finished_run_says_that_nothing_is_left(tmp_path: Path, printed: Console) -> None:
    log = RunLog(tmp_path, printed)
    log.begin_at(4, num_steps=4)
    log.close()
    assert text(printed).strip() == "All 4 steps are done; nothing is left to train."


def test_going_back_within_a_process(tmp_path: Path, printed: Console, clock: Clock) -> None:
    log = RunLog(tmp_path, printed)
    write_run(log, 0, 3, clock)
    log.stop()
    clock.now += 50.0
    write_run(log, 2, 4, clock)
    log.warn("went back", step=2)
    log.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["seconds"]) for row in rows[:4]] == [(1, 2), (2, 4), (3, 6), (4, 8)]
    assert scalars(tmp_path, "train/loss") == [1, 2, 3, 4]


def test_a_run_that_begins_anew_supersedes_all(tmp_path: Path, printed: Console) -> None:
    for _ in range(2):
        log = RunLog(tmp_path, printed)
        write_run(log, 0, 2)
        log.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [row["kind"] for row in raw_rows(tmp_path)].count("resume") == 1


@pytest.mark.parametrize("cut", [1, 20])
def test_a_torn_line_is_left_alone(tmp_path: Path, printed: Console, cut: int) -> None:
    log = RunLog(tmp_path, printed)
    write_run(log, 0, 3)
    log.close()
    path = tmp_path / "metrics.jsonl"
    torn = path.read_bytes()[:-cut]
    path.write_bytes(torn)
    log = RunLog(tmp_path, printed)
    write_run(log, 2, 4)
    log.close()
    assert path.read_bytes().startswith(torn + b"\n")
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]


def test_lines_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    row = {"kind": "train", "step": 1}
    path.write_bytes(b'{"kind": "tr\n12\n{}\n\xff\xfe\n' + json.dumps(row).encode() + b"\n{")
    assert read_metrics(path) == [row]


def test_each_row_is_in_the_file_at_once(tmp_path: Path, printed: Console) -> None:
    log = RunLog(tmp_path, printed)
    log.begin_at(0)
    log.trained(1, loss=1.0, lr=0.1)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    log.close()


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, printed: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 10

        def write(self, data: bytes) -> int:
            if self.room == 0:
                raise OSError(28, "No space left on device")
            data, self.room = data[: self.room], max(0, self.room - len(data))
            return int(self.file.write(data))

        def close(self) -> None:
            self.file.close()

    log = RunLog(tmp_path, printed)
    log.begin_at(0)
    rows = log._rows
    assert rows is not None
    full = Full(rows._file)
    monkeypatch.setattr(rows, "_file", full)
    for step in (1, 2, 3):
        log.trained(step, loss=1.0, lr=0.1)
    full.room = 10**6
    log.trained(4, loss=1.0, lr=0.1)
    log.close()
    assert text(printed).count("could not be written") == 1
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [4]


def test_speed_leaves_out_pauses_and_evaluations(
    tmp_path: Path, printed: Console, clock: Clock
) -> None:
    log = RunLog(tmp_path, printed)
    log.begin_at(0)
    log.start(num_steps=10, steps_per_epoch=5, first_step=0)
    with log.waiting():
        clock.now += 1.0
    clock.now += 3.0
    with log.paused():
        clock.now += 100.0
    log.stepped(1, 8)
    log.trained(1, loss=1.0, lr=0.1)
    clock.now += 100.0
    log.evaluated(1, "model", {"top1": 50.0})
    clock.now += 1.0
    log.stepped(2, 8)
    log.trained(2, loss=1.0, lr=0.1)
    log.close()
    trained = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert [(row["images_per_s"], row["wait_share"]) for row in trained] == [
        (2.0, 0.25),
        (8.0, 0.0),
    ]
    assert trained[-1]["seconds"] == 205.0


def test_a_wall_clock_that_jumps_changes_nothing(
    tmp_path: Path, printed: Console, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def jumps() -> Iterator[float]:
        while True:
            yield from (2e9, 1e9)

    log = RunLog(tmp_path / "calm", printed)
    write_run(log, 0, 5, clock)
    log.close()
    wall = jumps()
    monkeypatch.setattr(time, "time", lambda: next(wall))
    log = RunLog(tmp_path / "jumps", printed)
    write_run(log, 0, 5, clock)
    log.close()
    monkeypatch.undo()
    calm, jumped = ((tmp_path / n / "metrics.jsonl").read_text() for n in ("calm", "jumps"))
    assert calm == jumped
    assert scalars(tmp_path / "jumps", "train/images_per_s") == [1, 2, 3, 4, 5]


def test_a_row_holds_what_the_loop_measures(tmp_path: Path, printed: Console, clock: Clock) -> None:
    collector = Collector()
    log = RunLog(tmp_path, printed, trackers=[Tracker("collector", lambda: collector)])
    log.begin_at(0)
    log.start(num_steps=10, steps_per_epoch=5, first_step=0)
    clock.now += 20.0
    log.stepped(1, 40)
    log.trained(
        1,
        loss=3.0,
        lr=1e-3,
        losses={"cls": 1.0, "box": 2.0},
        extra={"grad_norm": 0.5},
        groups={"group 0 decay": 1e-4, "group 7 decay": 1e-3},
        mfu=lambda speed: speed / 10,
    )
    log.evaluated(1, "ema", {"top1": 50.0})
    log.close()
    row, _ = read_metrics(tmp_path / "metrics.jsonl")
    expected = {"loss": 3.0, "loss/cls": 1.0, "loss/box": 2.0, "lr": 1e-3,
                "images_per_s": 2.0, "mfu": 0.2,
                "wait_share": 0.0, "grad_norm": 0.5, "lr_min": 1e-4, "lr_max": 1e-3}  # fmt: skip
    assert {k: v for k, v in row.items() if k in expected} == expected
    assert not any(key.startswith("lr/") for key in row)
    (_, trained), (_, evaluated) = collector.sent
    rates = {"lr/group 0 decay": 1e-4, "lr/group 7 decay": 1e-3}
    assert trained == {f"train/{k}": v for k, v in expected.items()} | rates
    assert evaluated == {"val/top1_ema": 50.0}
    assert scalars(tmp_path, "lr/group 7 decay") == [1]
    line = next(line for line in text(printed).splitlines() if "loss" in line)
    assert line == (
        "step 1/10  epoch 0.2  loss 3.000  lr 1.0e-03  2 images/s  waiting 0%  MFU 20%  ETA 180 s"
    )


def test_a_tracker_that_fails_is_dropped_with_a_warning(tmp_path: Path, printed: Console) -> None:
    collector = Collector(gone_at=2)
    log = RunLog(tmp_path, printed, trackers=[Tracker("collector", lambda: collector)])
    write_run(log, 0, 4)
    log.close()
    assert len(collector.sent) == 1
    rows = read_metrics(tmp_path / "metrics.jsonl")
    (event,) = [row for row in rows if row["kind"] == "event"]
    assert event["event"].startswith("collector failed (ConnectionError: gone)")
    assert len(rows) == 5


def test_a_warning_is_printed_as_it_is_and_kept(tmp_path: Path, printed: Console) -> None:
    log = RunLog(tmp_path, printed)
    write_run(log, 0, 2)
    log.warn("the file [a]/b is gone")
    log.close()
    assert "warning: the file [a]/b is gone" in text(printed)
    row = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert (row["kind"], row["step"], row["event"]) == ("event", 2, "the file [a]/b is gone")


def test_a_silent_log_has_the_same_interface_and_leaves_no_trace(
    tmp_path: Path, printed: Console
) -> None:
    collector = Collector()
    trackers = [Tracker("collector", lambda: collector)]
    log = RunLog(tmp_path / "run", printed, silent=True, trackers=trackers)
    write_run(log, 2, 4)
    with log.waiting(), log.paused():
        log.warn("nobody hears it")
    assert log.evaluated(4, "model", {"top1": 1.0}) == {"step": 4, "weights": "model", "top1": 1.0}
    log.close()
    assert text(printed) == ""
    assert not (tmp_path / "run").exists()
    assert collector.sent == []
