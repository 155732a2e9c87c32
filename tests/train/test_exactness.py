"""A run that was killed and resumed is the run that was never stopped, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import Runs

from convnext.train.log import read_metrics
from convnext.weights.files import read_file

# What depends on the clock and on memory, and on nothing that is learned.
TIMED = {"seconds", "images_per_s", "wait_share", "memory_gb", "mfu"}


def learned(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return every tensor of a finished run, and its metrics but for the clock's."""
    tensors = {}
    for path in sorted(folder.glob("checkpoints/**/*.safetensors")):
        for name, tensor in read_file(path)[0].items():
            tensors[f"{path.relative_to(folder)}:{name}"] = tensor
    rows = [
        {k: v for k, v in row.items() if k not in TIMED}
        for row in read_metrics(folder / "metrics.jsonl")
        if row["kind"] != "event"
    ]
    return tensors, rows


def assert_same(one: Path, other: Path) -> None:
    tensors, rows = learned(one)
    other_tensors, other_rows = learned(other)
    assert len(tensors) > 50
    assert tensors.keys() == other_tensors.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])]
    assert not different
    assert rows == other_rows


def test_killed_at_three_points_with_workers(runs: Runs, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runs.finish(whole, "--seed", "3")
    for step in (5, 20, 45):
        runs.kill_at(parts, step, "--resume", "--seed", "3", "--loader.workers", "2")
    printed = runs.finish(parts, "--resume", "--loader.workers", "1")
    assert "Resuming at step" in printed
    assert_same(whole, parts)


@pytest.mark.slow
def test_killed_over_two_processes(runs: Runs, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    devices = ("--run.devices", "2")
    runs.finish(whole, *devices)
    for step in (5, 20, 45):
        runs.kill_at(parts, step, "--resume", *devices)
    runs.finish(parts, "--resume", *devices)
    assert_same(whole, parts)
