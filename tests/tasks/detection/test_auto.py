"""`auto` fits anchors, sizes and schedule to the data; for large data it equals the paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from convnext.data.objects import DataFacts
from convnext.recipes.recipe import Recipe, change_recipe, flatten
from convnext.recipes.resolve import ResolveContext
from convnext.tasks.detection.task import DetectionTask, anchor_scale

DETECT = change_recipe(Recipe(), {"task": "detect"})
CPU = ResolveContext(device="cpu", has_bf16=False)
GPU = ResolveContext(device="cuda", has_bf16=True)
FACTS = DataFacts(
    num_train=200,
    num_val=50,
    num_empty=0,
    num_classes=3,
    num_objects=2_000,
    max_objects=30,
    has_masks=True,
    image_height=480,
    image_width=640,
    object_sides=(0.1, 0.2, 0.5),
    grayscale=False,
)


@pytest.mark.parametrize("weights", ["none", "fb_in1k"])
@pytest.mark.parametrize("num_train", [1, 200, 118_287])
@pytest.mark.parametrize("where", [CPU, GPU], ids=["cpu", "gpu"])
def test_nothing_is_left_to_auto(where: ResolveContext, num_train: int, weights: str) -> None:
    facts = replace(FACTS, num_train=num_train)
    recipe, choices = DetectionTask.resolve(replace(DETECT, weights=weights), facts, where)
    left = {name for name, value in flatten(recipe) if value == "auto"}
    backend = {"run.device", "run.devices", "run.threads", "run.channels_last", "run.compile"}
    assert left <= {"optim.momentum", *backend}
    assert len({choice.setting for choice in choices}) == len(choices)
    assert recipe.model.startswith("mask_rcnn_")
    assert not DetectionTask.warnings(recipe, facts)


def test_a_large_set_takes_the_paper() -> None:
    recipe, _ = DetectionTask.resolve(
        replace(DETECT, weights="fb_in1k"), replace(FACTS, num_train=118_287), GPU
    )
    detect, optim = recipe.detect, recipe.optim
    assert (recipe.model, recipe.input.image_size) == ("mask_rcnn_convnext_tiny", 800)
    assert (detect.policy, detect.sides) == ("multi_scale", tuple(range(480, 801, 32)))
    assert (detect.channels, detect.fc_dim, detect.anchor_scale) == (256, 1024, 8)
    assert (detect.num_proposals, detect.box_batch_size, detect.max_detections) == (1000, 512, 100)
    assert (optim.lr, optim.batch_size, optim.layer_decay) == (1e-4, 16, 0.95)
    assert recipe.schedule.epochs == 36
    assert not detect.ignore_crowd


@pytest.mark.parametrize(
    ("sides", "size", "scale"),
    [
        ((0.1, 0.2, 0.5), 800, 8),
        ((0.033, 0.057, 0.11), 256, 2),
        ((0.033, 0.057, 0.11), 800, 8),
        ((0.06, 0.1, 0.3), 256, 4),
        ((0.0, 0.0, 0.1), 256, 2),
    ],
)
def test_anchors_fit_small_objects(
    sides: tuple[float, float, float], size: int, scale: float
) -> None:
    found, reason = anchor_scale(sides, size)
    assert found == scale
    assert "objects" in reason


@pytest.mark.parametrize(
    ("changes", "facts", "text"),
    [
        ({"detect.anchor_scale": 8.0}, {"object_sides": (0.02, 0.03, 0.1)}, "anchor_scale 1"),
        ({"detect.anchor_scale": 0.2}, {}, "larger --detect.anchor_scale"),
        ({"detect.max_detections": 100}, {"max_objects": 313}, "max_detections 500"),
        ({"optim.batch_size": 500}, {}, "--optim.batch_size"),
    ],
)
def test_warnings_say_what_to_do(changes: dict[str, Any], facts: dict[str, Any], text: str) -> None:
    known = replace(FACTS, **facts)
    recipe, _ = DetectionTask.resolve(change_recipe(DETECT, changes), known, CPU)
    assert any(text in warning for warning in DetectionTask.warnings(recipe, known)), (
        DetectionTask.warnings(recipe, known)
    )


def test_many_objects_raise_the_limit() -> None:
    recipe, _ = DetectionTask.resolve(DETECT, replace(FACTS, max_objects=313), CPU)
    assert recipe.detect.max_detections == 500
    assert recipe.detect.num_proposals == 1000  # type: ignore[comparison-overlap]
