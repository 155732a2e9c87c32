"""Studies that really train: killed, interrupted, and resumed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Process, start_command, wait_for

from convnext.studies.compare import Result, read_results
from convnext.studies.plan import read_study
from convnext.studies.runs import held

# Nothing to measure at the start of each run.
BACKEND = ("--run.channels_last", "true", "--run.compile", "false")
OPTIONS = (
    "--regime",
    "mini",
    "--data",
    "digits",
    "--rungs",
    "resnet_baseline,enhanced_recipe,kernel_5",
    "--no-speed",
    "--jobs",
    "2",
    "--schedule.epochs",
    "2",
    "--optim.batch_size",
    "96",
    "--run.save_every",
    "5",
    *BACKEND,
)


STARTED: list[Process] = []


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """End the processes that a failed test has left."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def start(root: Path, *options: str) -> Process:
    arguments = ["roadmap", *OPTIONS, *options, "--output", str(root)]
    process = start_command(arguments, root.parent)
    STARTED.append(process)
    return process


def finish(root: Path, *options: str) -> str:
    process = start(root, *options)
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    return printed


def table(root: Path) -> list[dict[str, Any]]:
    """Return the table without times."""
    rows = [vars(result) | {"seconds": 0} for result in read_results(root / "results.csv")]
    assert json.loads((root / "results.json").read_text())["results"]
    return rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed study with two seeds."""
    root = tmp_path_factory.mktemp("whole") / "study"
    finish(root, "--seeds", "2")
    return root


def test_what_a_study_leaves(whole: Path) -> None:
    results = read_results(whole / "results.csv")
    assert [(r.entry, r.seed) for r in results] == [
        (entry, seed)
        for entry in ("resnet_baseline", "enhanced_recipe", "kernel_5")
        for seed in (0, 1)
    ]
    assert all(r.state == "finished" and r.score is not None and r.score > 50 for r in results)
    # The first two are the same network and recipe; each seed is a separate run.
    assert [r.score for r in results[:2]] == [r.score for r in results[2:4]]
    assert results[0].loss != results[1].loss
    assert sorted(p.name for p in (whole / "runs").iterdir()) == ["kernel_5", "resnet_baseline"]
    recipes = [p.read_text() for p in sorted(whole.glob("runs/*/seed-0/recipe.yaml"))]
    differing = [a for a, b in zip(*(r.splitlines() for r in recipes), strict=True) if a != b]
    assert differing == ["model: roadmap/mini/kernel_5"]
    assert (whole / "report.html").is_file()
    assert (whole / "figures" / "staircase.png").is_file()


def test_a_walk_that_was_killed_gives_the_same_table(whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "study"
    process = start(root, "--seeds", "2")
    wait_for(lambda: any(root.glob("runs/*/seed-0/checkpoints/step-*")), process, 400)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    process = start(root, "--seeds", "2")
    wait_for(lambda: any(root.glob("runs/*/seed-*/result.json")), process, 400)
    before = {p: p.stat().st_mtime_ns for p in root.glob("runs/*/seed-*/result.json")}
    # Only the parent; the training processes notice it, save and exit.
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    assert read_results(root / "results.csv")
    finish(root, "--seeds", "2")
    assert table(root) == table(whole)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


def test_asked_to_end_it_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    root = tmp_path / "study"
    process = start(root, "--schedule.epochs", "200")
    wait_for(lambda: any(root.glob("runs/*/seed-0/checkpoints/step-*")), process, 400)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 75, printed
    assert "SIGTERM received: 0 of 2 runs are done, the others saved" in printed
    assert {r.state for r in read_results(root / "results.csv")} == {"waiting"}


@pytest.mark.slow
def test_a_study_grows_by_seeds_and_rungs_but_keeps_its_recipe(whole: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "study"
    shutil.copytree(whole, root)
    finished = {p: p.stat().st_mtime_ns for p in root.glob("runs/*/seed-*/result.json")}
    assert (
        "3 of 9 runs to do"
        in finish(root, "--seeds", "3", "--rungs", "resnet_baseline,kernel_5,kernel_7")
        or len(finished) == 4
    )
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())
    assert len(read_results(root / "results.csv")) == 9
    assert read_study(root).seeds == [0, 1, 2]
    assert (root / "data.json").is_file()
    process = start(root, "--optim.lr", "0.01")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "was started with optim.lr" in printed
    assert "needs another --output" in printed


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        held(tmp_path),
        pytest.raises(ValueError, match="another process works on"),
        held(tmp_path),
    ):
        pass
    with held(tmp_path):
        assert (tmp_path / ".lock").exists()


@pytest.mark.slow
def test_a_network_that_diverges_is_one_line_of_the_table(tmp_path: Path) -> None:
    root = tmp_path / "study"
    options = ("--rungs", "kernel_5", "--optim.lr", "1e30", "--optim.clip_grad", "0")
    process = start(root, *options)
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 1, printed  # There is no result.
    (result,) = read_results(root / "results.csv")
    assert isinstance(result, Result)
    assert (result.state, result.score) == ("diverged", None)
    assert "loss" in result.reason
    # It is not retried: the same seed fails in the same way.
    process = start(root, *options)
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 1, printed
    assert "0 of 1 runs to do" in printed
