"""Reference curves from runs and tables, and warnings if a run falls below one or slows down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from convnext.training.checks import Reference, SlowSteps, read_reference, slow_steps_text


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "curve.csv"
    path.write_text("epoch,loss,top1\n10,1.0,70\n2,2.0,30\n")
    return path


def test_a_table_is_interpolated(table: Path) -> None:
    reference = read_reference(str(table), "top1")
    assert reference is not None
    assert [reference.at(epoch) for epoch in (2, 4, 10, 20)] == [30, 40, 70, 70]


def test_it_warns_below_the_tolerance_only(table: Path) -> None:
    reference = read_reference(str(table), "top1", tolerance=3.0)
    assert reference is not None
    assert reference.check(1, 0.0) is None
    assert reference.check(4, 37.0) is None
    assert reference.check(4, 80.0) is None
    assert reference.check(4, 36.5) == (
        f"top1 is 36.50 at epoch 4, 3.50 below the reference (40.00, from {table})"
    )


@pytest.mark.parametrize("inside", ["", "metrics.jsonl"])
def test_a_run_gives_its_better_weights_that_hold(tmp_path: Path, inside: str) -> None:
    rows = [
        {"kind": "val", "step": 10, "epoch": 1, "weights": "model", "top1": 40.0},
        {"kind": "val", "step": 10, "epoch": 1, "weights": "ema", "top1": 20.0},
        {"kind": "val", "step": 20, "epoch": 2, "weights": "model", "top1": 99.0},
        {"kind": "resume", "step": 10},
        {"kind": "train", "step": 20, "epoch": 2, "loss": 1.0},
        {"kind": "val", "step": 20, "epoch": 2, "weights": "ema", "top1": 50.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reference = read_reference(str(tmp_path / inside), "top1")
    assert reference == Reference(
        metric="top1", epochs=(1, 2), values=(40, 50), source=str(tmp_path / inside)
    )


def test_none_is_no_reference() -> None:
    assert read_reference("none", "top1") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,acc\n1,2\n", "has the columns epoch, acc; it needs top1"),
        ("", "has the columns ; it needs epoch and top1"),
        ("epoch,top1\n", "has no value of top1"),
        ("epoch,top1\n1,2\n2,high\n", "line 3 of .* is not two numbers: 2,high"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "curve.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_reference(str(path), "top1")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*; give a run folder"):
        read_reference(str(tmp_path / "none.csv"), "top1")


def test_slow_steps_are_noticed_once() -> None:
    slow = SlowSteps()
    speeds = [(20.0, 0)] + [(100.0 + k, k) for k in range(1, 20)]  # The very first step is slow.
    assert [slow.update(speed, now) for speed, now in speeds] == [None] * 20
    assert [slow.update(40.0, now) for now in (100, 130, 159)] == [None] * 3
    assert slow.update(90.0, 160) is None  # Another process ended.
    assert [slow.update(40.0, now) for now in (200, 230, 259)] == [None] * 3
    assert slow.update(40.0, 260) == pytest.approx(102 / 40)
    assert slow.update(40.0, 400) is None


def test_slow_steps_of_a_new_phase_are_as_expected() -> None:
    slow = SlowSteps(seconds=10)
    for now in range(10):
        slow.update(100.0, now)
    slow.begin()
    assert [slow.update(40.0, now) for now in range(10, 60)] == [None] * 50


def test_what_to_do_about_slow_steps() -> None:
    text = slow_steps_text(2.55, torch.device("cpu"))
    assert "2.5 times as long" in text or "2.6 times as long" in text
    assert "--run.threads 1" in text
    assert "1 thread," in text
    assert "run.threads" not in slow_steps_text(2.5, torch.device("cuda"))
