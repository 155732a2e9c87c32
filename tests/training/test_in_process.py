"""Training from Python leaves its process unchanged, in any thread and repeatedly."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from small_objects import small_coco

from convnext.data.objects import open_dataset
from convnext.data.samples import missing_files
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.tasks.classification.task import ClassificationTask
from convnext.training.distributed import process_state_restored, seed_everything
from convnext.training.faults import InterruptedRun, ReportError
from convnext.training.run import RunResult, train
from convnext.training.trackers import Callback
from convnext.weights.files import read_file

QUIET = Console(quiet=True)
SETTINGS = {
    "data": "digits",
    "model": "convnext_atto",
    "schedule.steps": 2,
    "run.precision": "fp32",
    "run.device": "cpu",
    "loader.workers": 0,
}


def short(folder: Path, **changes: Any) -> RunResult:
    recipe = change_recipe(
        Recipe(), SETTINGS | {k.replace("__", "."): v for k, v in changes.items()}
    )
    return train(recipe, output=folder, console=QUIET)


def state() -> tuple[Any, ...]:
    handlers = tuple(signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM))
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        handlers,
    )


def tensors(run: RunResult) -> dict[str, torch.Tensor]:
    return dict(read_file(run.folder / "checkpoints/step-00000002/model.safetensors")[0])


def test_two_trainings_and_one_in_a_thread_are_the_same_and_leave_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = state()
    first = short(tmp_path / "first", run__deterministic=True)
    assert state() == before
    second = short(tmp_path / "second", run__deterministic=True)
    found: list[RunResult] = []
    thread = threading.Thread(
        target=lambda: found.append(short(tmp_path / "third", run__deterministic=True))
    )
    thread.start()
    thread.join()
    assert state() == before
    ours = tensors(first)
    for other in (second, *found):
        theirs = tensors(other)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(found) == 1
    assert not (first.folder / "report.html").exists()
    assert capfd.readouterr() == ("", "")


def test_the_process_is_restored_after_an_error() -> None:
    before = state()

    def fail() -> None:
        seed_everything(1)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(before[3] + 1)
        raise LookupError

    with pytest.raises(LookupError), process_state_restored():
        fail()
    assert state() == before


def test_missing_files_are_found_before_the_first_step(tmp_path: Path) -> None:
    data = small_coco(tmp_path / "data", num_train=4, num_val=6)
    recipe = change_recipe(Recipe(), {"data": str(data), "task": "detect", "run.device": "cpu"})
    images = open_dataset(str(data)).val
    assert missing_files(images) == []
    for name in ("val1.png", "val4.png"):
        (data / "images" / name).unlink()
    assert [i for i, _ in missing_files(images)] == [1, 4]
    with pytest.raises(ValueError, match=r"2 of 6 images cannot be read.*val1\.png: there is no"):
        train(recipe, output=tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def finishing(folder: Path, write_report: Callable[[Path], Path]) -> None:
    recipe = change_recipe(Recipe(), SETTINGS)
    train(recipe, output=folder, console=QUIET, write_report=write_report)


def test_a_report_that_fails_names_the_command_that_makes_it(tmp_path: Path) -> None:
    def write_report(_: Path) -> Path:
        raise LookupError("no such font")

    folder = tmp_path / "run"
    match = (
        r"training is complete and saved, .* LookupError\('no such font'\).*: "
        rf"convnext train --resume --output {folder}$"
    )
    with pytest.raises(ReportError, match=match):
        finishing(folder, write_report)
    assert (folder / "checkpoints/step-00000002").is_dir()
    assert (folder / "evaluation.json").is_file()
    done = train(
        change_recipe(Recipe(), SETTINGS),
        output=folder,
        resume=True,
        console=QUIET,
        write_report=lambda run: run / "report.html",
    )
    assert done.steps == 2


def test_an_evaluation_that_fails_leaves_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write_report(folder: Path) -> Path:
        written.append(folder)
        return folder / "report.html"

    def evaluate(*_: Any, **__: Any) -> None:
        raise ValueError("2 of 108 images cannot be read")

    monkeypatch.setattr(ClassificationTask, "evaluate", evaluate)
    with pytest.raises(ReportError, match=r"failed: 2 of 108 images cannot be read\. Once"):
        finishing(tmp_path / "run", write_report)
    assert written == [tmp_path / "run"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_during_the_report_ends_the_run_at_once(tmp_path: Path, name: str) -> None:
    before = state()[-1]

    def write_report(_: Path) -> Path:
        os.kill(os.getpid(), getattr(signal, name))
        raise AssertionError("the signal came too late")

    with pytest.raises(InterruptedRun, match=rf"^{name} received: training is complete .*--resume"):
        finishing(tmp_path / "run", write_report)
    assert state()[-1] == before


def test_a_class_in_place_of_a_callback_is_refused(tmp_path: Path) -> None:
    mistakes: list[Any] = [Callback, print]
    for mistake, message in zip(
        mistakes, ("pass an instance", "from convnext.Callback"), strict=True
    ):
        with pytest.raises(TypeError, match=message):
            train(Recipe(), output=tmp_path / "run", console=QUIET, callbacks=[mistake])
    assert not (tmp_path / "run").exists()
