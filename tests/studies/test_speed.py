"""Speed and memory: the counts, not the measured times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from convnext.models.flops import cost
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.studies.compare import entries_of
from convnext.studies.plan import Study, common_recipe, representative_recipe
from convnext.studies.speed import PeakMemory, epochs_for, measure, read_speeds, speeds_of
from convnext.tasks import task_class
from convnext.tasks.factory import create_model

QUIET = Console(quiet=True)


def test_the_peak_counts_every_tensor_that_is_alive() -> None:
    layers = [nn.Linear(100, 100, bias=False) for _ in range(4)]
    model, x = nn.Sequential(*layers), torch.randn(100, 100)
    unit = x.nbytes
    with torch.no_grad(), PeakMemory([*model.parameters(), x]) as peak:
        model(x)
    # Four weights, the input, and two adjacent activations at a time.
    assert peak.most == (4 + 1 + 2) * unit
    assert peak.now == (4 + 1) * unit
    with PeakMemory([*model.parameters(), x]) as peak:
        y = model(x)
    # The last output, and the activations that the backward pass needs.
    assert peak.now == (4 + 1 + 4) * unit
    del y


@pytest.fixture(scope="module")
def plan_and_task() -> tuple[Study, Any]:
    recipe = change_recipe(Recipe(), {"run.device": "cpu", "schedule.epochs": 2})
    entries = entries_of(["roadmap/mini/kernel_5", "timm/vit_tiny_patch16_224:patch_size=2"])
    task = task_class(recipe.task).open(
        representative_recipe(recipe, entries), torch.device("cpu"), QUIET
    )
    plan = Study(
        kind="compare",
        title="",
        entries=entries,
        seeds=[0],
        recipe=common_recipe(task.recipe, recipe, entries),
    )
    return plan, task


def test_every_network_is_measured_once_and_kept(
    plan_and_task: tuple[Study, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, task = plan_and_task
    monkeypatch.setattr("convnext.studies.speed.ROUNDS", 1)
    monkeypatch.setattr("convnext.studies.speed.SECONDS", 0.01)
    speeds = speeds_of(plan, task, tmp_path, QUIET)
    assert list(speeds) == [entry.name for entry in plan.entries]
    for speed in speeds.values():
        assert speed.train_images_per_s > 0
        assert speed.infer_images_per_s > speed.train_images_per_s
        assert speed.train_memory > speed.infer_memory > 0
    assert read_speeds(plan, tmp_path) == speeds
    monkeypatch.setattr("convnext.studies.speed.measure", lambda *_: pytest.fail("measured again"))
    assert speeds_of(plan, task, tmp_path, QUIET) == speeds


def test_equal_time_gives_the_faster_network_more_epochs(
    plan_and_task: tuple[Study, Any],
) -> None:
    plan, task = plan_and_task
    names = [entry.name for entry in plan.entries]
    entries = epochs_for(plan, dict(zip(names, (100.0, 1000.0), strict=True)), task, minutes=5)
    # 1,437 digits, in steps of 32: 1,408 images an epoch, 30,000 or 300,000 in five minutes.
    assert [entry.changes["schedule.epochs"] for entry in entries] == [21, 213]
    assert [entry.changes["schedule.warmup_epochs"] for entry in entries] == [21 / 20, 213 / 20]
    # The networks of a resumed study keep their epochs.
    again = replace(plan, entries=entries)
    assert epochs_for(again, {}, task, minutes=5) == entries


def test_a_speed_belongs_to_one_network_whatever_its_name(
    plan_and_task: tuple[Study, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, task = plan_and_task
    monkeypatch.setattr("convnext.studies.speed.ROUNDS", 1)
    monkeypatch.setattr("convnext.studies.speed.SECONDS", 0.01)
    speeds_of(plan, task, tmp_path, QUIET)
    renamed = replace(plan, entries=[replace(plan.entries[0], model="roadmap/mini/kernel_7")])
    assert read_speeds(renamed, tmp_path) == {}


def test_inference_needs_no_moments(
    plan_and_task: tuple[Study, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, task = plan_and_task
    monkeypatch.setattr("convnext.studies.speed.ROUNDS", 1)
    monkeypatch.setattr("convnext.studies.speed.SECONDS", 0.01)
    wide = entries_of(["roadmap/mini/kernel_5:dims=[64,128,256,512]"])
    (found,) = measure(replace(plan, entries=wide), task, QUIET).values()
    params = 4 * cost(create_model(wide[0].model, dims=(64, 128, 256, 512), num_classes=10)).params
    # The weights and little else; with gradients and two moments at least four times that.
    assert params < found.infer_memory < 1.6 * params
    assert found.train_memory > 4 * params
