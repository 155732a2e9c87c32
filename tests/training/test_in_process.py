"""Training from Python leaves its process unchanged, in any thread and repeatedly."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from convnext.recipes.recipe import Recipe, change_recipe
from convnext.training.distributed import process_state_restored, seed_everything
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


def test_a_class_in_place_of_a_callback_is_refused(tmp_path: Path) -> None:
    mistakes: list[Any] = [Callback, print]
    for mistake, message in zip(
        mistakes, ("pass an instance", "from convnext.Callback"), strict=True
    ):
        with pytest.raises(TypeError, match=message):
            train(Recipe(), output=tmp_path / "run", console=QUIET, callbacks=[mistake])
    assert not (tmp_path / "run").exists()
