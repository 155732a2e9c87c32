"""From a COCO JSON and images to detections, as a user would do it, with kills in between."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from cli_runs import Runs, assert_same
from PIL import Image
from predicting import run_predictor
from rich.console import Console
from small_objects import coco_squares, small_coco

from convnext.cli import main
from convnext.data.masks import cut
from convnext.data.preprocessing import DensePreprocessing
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.reports.report import write_report
from convnext.tasks.detection.evaluate import evaluate
from convnext.tasks.detection.task import DetectionTask
from convnext.tasks.evaluation import EvaluationSettings
from convnext.training.run import RunResult, train
from convnext.weights.checkpoint import Card, find_checkpoint
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
    return train(
        recipe,
        output=tmp_path_factory.mktemp("runs") / "run",
        console=QUIET,
        write_report=write_report,
    )


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


def test_the_report_has_curves_confusion_and_the_worst_images(finished: RunResult) -> None:
    text = (finished.folder / "report.html").read_text(encoding="utf-8")
    for words in ("Average precision", "Precision and recall", "Worst images", "box AP", "rpn box"):
        assert words in text, words
    assert "top-1" not in text


def test_evaluate_agrees_with_training(
    finished: RunResult, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_trained = ["--precision", "auto", "--backend", "eager"]
    assert main(["evaluate", str(finished.folder), "--json", *as_trained]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["box_ap"] == finished.best["box_ap"]
    assert result["mask_ap"] == finished.best["mask_ap"]
    assert len(result["confusion"]) == 3
    assert (result["num_images"], result["num_objects"]) == (4, 12)
    strict = ["evaluate", str(finished.folder), "--max-detections", "1", "--json"]
    assert main(strict) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["box"]["ar"] < result["box"]["ar"]
    # Classes in another order are matched by name.
    other = tmp_path / "other"
    shutil.copytree(squares, other)
    for path in other.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in (*content["categories"], *content["annotations"]):
            key = "id" if "name" in row else "category_id"
            row[key] = {7: 9, 9: 7}[row[key]]
        path.write_text(json.dumps(content), encoding="utf-8")
    assert main(["evaluate", str(finished.folder), "--data", str(other), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["box_ap"] == result["box_ap"]


def test_predictions_are_pictures_rows_and_results_of_coco(
    finished: RunResult, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(squares / "images", folder)
    (folder / "broken.png").write_bytes(b"no image")
    output = tmp_path / "out"
    command = ["predict", str(finished.folder), str(folder), "--output", str(output)]
    assert main([*command, "--overlays", "jpg", "--score", "0.2"]) == 0
    assert "unreadable images: 1" in capsys.readouterr().out
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert {row["category_id"] for row in results} <= {7, 9}
    assert min(row["score"] for row in results) >= 0.2
    for row in results:
        assert cut(row["segmentation"], (0, 0, 64, 64)).shape == (64, 64)
        assert min(row["bbox"][2:]) > 0
    rows = (output / "objects.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == len(results) + 1
    with Image.open(output / "train0_objects.jpg") as picture:
        assert picture.size == (64, 64)
    nothing = ["predict", str(finished.folder), str(folder / "val0.png"), "--score", "1.0"]
    assert main([*nothing, "--output", str(tmp_path / "none"), "--overlays", "none"]) == 0
    assert json.loads((tmp_path / "none" / "results.json").read_text()) == []
    assert not list((tmp_path / "none").glob("*.png"))


def test_results_have_the_ids_of_the_json(
    finished: RunResult, squares: Path, tmp_path: Path
) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    # Image and class ids and the order differ from training.
    given = squares / "instances_val.json"
    content = json.loads(given.read_text(encoding="utf-8"))
    for row in content["images"]:
        row["id"] += 500
    for row in content["annotations"]:
        row["image_id"] += 500
        row["category_id"] = {7: 90, 9: 70}[row["category_id"]]
    content["categories"] = [{"id": 70, "name": "dog"}, {"id": 90, "name": "cat"}]
    root = tmp_path / "other"
    shutil.copytree(squares, root)
    listed = root / "instances_val.json"
    listed.write_text(json.dumps(content), encoding="utf-8")
    files = sorted((root / "images").glob("val*.png"))
    run_predictor(finished.folder, files, output=tmp_path, score=0.05, ids=listed)
    result = evaluate(str(finished.folder), EvaluationSettings(data=str(root)))
    result.write(tmp_path)
    truth = coco.COCO(str(listed))
    for name, kind, score in (
        ("results", "bbox", None),
        ("results_box", "bbox", result.evaluation.box.ap),
        ("results_mask", "segm", result.evaluation.mask and result.evaluation.mask.ap),
    ):
        judge = cocoeval.COCOeval(truth, truth.loadRes(str(tmp_path / f"{name}.json")), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        expected = result.evaluation.box.ap if score is None else score
        assert expected is not None
        # Predicted boxes are rounded to thousandths.
        assert 100 * judge.stats[0] == pytest.approx(expected, abs=0.5 if score is None else 1e-6)
    with pytest.raises(ValueError, match="does not list the image train0"):
        run_predictor(
            finished.folder, [root / "images" / "train0.png"], output=tmp_path, ids=listed
        )


def test_a_name_that_is_no_utf8_is_written_as_it_is(
    finished: RunResult, squares: Path, tmp_path: Path
) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(squares / "images" / "val0.png", tmp_path / name)
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    run_predictor(finished.folder, [tmp_path / name], output=tmp_path / "out", score=0.05)
    assert b"caf\xe9.png" in (tmp_path / "out" / "objects.csv").read_bytes()


@pytest.mark.parametrize("option", ["--topk=3", "--window=64", "--alpha=0.3"])
def test_options_of_other_tasks_are_refused(
    finished: RunResult, squares: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(squares / "images" / "val0.png")
    assert main(["predict", str(finished.folder), image, option]) == 2
    assert f"{option.partition('=')[0]} is an option for " in capsys.readouterr().err


def test_a_classifier_is_refused_with_the_names_to_take(squares: Path) -> None:
    asked = {"task": "detect", "model": "convnext_tiny", "data": str(squares)}
    recipe = change_recipe(Recipe(), asked)
    with pytest.raises(ValueError, match="mask_rcnn_convnext_tiny or cascade_mask_rcnn_"):
        DetectionTask.open(
            change_recipe(recipe, {"data": str(squares)}), torch.device("cpu"), QUIET
        )


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
    # The mask heads are untrained, so no mask is shown.
    image = str(root / "images" / "val0.png")
    found = run_predictor(done.folder, [image], output=tmp_path / "out", score=0.0)
    assert len(found.predictions[0].found)
    assert {mask for p in found.predictions for mask in p.found.masks} == {None}
    assert not any("segmentation" in row for row in found.results())
    # On data with masks it is evaluated by its boxes.
    masked = evaluate(str(done.folder), EvaluationSettings(data=str(small_coco(tmp_path / "m"))))
    assert masked.evaluation.mask is None
    # After fine-tuning on masks it predicts masks.
    tuned = settings | {"data": str(tmp_path / "m"), "weights": str(done.folder)}
    again = train(change_recipe(Recipe(), tuned), output=tmp_path / "run2", console=QUIET)
    assert "mask_ap50" in again.best


def test_killed_and_resumed_it_is_the_same_run(squares: Path, tmp_path: Path) -> None:
    flat = {**SMALL, "data": str(squares), "network.norm": "layer", "network.stem": "patchify"}
    flat |= {
        "schedule.epochs": 8,
        "run.eval_every": 4,
        "network.drop_path_rate": 0.2,
        "optim.micro_batch_size": 2,
        "ema.decay": 0.9,
    }
    runs = Runs(tmp_path, change_recipe(Recipe(), flat | {"run.save_every": 3}))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runs.finish(whole)
    for step in (6, 17):
        runs.kill_at(parts, step, "--resume", "--loader.workers", "1")
    runs.finish(parts, "--resume")
    assert_same(whole, parts)
