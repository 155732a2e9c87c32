"""The choices of `auto` for all kinds of data, weights and devices stay the same.

`resolved.json` holds the settings that differ from the defaults of a recipe.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convnext.data.objects import DataFacts as DetectionFacts
from convnext.data.preprocessing import DensePreprocessing, Preprocessing
from convnext.recipes.recipe import Recipe, change_recipe, flatten
from convnext.recipes.resolve import Plan, ResolveContext
from convnext.tasks import task_class
from convnext.tasks.classification.data import DataFacts as ClassificationFacts
from convnext.tasks.segmentation.data import DataFacts as SegmentationFacts

FACTS: dict[str, Any] = {
    "classification": ClassificationFacts(
        num_train=1500, num_val=400, num_classes=6, class_counts=(250,) * 6,
        image_height=256, image_width=192, grayscale=False,
    ),
    "segmentation": SegmentationFacts(
        num_train=367, num_val=101, num_classes=11, pixel_counts=(5,) * 11,
        image_height=360, image_width=480, grayscale=False,
    ),
    "detection": DetectionFacts(
        num_train=300, num_val=50, num_empty=3, num_classes=5, num_objects=4000, max_objects=93,
        has_masks=True, image_height=480, image_width=640, object_sides=(0.03, 0.11, 0.5),
        grayscale=False,
    ),
}  # fmt: skip
TASKS = {"classification": "classify", "segmentation": "segment", "detection": "detect"}
DATA: dict[str, dict[str, Any]] = {
    "usual": {},
    "tiny": {"num_train": 7, "image_height": 8, "image_width": 8, "grayscale": True},
    "large": {"num_train": 1_300_000},
}
CPU = ResolveContext(device="cpu", has_bf16=False)
GPU = ResolveContext(device="cuda", has_bf16=True)
WEIGHTS = {"stem_stride": 1, "stem": "conv_pool", "norm": "batch", "channels": 96, "fc_dim": 77}
STATISTICS = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
KNOWN = {
    "classification": Preprocessing(image_size=384, crop_pct=1.0, **STATISTICS),
    "segmentation": DensePreprocessing(image_size=640, **STATISTICS),
    "detection": DensePreprocessing(image_size=640, **STATISTICS),
}
MODELS = {
    "classification": ("convnext_isotropic_small", "timm/resnet18", "roadmap/resnet200/bn_to_ln"),
    "segmentation": ("upernet_convnext_base", "upernet_timm/resnet18"),
    "detection": ("cascade_mask_rcnn_convnext_tiny", "mask_rcnn_timm/resnet18"),
}


def cases() -> dict[str, tuple[str, dict[str, Any], Any, ResolveContext]]:
    """Return by name the task's folder, the request, the facts and the device."""
    found = {}
    for folder, facts in FACTS.items():
        for data, changes in DATA.items():
            for context in (CPU, GPU):
                name = f"{folder} {data} {context.device}"
                known = replace(facts, **changes)
                found[name] = (folder, {}, known, context)
                asked = {"weights": "fb_in1k"}
                found[f"{name} tuned"] = (folder, asked, known, context)
        context = replace(CPU, preprocessing=KNOWN[folder], weights_network=WEIGHTS)
        found[f"{folder} from a run"] = (folder, {"weights": "runs/first"}, facts, context)
        for model in MODELS[folder]:
            found[f"{folder} {model}"] = (folder, {"model": model}, facts, GPU)
        steps = {"schedule.steps": 1000, "schedule.warmup_steps": 100}
        found[f"{folder} in steps"] = (folder, steps, facts, GPU)
    return found


def values(folder: str, asked: dict[str, Any], facts: Any, context: ResolveContext) -> Any:
    """Return the settings of a resolved recipe that differ from the defaults, as JSON values."""
    recipe = change_recipe(Recipe(), {"task": TASKS[folder]} | asked)
    resolved, _ = task_class(TASKS[folder]).resolve(recipe, facts, context)
    default = dict(flatten(change_recipe(Recipe(), {"task": TASKS[folder]})))
    default |= {"optim.betas": (0.9, 0.999), "optim.eps": 1e-8}  # AdamW's own.
    found = {name: value for name, value in flatten(resolved) if value != default[name]}
    return json.loads(json.dumps(dict(sorted(found.items()))))


EXPECTED = json.loads((Path(__file__).parent / "resolved.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", cases())
def test_what_auto_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert values(*cases()[name]) == EXPECTED[name]


def test_every_case_is_there() -> None:
    assert set(EXPECTED) == set(cases())


@pytest.mark.parametrize("task", FACTS)
def test_a_length_in_steps_is_planned_as_steps(task: str) -> None:
    facts = FACTS[task]
    recipe = change_recipe(Recipe(), {"task": TASKS[task], "schedule.steps": 240})
    resolved, _ = task_class(TASKS[task]).resolve(recipe, facts, CPU)
    per_epoch = facts.num_train // int(resolved.optim.batch_size)
    plan = Plan.of(resolved, per_epoch)
    assert plan.num_steps == 240
    assert plan.warmup_steps == pytest.approx(12, abs=1)
    assert resolved.schedule.epochs == round(240 / per_epoch)
    assert plan.eval_steps <= 150
    assert 1 / (1 - resolved.ema.decay) == pytest.approx(12)


def test_a_warm_up_as_long_as_the_run_is_told_of_by_steps() -> None:
    facts = FACTS["classification"]
    recipe = Recipe()
    for changes, count in (
        ({"schedule.steps": 40, "schedule.warmup_steps": 40}, 1),
        ({"schedule.steps": 400, "schedule.warmup_steps": 40}, 0),
        ({"schedule.steps": 40, "schedule.warmup_epochs": 1.0}, 1),
        ({"schedule.epochs": 5, "schedule.warmup_epochs": 1.0}, 0),
    ):
        task = task_class("classify")
        resolved, _ = task.resolve(change_recipe(recipe, changes), facts, CPU)
        found = [text for text in task.warnings(resolved, facts) if "warm-up lasts" in text]
        assert len(found) == count, changes
