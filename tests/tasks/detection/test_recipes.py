"""The COCO recipes have every number of the released configurations."""

from __future__ import annotations

import csv
import io

import pytest

from convnext.data.objects import DataFacts
from convnext.recipes.recipe import flatten, read_recipe, recipe_names
from convnext.recipes.resolve import ResolveContext
from convnext.tasks.detection.task import DetectionTask

# Drop path, rate and decay of each variant: the authors' released configurations for COCO.
RELEASED = """config,pretrain,drop_path,lr,layer_decay,fp16
mask_rcnn_tiny,1K,0.4,1e-4,0.95,true
cascade_tiny,1K,0.4,2e-4,0.7,true
cascade_small,1K,0.6,2e-4,0.7,true
cascade_base,1K,0.7,2e-4,0.8,true
cascade_base,22K,0.6,1e-4,0.8,true
cascade_large,22K,0.7,1e-4,0.7,false
cascade_xlarge,22K,0.8,1e-4,0.7,false
"""
ROWS = list(csv.DictReader(io.StringIO(RELEASED)))
COCO = DataFacts(
    num_train=118_287,
    num_val=5_000,
    num_empty=1_021,
    num_classes=80,
    num_objects=849_949,
    max_objects=93,
    has_masks=True,
    image_height=480,
    image_width=640,
    object_sides=(0.03, 0.11, 0.5),
    grayscale=False,
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['config']}_{row['pretrain']}")
@pytest.mark.parametrize("length", [1, 3])
def test_figures_of_each_variant(row: dict[str, str], length: int) -> None:
    name = f"coco_{'22k_' if row['pretrain'] == '22K' else ''}{row['config']}"
    recipe = read_recipe(f"{name}_1x" if length == 1 else name)
    method, size = row["config"].rsplit("_", 1)
    prefix = "cascade_mask_rcnn" if method == "cascade" else method
    assert recipe.model == f"{prefix}_convnext_{size}"
    assert recipe.weights == f"fb_in{row['pretrain'].lower()}"
    assert recipe.network.drop_path_rate == float(row["drop_path"])
    assert recipe.optim.lr == float(row["lr"])
    assert recipe.optim.layer_decay == float(row["layer_decay"])
    assert (recipe.run.precision == "fp16") == (row["fp16"] == "true")
    schedule = recipe.schedule
    assert (schedule.epochs, schedule.milestones) == {1: (12, (8, 11)), 3: (36, (27, 33))}[length]
    assert (schedule.warmup_steps, schedule.warmup_ratio) == (500, 0.001)
    assert (recipe.optim.batch_size, recipe.optim.weight_decay) == (16, 0.05)
    assert (recipe.input.image_size, recipe.input.max_size) == (800, 1333)
    detect = recipe.detect
    assert detect.sides == tuple(range(480, 801, 32))
    assert (detect.crop_sides, detect.crop_range) == ((400, 500, 600), (384, 600))
    assert (detect.channels, detect.fc_dim, detect.anchor_scale) == (256, 1024, 8)


def test_large_scale_jitter() -> None:
    detect = read_recipe("coco_mask_rcnn_tiny_jitter").detect
    assert (detect.policy, detect.jitter, detect.crop) == ("large_scale_jitter", (0.1, 2.0), 1024)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith("coco")])
def test_nothing_is_left_to_chance(name: str) -> None:
    recipe = read_recipe(name)
    where = ResolveContext(device="cuda", has_bf16=True)
    resolved, choices = DetectionTask.resolve(recipe, COCO, where)
    left = {key for key, value in flatten(resolved) if value == "auto"}
    of_the_optimizer = {"optim.betas", "optim.eps", "optim.momentum"}  # Its own, if not given.
    assert left - of_the_optimizer <= {
        "run.device",
        "run.devices",
        "run.threads",
        "run.channels_last",
    }
    chosen = {choice.setting for choice in choices}
    assert chosen <= {"loader.workers", "run.save_every", "run.compile", "run.eval_every"}
