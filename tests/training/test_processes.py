"""Faults of whole processes: killed while saving, a lost data loader, a lost rank."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from cli_runs import Runs, last_state, wait_for

from convnext.weights.files import read_file


def final(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of the last state."""
    last = sorted(folder.glob("checkpoints/step-*"))[-1]
    return {
        f"{name}:{key}": tensor
        for name in ("model", "state")
        for key, tensor in read_file(last / f"{name}.safetensors")[0].items()
    }


def assert_same_end(one: Path, other: Path) -> None:
    whole, parts = final(one), final(other)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_killed_while_a_state_is_written(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    every = ("--run.save_every", "1", "--schedule.epochs", "1")
    process = runs.start(folder, *every)
    wait_for(lambda: last_state(folder) >= 3, process)
    wait_for(lambda: any(folder.glob("checkpoints/.step-*/*")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    saved = last_state(folder)
    assert saved >= 3
    printed = runs.finish(folder, "--resume")
    assert f"Resuming at step {saved}" in printed or f"Resuming at step {saved + 1}" in printed
    assert not list(folder.glob("checkpoints/.*"))
    assert "damaged" not in printed


def test_a_dead_loader_process_is_replaced(runs: Runs, tmp_path: Path) -> None:
    # Two epochs of slow batches, so that there is time for the kill.
    options = ("--loader.workers", "2", "--loader.cache", "false", "--schedule.epochs", "3")
    process = runs.start(tmp_path / "run", *options)
    wait_for(lambda: last_state(tmp_path / "run") >= 20, process)
    victims = children(process.pid)
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert "the processes of the data loader are started anew; back at step" in printed
    runs.finish(tmp_path / "whole", *options)
    assert_same_end(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_a_lost_process_ends_the_run_and_torchrun_resumes_it(
    runs: Runs, tmp_path: Path, free_port: int
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1")
    launcher = (*torchrun, "--master-port", str(free_port))
    folder = tmp_path / "run"
    process = runs.start(folder, "--resume", launcher=launcher)
    wait_for(lambda: last_state(folder) >= 20, process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert "Resuming at step" in printed
    runs.finish(tmp_path / "whole", "--run.devices", "2")
    assert_same_end(tmp_path / "whole", folder)


@pytest.mark.slow
def test_a_frozen_process_is_a_lost_one(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = runs.start(folder, "--run.devices", "2", "--schedule.epochs", "50")
    wait_for(lambda: last_state(folder) >= 20, process)
    (child,) = children(process.pid)
    os.kill(process.pid, signal.SIGSTOP)
    # It stays a zombie, since its parent is frozen.
    wait_for(lambda: ") Z " in Path(f"/proc/{child}/stat").read_text(), seconds=60)
    os.kill(process.pid, signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert printed.count("process 0 of the 2 of this run was lost") == 1, printed


@pytest.mark.slow
def test_uneven_shares_of_a_batch(runs: Runs, tmp_path: Path) -> None:
    options = ("--run.devices", "2", "--run.strategy", "fsdp", "--schedule.epochs", "1")
    uneven = ("--optim.batch_size", "49", "--optim.micro_batch_size", "24")
    printed = runs.finish(tmp_path / "run", *options, *uneven)
    # One rank has 25 images: two parts each, so that no rank waits for a missing part.
    assert "49 images per step: 2 devices x 13 x 2 accumulated" in printed


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_who_is_left_says_so_once_and_leaves(runs: Runs, tmp_path: Path, victim: int) -> None:
    folder = tmp_path / "run"
    process = runs.start(folder, "--run.devices", "2", "--schedule.epochs", "50")
    wait_for(lambda: last_state(folder) >= 20, process)
    (child,) = children(process.pid)
    os.kill((process.pid, child)[victim], signal.SIGKILL)
    killed = time.monotonic()
    printed, _ = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert printed.count("of the 2 of this run was lost") == 1, printed
    assert "Traceback" not in printed
    wait_for(lambda: not Path(f"/proc/{child}").exists())


def test_exit_codes_for_schedulers(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = runs.start(folder, "--schedule.epochs", "50", new=True)
    wait_for(lambda: last_state(folder) >= 5, process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75, printed
    assert printed.count("SIGTERM received: the run is saved at step") == 1
    assert f"convnext train --resume --output {folder}" in printed
    saved = last_state(folder)
    # A scheduler restarts the same command with --resume.
    assert f"Resuming at step {saved:,}" in runs.finish(
        folder, "--resume", "--schedule.epochs", "2"
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_reader_stops_a_run_like_a_signal(runs: Runs, tmp_path: Path, stream: str) -> None:
    folder = tmp_path / "run"
    options = ("--json",) if stream == "stderr" else ()  # The log then goes to standard error.
    process = runs.start(folder, "--schedule.epochs", "50", *options, new=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 75
    assert last_state(folder) >= 0


def test_a_signal_to_every_process_of_a_run(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    workers = ("--loader.workers", "2", "--loader.cache", "false", "--schedule.epochs", "50")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process = runs.start(folder, "--resume", *workers, new=True)
        step = last_state(folder)
        wait_for(lambda step=step: last_state(folder) > step, process)  # type: ignore[misc]
        os.killpg(process.pid, number)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 75, printed
        assert f"{number.name} received: the run is saved at step" in printed
        assert "Traceback" not in printed


def test_a_refused_resume_changes_nothing(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.finish(folder, "--schedule.epochs", "1")
    before = (folder / "recipe.yaml").read_bytes()
    process = runs.start(folder, "--resume", "--optim.batch_size", "32")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "began with a batch of 48 and cannot continue with 32" in printed
    assert (folder / "recipe.yaml").read_bytes() == before
