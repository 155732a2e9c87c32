"""Faults of long runs, caused for real if one process can do so to itself."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import BATCH, ToyTask, run, weights

from convnext.hardware.system import StopSignals
from convnext.training import loop
from convnext.training.checkpointing import load_state
from convnext.training.faults import (
    DivergedError,
    InterruptedRun,
    is_lost_worker,
    is_single_value,
)
from convnext.training.log import read_metrics
from convnext.weights.checkpoint import complete_steps, step_of


def events(folder: Path) -> list[str]:
    rows = read_metrics(folder / "metrics.jsonl", raw=True)
    return [row["event"] for row in rows if row["kind"] == "event"]


def assert_same_end(one: Path, other: Path, step: int = 12) -> None:
    for name in ("model", "state"):
        path = f"checkpoints/step-{step:08d}/{name}.safetensors"
        whole, parts = weights(one / path), weights(other / path)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole), name


class SignalledTask(ToyTask):
    """A network whose process gets a signal in the middle of a step."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__()
        self.number, self.at = number, at

    def losses(self, model: nn.Module, batch: Tensor, step: int, *rest: Any) -> dict[str, Tensor]:
        if step == self.at:
            os.kill(os.getpid(), self.number)
        return super().losses(model, batch, step, *rest)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
@pytest.mark.parametrize("at", [0, 4, 6])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, name: str, at: int) -> None:
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(InterruptedRun, match=f"{name} received: .* saved at step {at + 1} of 12"):
        run(tmp_path / "parts", SignalledTask(getattr(signal, name), at))
    assert signal.getsignal(getattr(signal, name)) == before
    assert step_of(complete_steps(tmp_path / "parts/checkpoints")[-1]) == at + 1
    run(tmp_path / "parts", ToyTask(), resume=True)
    run(tmp_path / "whole", ToyTask())
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    class Impatient(SignalledTask):
        def losses(self, model: nn.Module, *rest: Any) -> dict[str, Tensor]:
            os.kill(os.getpid(), signal.SIGINT)
            return super().losses(model, *rest)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Impatient(signal.SIGINT, 0))


class LimitedDisk(ToyTask):
    """Between `full` and `free`, files of more than a few bytes cannot be written."""

    def __init__(self, full: int, free: int) -> None:
        super().__init__()
        self.full, self.free = full, free
        self.scores = [float(k) for k in range(200)]  # Every evaluation is a new best.

    def batches(self, start_step: int, *rest: Any) -> Iterator[Sequence[Any]]:
        for step, parts in enumerate(super().batches(start_step, *rest), start_step):
            if step in (self.full, self.free):
                limit_files(9_000 if step == self.full else None)
            yield parts


def limit_files(size: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


@pytest.fixture
def unlimited_files() -> Iterator[None]:
    yield
    limit_files(None)


@pytest.mark.usefixtures("unlimited_files")
def test_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    outcome = run(tmp_path / "parts", LimitedDisk(full=4, free=8), schedule__epochs=40)
    told = events(tmp_path / "parts")
    assert any("step 6 could not be saved: it needs" in text for text in told), told
    assert any("continues and will retry" in text for text in told)
    assert any("best weights are still the earlier ones" in text for text in told)
    assert not list((tmp_path / "parts/checkpoints").glob(".*"))
    assert outcome.steps == 120
    assert outcome.best["step"] == 120
    run(tmp_path / "whole", ToyTask(), schedule__epochs=40)
    assert_same_end(tmp_path / "whole", tmp_path / "parts", step=120)


@pytest.mark.usefixtures("unlimited_files")
def test_a_disk_that_stays_full_keeps_the_last_state(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=r"step 12 could not be saved: it needs 0\.\d MB in .*Fix this"
    ):
        run(tmp_path, LimitedDisk(full=4, free=10**6))
    limit_files(None)
    assert [p.name for p in complete_steps(tmp_path / "checkpoints")][-1] == "step-00000003"
    run(tmp_path, ToyTask(), resume=True)
    run(tmp_path / "whole", ToyTask())
    assert_same_end(tmp_path / "whole", tmp_path)


def test_no_room_at_the_start_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="checkpoints"):
        run(tmp_path, ToyTask())


class NanOnceTask(ToyTask):
    """A loss is NaN, but not again at a lower rate."""

    def losses(self, model: nn.Module, batch: Tensor, step: int, *rest: Any) -> dict[str, Tensor]:
        losses = super().losses(model, batch, step, *rest)
        self.nan_at = None if step == self.nan_at else self.nan_at
        return losses


