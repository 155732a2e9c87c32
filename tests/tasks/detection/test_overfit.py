"""Overfitting ten images: the whole pipeline, from the JSON to AP, reaches a high AP.

Takes some minutes: `pytest -m slow tests/tasks/detection/test_overfit.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from convnext.recipes.recipe import Recipe, change_recipe
from convnext.training.run import train

SETTINGS = {
    "task": "detect",
    "input.image_size": 256,
    "detect.policy": "multi_scale",
    "detect.sides": (256,),
    "detect.crop_sides": (),
    "augment.hflip": 0.0,
    "optim.batch_size": 2,
    "optim.micro_batch_size": 2,
    "optim.weight_decay": 0.0,
    "schedule.epochs": 60,
    "run.eval_every": 60,
    "run.channels_last": True,
    "run.device": "cpu",
}


@pytest.fixture(scope="module")
def ten(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of nuclei for both training and validation."""
    source = shared_data / "nuclei_instances"
    root = tmp_path_factory.mktemp("ten")
    content = json.loads((source / "instances_train.json").read_text())
    images = [i for i in content["images"] if i["width"] == i["height"] == 256][:10]
    kept = {image["id"] for image in images}
    content["images"] = images
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    for split in ("train", "val"):
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    (root / "images").symlink_to(source / "images")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cascade_mask_rcnn", "mask_rcnn"])
def test_ten_images_are_learned_by_heart(ten: Path, tmp_path: Path, method: str) -> None:
    changes = SETTINGS | {"data": str(ten), "model": f"{method}_convnext_atto"}
    recipe = change_recipe(Recipe(), changes)
    done = train(recipe, output=tmp_path / "run", console=Console(quiet=True))
    assert done.best["box_ap50"] >= 95
    assert done.best["mask_ap50"] >= 95
