"""From a folder of images and masks to overlays, as a user would do it, with kills in between."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import Runs, assert_same
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from shapes import write_shapes

from convnext.cli import main
from convnext.data.preprocessing import DensePreprocessing
from convnext.recipes.recipe import Recipe, change_recipe, read_recipe, recipe_names
from convnext.reports.report import write_report
from convnext.tasks.segmentation.task import SegmentationTask
from convnext.training.run import RunResult, train
from convnext.weights.checkpoint import Card, find_checkpoint
from convnext.weights.files import read_file

QUIET = Console(quiet=True)
SMALL = {
    "task": "segment",
    "model": "upernet_convnext_atto",
    "network.changes": {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)},
    "segment.channels": 32,
    "segment.crop": 40,
    "segment.jitter": (0.9, 1.1),
    "segment.photometric": False,
    "optim.batch_size": 4,
    "optim.lr": 4e-3,
    "schedule.epochs": 40,
    "run.eval_every": 20,
    "run.channels_last": True,
    "run.compile": False,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("a b ü") / "shapes")


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    recipe = change_recipe(Recipe(), SMALL | {"data": str(shapes)})
    return train(
        recipe,
        output=tmp_path_factory.mktemp("runs") / "run",
        console=QUIET,
        write_report=write_report,
    )


def pixels(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_it_learns_and_keeps_what_it_is(finished: RunResult) -> None:
    assert finished.best["miou"] > 45
    path = find_checkpoint(finished.folder)
    assert path is not None
    card = Card.from_metadata(read_file(path)[1], where=str(path))
    assert (card.task, card.model) == ("segment", "upernet_convnext_atto")
    assert card.classes == ("ground", "red", "blue")
    assert isinstance(card.preprocessing, DensePreprocessing)
    assert card.recipe["segment"]["channels"] == 32


def test_the_report_has_the_classes_and_the_worst_images(finished: RunResult) -> None:
    text = (finished.folder / "report.html").read_text(encoding="utf-8")
    for words in ("IoU of every class", "Worst images", "Chosen by auto", "mIoU"):
        assert words in text, words
    assert "top-1" not in text


def test_evaluate_agrees_with_training(
    finished: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    as_trained = ["--precision", "auto", "--backend", "eager"]
    assert main(["evaluate", str(finished.folder), "--boundary", "--json", *as_trained]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["miou"] == finished.best["miou"]
    assert result["boundary_f1"] > 0
    assert len(result["confusion"]) == 3
    assert result["num_images"] == 6
    window = ["--window", "32", "--stride", "16", "--flip"]
    assert main(["evaluate", str(finished.folder), *window, "--json"]) == 0
    slid = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert slid["inference"] == "windows of 32 every 16, flipped"
    assert slid["miou"] > 30


def test_predictions_are_masks_overlays_and_areas(
    finished: RunResult, shapes: Path, tmp_path: Path
) -> None:
    images = shapes / "images" / "val"
    assert main(["predict", str(finished.folder), str(images), "--output", str(tmp_path)]) == 0
    mask = pixels(tmp_path / "000_mask.png")
    assert mask.shape == (40, 48)
    truth = pixels(shapes / "annotations" / "val" / "000.png")
    assert (mask == truth)[truth != 255].mean() > 0.75
    height, width, _ = pixels(tmp_path / "000_overlay.png").shape
    assert (width, height > 400) == (480, True)  # Enlarged, with a legend.
    rows = list(csv.DictReader((tmp_path / "areas.csv").read_text(encoding="utf-8").splitlines()))
    assert sum(int(row["pixels"]) for row in rows if row["image"].endswith("000.png")) == 1920


def test_options_of_the_other_task_are_refused(
    finished: RunResult, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(shapes / "images" / "val")
    assert main(["predict", str(finished.folder), images, "--topk", "3"]) == 2
    assert "--topk is an option for classification" in capsys.readouterr().err
    assert main(["predict", "no/such/run", __file__]) == 2
    assert "no/such/run" in capsys.readouterr().err


def test_a_classifier_is_refused_with_the_name_to_take(shapes: Path) -> None:
    asked = {"task": "segment", "model": "convnext_tiny", "data": str(shapes)}
    recipe = change_recipe(Recipe(), asked)
    with pytest.raises(ValueError, match="--model upernet_convnext_tiny"):
        SegmentationTask.open(
            change_recipe(recipe, {"data": str(shapes)}), torch.device("cpu"), QUIET
        )


def test_fine_tuning_from_a_run_and_from_a_classifier(
    finished: RunResult, shapes: Path, tmp_path: Path
) -> None:
    changes = SMALL | {"data": str(shapes), "schedule.epochs": 1, "optim.lr": 1e-9}
    recipe = change_recipe(Recipe(), changes | {"weights": str(finished.folder)})
    again = train(recipe, output=tmp_path / "again", console=QUIET)
    assert again.best["miou"] == pytest.approx(finished.best["miou"], abs=3)


@pytest.mark.parametrize("losses", ["dice", "ohem", "balanced", "labelled"])
def test_other_losses_train(shapes: Path, tmp_path: Path, losses: str) -> None:
    option = {
        "dice": {"segment.dice": 1.0},
        "ohem": {"segment.ohem": 0.7},
        "balanced": {"segment.class_weights": "balanced"},
        "labelled": {"segment.average": "labelled", "segment.auxiliary_weight": 0.0},
    }[losses]
    recipe = change_recipe(Recipe(), SMALL | {"data": str(shapes), "schedule.epochs": 2} | option)
    result = train(recipe, output=tmp_path / "run", console=QUIET)
    assert 0 < result.best["miou"] <= 100


def test_killed_and_resumed_it_is_the_same_run(shapes: Path, tmp_path: Path) -> None:
    flat = {**SMALL, "data": str(shapes), "network.norm": "layer", "network.stem": "patchify"}
    flat |= {
        "schedule.epochs": 6,
        "run.eval_every": 3,
        "network.drop_path_rate": 0.2,
        "optim.micro_batch_size": 2,
        "ema.decay": 0.9,
    }
    runs = Runs(tmp_path, change_recipe(Recipe(), flat | {"run.save_every": 3}))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runs.finish(whole)
    for step in (6, 21):
        runs.kill_at(parts, step, "--resume", "--loader.workers", "1")
    runs.finish(parts, "--resume")
    assert_same(whole, parts)


def test_processes_with_statistics_of_their_own_measure_what_is_saved(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = {**SMALL, "data": str(shapes), "network.norm": "batch", "run.device": "cpu"}
    flat |= {"schedule.epochs": 2, "run.eval_every": 2, "run.devices": 2, "ema.decay": 0.5}
    Runs(tmp_path, change_recipe(Recipe(), flat)).finish(tmp_path / "run")
    path = find_checkpoint(tmp_path / "run")
    assert path is not None
    trained = Card.from_metadata(read_file(path)[1], where=str(path)).metrics
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert alone["miou"] == trained["miou"]
    assert alone["accuracy"] == trained["accuracy"]


RECIPES = {
    # name: weights, stochastic depth, rate, crop, stride, precision (reference/ade20k_recipes.csv)
    "ade20k_tiny": ("fb_in1k", 0.4, 1e-4, 512, 341, "fp16"),
    "ade20k_small": ("fb_in1k", 0.3, 1e-4, 512, 341, "fp16"),
    "ade20k_base": ("fb_in1k", 0.4, 1e-4, 512, 341, "fp16"),
    "ade20k_22k_base_640": ("fb_in22k", 0.4, 1e-4, 640, 426, "fp16"),
    "ade20k_22k_large_640": ("fb_in22k", 0.4, 1e-4, 640, 426, "fp32"),
    "ade20k_22k_xlarge_640": ("fb_in22k", 0.4, 8e-5, 640, 426, "fp32"),
}


def test_every_recipe_is_in_the_table() -> None:
    own = {name for name in recipe_names() if read_recipe(name).task == "segment"}
    assert own == set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_recipes_are_those_of_the_paper(name: str) -> None:
    recipe = read_recipe(name)
    weights, drop_path, rate, crop, stride, precision = RECIPES[name]
    size = next(s for s in ("tiny", "small", "base", "xlarge", "large") if s in name)
    assert recipe.model == f"upernet_convnext_{size}"
    assert (recipe.weights, recipe.network.drop_path_rate) == (weights, drop_path)
    assert (recipe.optim.lr, recipe.optim.layer_decay) == (rate, 0.9)
    assert (recipe.optim.layer_decay_by, recipe.optim.weight_decay) == ("stage", 0.05)
    assert (recipe.segment.crop, recipe.segment.window, recipe.input.image_size) == (crop,) * 3
    assert (recipe.segment.stride, recipe.segment.mode) == (stride, "slide")
    assert recipe.input.max_size == 4 * crop
    assert (recipe.schedule.steps, recipe.optim.batch_size) == (160_000, 16)
    assert (recipe.schedule.warmup_steps, recipe.schedule.warmup_ratio) == (1500, 1e-6)
    assert (recipe.schedule.shape, recipe.schedule.power) == ("polynomial", 1.0)
    assert (recipe.schedule.min_lr, recipe.ema.decay) == (0.0, 0.0)
    assert (recipe.segment.jitter, recipe.segment.max_class_share) == ((0.5, 2.0), 0.75)
    assert (recipe.segment.auxiliary_weight, recipe.segment.dropout) == (0.4, 0.1)
    assert recipe.segment.reduce_zero_label is True
    assert recipe.run.precision == precision