def test_nan_rolls_back_at_half_the_rate(tmp_path: Path) -> None:
    outcome = run(tmp_path, NanOnceTask(nan_at=7), run__on_nan="rollback")
    assert outcome.steps == 12
    (told,) = events(tmp_path)
    assert "the loss became nan at step 8" in told
    assert "0.5 times the learning rate" in told
    assert "back at step 6" in told
    rates = {
        row["step"]: row["lr"] for row in read_metrics(tmp_path / "metrics.jsonl") if "lr" in row
    }
    run(tmp_path / "whole", ToyTask())
    whole = {
        r["step"]: r["lr"] for r in read_metrics(tmp_path / "whole/metrics.jsonl") if "lr" in r
    }
    assert rates[6] == whole[6]
    assert rates[9] == pytest.approx(whole[9] / 2)


def test_nan_that_returns_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="step 8"):
        run(tmp_path, ToyTask(nan_at=7), run__on_nan="rollback")
    assert all(
        torch.isfinite(w).all()
        for w in weights(
            complete_steps(tmp_path / "checkpoints")[-1] / "model.safetensors"
        ).values()
    )


class SmallMemory(ToyTask):
    """More than three images at once need more memory than any machine has."""

    def losses(self, model: nn.Module, batch: Tensor, step: int, *rest: Any) -> dict[str, Tensor]:
        if len(batch) > 3 and step >= 4:
            torch.empty(10**15)
        return super().losses(model, batch, step, *rest)


def test_too_little_memory_halves_the_micro_batch(tmp_path: Path) -> None:
    task = SmallMemory()
    outcome = run(tmp_path, task, drop_path=0.0)
    assert outcome.steps == 12
    assert outcome.micro_batch_size == BATCH // 4
    assert len(events(tmp_path)) == 2
    assert "micro_batch_size is 2 from now on, the batch stays 8" in events(tmp_path)[-1]
    run(tmp_path / "whole", ToyTask(), drop_path=0.0)
    ours = weights(tmp_path / "checkpoints/step-00000012/model.safetensors")
    whole = weights(tmp_path / "whole/checkpoints/step-00000012/model.safetensors")
    assert all(torch.allclose(ours[name], whole[name], atol=1e-3) for name in whole)


def test_an_image_that_never_fits_is_an_error(tmp_path: Path) -> None:
    class NoMemory(ToyTask):
        def losses(self, model: nn.Module, *rest: Any) -> dict[str, Tensor]:
            torch.empty(10**15)
            raise AssertionError

    with pytest.raises(ValueError, match="one image does not fit"):
        run(tmp_path, NoMemory())


def test_other_data_or_another_batch_is_refused(tmp_path: Path) -> None:
    run(tmp_path, ToyTask())
    other = ToyTask()
    other.fingerprint = "others"
    with pytest.raises(ValueError, match=r"data set has changed .*toy then, others now.*--weights"):
        run(tmp_path, other, resume=True)
    other = ToyTask()
    other.batch_size = 4
    with pytest.raises(ValueError, match="began with a batch of 8 and cannot continue with 4"):
        run(tmp_path, other, resume=True)


def test_a_longer_schedule_says_what_it_does(tmp_path: Path) -> None:
    run(tmp_path, ToyTask())
    outcome = run(tmp_path, ToyTask(), resume=True, schedule__epochs=8)
    assert outcome.steps == 24
    (told,) = events(tmp_path)
    assert "ends at step 24 and not 12" in told
    assert "continues at 0.0012 where it was at 1e-06" in told
    rows = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert rows[-1]["step"] == 24


class LargeGradients(ToyTask):
    """The losses and weights are finite, but the squares of the gradients are not."""

    def losses(self, model: nn.Module, batch: Tensor, step: int, *rest: Any) -> dict[str, Tensor]:
        losses = super().losses(model, batch, step, *rest)
        return {"loss": losses["loss"] * (1e25 if step == 4 else 1.0)}


def test_moments_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="moment of the optimizer, is not finite after step 5"):
        run(tmp_path, LargeGradients(), run__save_every=1)
    run(tmp_path, ToyTask(), resume=True)
    run(tmp_path / "whole", ToyTask())
    assert_same_end(tmp_path / "whole", tmp_path)


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    def task() -> ToyTask:
        found = ToyTask()
        found.scores = [50.0, 40.0, 30.0, 20.0, 10.0, 5.0]
        return found

    settings = {"ema__decay": 0.0, "run__patience": 2}
    first = run(tmp_path, task(), **settings)
    again = run(tmp_path, task(), resume=True, **settings)
    assert first.stopped_early
    assert again.stopped_early
    assert first.steps == again.steps == 9
    assert not run(tmp_path, task(), resume=True, ema__decay=0.0, run__patience=9).stopped_early


