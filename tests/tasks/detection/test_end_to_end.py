"""From a json and images to objects, as a user would go; kills included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_runs import Runs, assert_same
from rich.console import Console
from small_objects import coco_squares, small_coco

from convnext.checkpoint import Card, find_checkpoint
from convnext.preprocess import DensePreprocessing
from convnext.recipe import Recipe, change_recipe
from convnext.tasks import open_task
from convnext.train.run import RunResult, train
from convnext.weights.files import read_file

QUIET = Console(quiet=True)
SMALL = {
    "task": "detect",
    "model": "mask_rcnn_convnext_atto",
    "network.changes": {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)},
    "input.image_size": 64,
    "detect.channels": 24,
    "detect.fc_dim": 48,
    "detect.jitter": (0.9, 1.1),
    "detect.num_proposals": 60,
    "detect.rpn_batch_size": 64,
    "detect.box_batch_size": 32,
    "detect.max_detections": 20,
    "optim.batch_size": 4,
    "optim.lr": 3e-3,
    "schedule.epochs": 40,
    "run.eval_every": 20,
    "run.channels_last": True,
}


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_squares(tmp_path_factory.mktemp("a b ü") / "squares")


@pytest.fixture(scope="module")
def finished(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    recipe = change_recipe(Recipe(), SMALL | {"data": str(squares)})
    return train(recipe, output=tmp_path_factory.mktemp("runs") / "run", console=QUIET)


def test_it_learns_and_keeps_what_it_is(finished: RunResult) -> None:
    assert finished.best["box_ap50"] > 40
    assert finished.best["mask_ap50"] > 40
    path = find_checkpoint(finished.folder)
    assert path is not None
    card = Card.from_metadata(read_file(path)[1], where=str(path))
    assert (card.task, card.model) == ("detect", "mask_rcnn_convnext_atto")
    assert card.classes == ("cat", "dog")
    assert isinstance(card.preprocessing, DensePreprocessing)
    assert card.recipe["detect"]["channels"] == 24
    assert "segment" not in card.recipe


def test_losses_are_written_by_name(finished: RunResult) -> None:
    lines = (finished.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    names = {name for line in lines for name in json.loads(line)}
    assert {f"loss/{n}" for n in ("rpn_class", "rpn_box", "class", "box", "mask")} <= names


def test_a_classifier_is_refused_with_the_names_to_take(squares: Path) -> None:
    recipe = change_recipe(Recipe(), {"task": "detect", "model": "convnext_tiny"})
    with pytest.raises(ValueError, match="mask_rcnn_convnext_tiny or cascade_mask_rcnn_"):
        open_task(change_recipe(recipe, {"data": str(squares)}), torch.device("cpu"), QUIET)


def test_fine_tuning_goes_on_from_a_run(finished: RunResult, squares: Path, tmp_path: Path) -> None:
    changes = SMALL | {"data": str(squares), "schedule.epochs": 1, "optim.lr": 1e-9}
    recipe = change_recipe(Recipe(), changes | {"weights": str(finished.folder)})
    again = train(recipe, output=tmp_path / "again", console=QUIET)
    assert again.best["box_ap50"] == pytest.approx(finished.best["box_ap50"], abs=5)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "cascade_mask_rcnn_convnext_atto"},
        {"model": "mask_rcnn_timm/resnet18", "network.changes": {}},
        {"detect.policy": "multi_scale", "detect.crop_sides": (50,), "detect.crop_range": (20, 40)},
        {"detect.photometric": True, "detect.skip_empty": True, "optim.micro_batch_size": 1},
    ],
    ids=["cascade", "resnet", "multi_scale", "options"],
)
def test_other_forms_train(squares: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    settings = SMALL | {"data": str(squares), "schedule.epochs": 1, "run.eval_every": 1} | changes
    done = train(change_recipe(Recipe(), settings), output=tmp_path / "run", console=QUIET)
    assert "mask_ap50" in done.best


def test_boxes_alone_train_too(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "d")
    for path in root.glob("*.json"):
        content = json.loads(path.read_text())
        for row in content["annotations"]:
            row["segmentation"] = []
        path.write_text(json.dumps(content))
    settings = SMALL | {"data": str(root), "schedule.epochs": 1, "optim.batch_size": 2}
    done = train(change_recipe(Recipe(), settings), output=tmp_path / "run", console=QUIET)
    assert "box_ap50" in done.best
    assert "mask_ap50" not in done.best


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same_run(squares: Path, tmp_path: Path) -> None:
    settings = SMALL | {"data": str(squares), "schedule.epochs": 12, "run.eval_every": 4}
    runs = Runs(tmp_path, change_recipe(Recipe(), settings))
    assert_same(runs.straight(), runs.killed())
