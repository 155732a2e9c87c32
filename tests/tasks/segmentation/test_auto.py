"""The choices of `auto` for images with masks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convnext.data.preprocessing import DensePreprocessing
from convnext.recipes.recipe import Recipe, change_recipe, flatten, read_recipe
from convnext.recipes.resolve import ResolveContext
from convnext.tasks.segmentation.data import DataFacts
from convnext.tasks.segmentation.task import SegmentationTask, balanced

FACTS = DataFacts(
    num_train=367,
    num_val=101,
    num_classes=11,
    pixel_counts=(5,) * 11,
    image_height=360,
    image_width=480,
    grayscale=False,
)
CPU = ResolveContext(device="cpu", has_bf16=False)
GPU = ResolveContext(device="cuda", has_bf16=True)
SEGMENT = change_recipe(Recipe(), {"task": "segment"})


@pytest.mark.parametrize("where", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("num_train", [20, 367, 20_210])
@pytest.mark.parametrize("weights", ["none", "fb_in1k"])
def test_nothing_is_left_to_auto(where: ResolveContext, num_train: int, weights: str) -> None:
    recipe, choices = SegmentationTask.resolve(
        replace(SEGMENT, weights=weights), replace(FACTS, num_train=num_train), where
    )
    left = {name for name, value in flatten(recipe) if value == "auto"}
    assert left <= {
        "optim.momentum",
        "run.device",
        "run.devices",
        "run.threads",
        "run.channels_last",
        "run.compile",
    }
    assert len({choice.setting for choice in choices}) == len(choices)
    assert recipe.model.startswith("upernet_")
    assert not SegmentationTask.warnings(recipe, replace(FACTS, num_train=num_train))


def test_a_large_set_takes_the_paper() -> None:
    facts = replace(FACTS, num_train=20_210, image_height=512, image_width=683)
    recipe, _ = SegmentationTask.resolve(replace(SEGMENT, weights="fb_in1k"), facts, GPU)
    segment = recipe.segment
    assert (segment.crop, segment.channels, segment.mode) == (512, 512, "slide")
    assert (recipe.optim.lr, recipe.optim.batch_size, recipe.optim.layer_decay) == (1e-4, 16, 0.9)
    assert recipe.schedule.epochs == 127


def test_the_length_of_a_recipe_is_in_steps() -> None:
    recipe, _ = SegmentationTask.resolve(
        read_recipe("ade20k_tiny"), replace(FACTS, num_train=20_210), GPU
    )
    assert recipe.schedule.steps == 160_000
    changes = {"schedule.steps": 800, "schedule.epochs": "auto", "schedule.warmup_epochs": "auto"}
    shorter = change_recipe(read_recipe("ade20k_tiny"), changes)
    recipe, _ = SegmentationTask.resolve(shorter, replace(FACTS, num_train=1600), GPU)
    assert recipe.schedule.epochs == 8


def test_steps_alone_are_warmed_up_too() -> None:
    recipe, _ = SegmentationTask.resolve(
        change_recipe(SEGMENT, {"schedule.steps": 1000}), FACTS, CPU
    )
    assert recipe.schedule.epochs == 11
    assert recipe.schedule.warmup_epochs == 0.55


def test_the_stride_is_that_of_the_published_recipes() -> None:
    recipe, _ = SegmentationTask.resolve(change_recipe(SEGMENT, {"segment.crop": 640}), FACTS, GPU)
    assert (recipe.segment.window, recipe.segment.stride) == (640, 426)


def test_weights_bring_their_pixels_and_their_design() -> None:
    p = DensePreprocessing(image_size=640, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    network = {"norm": "batch", "stem": "conv_pool", "channels": 96}
    where = replace(CPU, preprocessing=p, weights_network=network)
    recipe, _ = SegmentationTask.resolve(replace(SEGMENT, weights="runs/first"), FACTS, where)
    assert recipe.input.mean == (0.1, 0.2, 0.3)
    assert (recipe.network.norm, recipe.network.stem) == ("batch", "conv_pool")
    assert recipe.segment.channels == 96


def test_gaps_between_windows_are_said() -> None:
    changes = {"segment.mode": "slide", "segment.window": 64, "segment.stride": 80}
    recipe, _ = SegmentationTask.resolve(change_recipe(SEGMENT, changes), FACTS, CPU)
    (found,) = SegmentationTask.warnings(recipe, FACTS)
    assert "leaves gaps between windows of 64" in found


@pytest.mark.parametrize("name", ["augment.mixup", "loader.sampling", "detect.crop"])
def test_what_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"segmentation does not use {name}"):
        change_recipe(SEGMENT, {name: 0})


def test_one_class_alone_is_warned_of() -> None:
    facts = replace(FACTS, num_classes=1)
    recipe, _ = SegmentationTask.resolve(SEGMENT, facts, CPU)
    assert any(
        "with a single class every prediction is right" in line
        for line in SegmentationTask.warnings(recipe, facts)
    )


def test_balanced_weights_keep_the_size_of_the_loss() -> None:
    weights = balanced((900, 100, 0))
    assert weights[1] == pytest.approx(3 * weights[0])
    assert weights[2] == weights[1]
    assert (900 * weights[0] + 100 * weights[1]) / 1000 == pytest.approx(1)