def test_best_weights_that_are_gone_are_told_of_and_replaced(tmp_path: Path) -> None:
    run(tmp_path, ToyTask(), schedule__epochs=3)
    best = tmp_path / "checkpoints/best.safetensors"
    best.unlink()
    (tmp_path / "checkpoints/.step-00000077").mkdir()
    (tmp_path / "checkpoints/.best.safetensors.0123abcd").write_text("half")
    outcome = run(tmp_path, ToyTask(), resume=True, schedule__epochs=4)
    assert outcome.best["step"] == 12
    assert best.is_file()
    assert any("replaces it" in text for text in events(tmp_path))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_an_error_in_a_loader_is_no_dead_loader() -> None:
    raised = RuntimeError("Caught RuntimeError in DataLoader worker process 0.")
    died = RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed.")
    several = RuntimeError("DataLoader worker (pid(s) 77, 78) exited unexpectedly")
    assert [is_lost_worker(error) for error in (raised, died, several)] == [False, True, True]


class BreakingLoader(ToyTask):
    """A task whose loader loses its connection once, before step 5 or in an evaluation."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def break_in(self, where: str) -> None:
        if where == self.where:
            self.where = ""
            raise RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed.")

    def batches(self, start_step: int, *rest: Any) -> Iterator[Sequence[Any]]:
        for step, parts in enumerate(super().batches(start_step, *rest), start_step):
            if step == 5:
                self.break_in("training")
            yield parts

    def validate(self, model: nn.Module) -> dict[str, float]:
        found = super().validate(model)
        self.break_in("evaluation")
        return found


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_dead_loader_process_goes_back_to_the_saved_state(tmp_path: Path, where: str) -> None:
    run(tmp_path / "parts", BreakingLoader(where), loader__workers=1)
    assert any("data loader are started anew" in text for text in events(tmp_path / "parts"))
    run(tmp_path / "whole", ToyTask())
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


class FailingEvaluation(ToyTask):
    """The given evaluation of the run fails."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def validate(self, model: nn.Module) -> dict[str, float]:
        self.left -= 1
        if self.left == 0:
            raise ValueError("2 of 108 images cannot be read")
        return super().validate(model)


def rows(folder: Path) -> list[dict[str, Any]]:
    timed = {"seconds", "images_per_s", "wait_share", "memory_gb"}
    found = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in timed} for row in found]


# The first evaluation of a run has two parts: the weights, and their moving average.
@pytest.mark.parametrize("number", [1, 2])
def test_the_first_evaluation_loses_no_training(tmp_path: Path, number: int) -> None:
    with pytest.raises(ValueError, match="2 of 108"):
        run(tmp_path / "parts", FailingEvaluation(number))
    assert step_of(complete_steps(tmp_path / "parts/checkpoints")[-1]) == 3
    run(tmp_path / "parts", ToyTask(), resume=True)
    run(tmp_path / "whole", ToyTask())
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_a_run_says_at_the_start_that_the_disk_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=20_010_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"needs 20 MB in .* the report, but 20 MB are free"):
        run(tmp_path, ToyTask())
    assert not list(tmp_path.glob("checkpoints/*"))


def test_too_little_memory_while_going_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [2]

    def load(*given: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            torch.empty(10**15)
        return load_state(*given, **options)

    monkeypatch.setattr(loop, "load_state", load)
    run(tmp_path, SmallMemory(), drop_path=0.0)
    assert "micro_batch_size is 2 from now on, the batch stays 8" in events(tmp_path)[-1]
    left[0] = 10
    with pytest.raises(RuntimeError, match="allocate"):
        run(tmp_path / "other", SmallMemory(), drop_path=0.0)


def test_a_run_under_nohup_ignores_that_its_terminal_closes() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_batch_norm_of_one_value_is_recognized() -> None:
    with pytest.raises(ValueError, match="value") as caught:
        nn.BatchNorm2d(2)(torch.zeros(1, 2, 1, 1))
    assert is_single_value(caught.value)
    assert not is_single_value(ValueError("another"))
