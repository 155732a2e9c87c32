"""Callbacks are called with every step and evaluation, and do not change the run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyTask, run, weights

from convnext.training.loop import Outcome
from convnext.training.trackers import Callback, EvaluationEnd, StepEnd

LAST = "checkpoints/step-00000012/model.safetensors"


class Listener(Callback):
    def __init__(self) -> None:
        self.steps: list[StepEnd] = []
        self.losses: list[float] = []
        self.evaluations: list[EvaluationEnd] = []
        self.outcomes: list[Outcome] = []

    def on_step_end(self, end: StepEnd) -> None:
        # Random draws of a callback do not affect training.
        torch.rand(3), np.random.random(), random.random()
        self.steps.append(end)
        self.losses.append(float(end.losses["loss"]))

    def on_evaluation(self, end: EvaluationEnd) -> None:
        self.evaluations.append(end)

    def on_end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def test_every_step_and_evaluation_is_reported(tmp_path: Path) -> None:
    listener = Listener()
    outcome = run(tmp_path / "heard", ToyTask(), callbacks=[listener])
    assert [end.step for end in listener.steps] == list(range(1, 13))
    assert {end.num_steps for end in listener.steps} == {12}
    assert listener.steps[2].epoch == 1.0
    assert all(0 < loss < 10 for loss in listener.losses)
    heard = [(end.step, end.weights) for end in listener.evaluations]
    assert heard == [(step, name) for step in (3, 6, 9, 12) for name in ("model", "ema")]
    best = [end for end in listener.evaluations if end.is_best][-1]
    assert (best.step, best.metrics["top1"]) == (outcome.best["step"], outcome.best["top1"])
    assert listener.outcomes == [outcome]
    run(tmp_path / "alone", ToyTask())
    ours, theirs = weights(tmp_path / "heard" / LAST), weights(tmp_path / "alone" / LAST)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resumed_run_reports_the_rest(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ToyTask(stop_at=7))
    listener = Listener()
    run(tmp_path, ToyTask(), resume=True, callbacks=[listener])
    first = listener.steps[0].step
    assert [end.step for end in listener.steps] == list(range(first, 13))


def test_an_error_of_a_callback_ends_the_run(tmp_path: Path) -> None:
    class Broken(Listener):
        def on_step_end(self, end: StepEnd) -> None:
            if end.step == 5:
                raise LookupError("no such dashboard")

    broken: Any = Broken()
    with pytest.raises(LookupError, match="no such dashboard"):
        run(tmp_path, ToyTask(), callbacks=[broken])
    assert broken.outcomes == []
    assert run(tmp_path, ToyTask(), resume=True).steps == 12
