"""A run that was killed and resumed equals an undisturbed run to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import Runs, assert_same


def test_killed_at_three_points_with_workers(runs: Runs, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runs.finish(whole, "--seed", "3")
    for step in (5, 20, 45):
        runs.kill_at(parts, step, "--resume", "--seed", "3", "--loader.workers", "2")
    # All forks hash texts alike, so only a new interpreter tells whether the order of sets counts.
    printed = runs.finish(parts, "--resume", "--loader.workers", "1", new=True)
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
