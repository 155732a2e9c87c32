"""Recipes, checkpoints, runs and exported files of version 0.1.0 load and give the same outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from shapes import write_shapes
from small_objects import coco_squares
from torch import Tensor, nn

import convnext
from convnext.cli import main

FILES = Path(__file__).parent / "fixtures" / "v0_1_0"
EXPECTED: dict[str, Any] = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
TASKS = ("classification", "segmentation", "detection")
SCORES = {
    "classification": ("top1", "top5"),
    "segmentation": ("miou", "accuracy"),
    "detection": ("box_ap", "mask_ap"),
}
# Settings of the task that the user wrote or `auto` chose.
SETTINGS: dict[str, dict[str, Any]] = {
    "classification": {
        "task": "classify",
        "model": "convnext_atto",
        "data": "digits",
        "network.changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
        "network.stem_stride": 1,
        "network.layer_scale_init": 0.0,
        "network.drop_path_rate": 0.1,
        "input.image_size": 8,
        "input.in_chans": 1,
        "input.mean": [0.449],
        "augment.scale": [0.7, 1.0],
        "augment.mixup": 0.2,
        "loss.label_smoothing": 0.1,
        "optim.lr": 0.004,
        "optim.batch_size": 48,
        "optim.micro_batch_size": 24,
        "schedule.epochs": 1,
        "schedule.warmup_epochs": 0.05,
        "ema.decay": 0.9,
        "loader.workers": 0,
        "run.precision": "fp32",
        "run.save_every": 100,
        "run.seed": 3,
    },
    "segmentation": {
        "task": "segment",
        "model": "upernet_convnext_atto",
        "data": "/data/shapes",
        "network.changes": {
            "depths": [1, 1, 1, 1],
            "dims": [8, 8, 16, 16],
            "auxiliary_channels": 16,
        },
        "segment.channels": 16,
        "segment.crop": 40,
        "segment.jitter": [0.9, 1.1],
        "segment.photometric": False,
        "segment.auxiliary_weight": 0.4,
        "optim.lr": 0.01,
        "optim.batch_size": 4,
        "schedule.epochs": 60,
        "run.seed": 3,
    },
    "detection": {
        "task": "detect",
        "model": "mask_rcnn_convnext_atto",
        "data": "/data/squares",
        "network.changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
        "input.image_size": 64,
        "detect.channels": 12,
        "detect.fc_dim": 20,
        "detect.jitter": [0.9, 1.1],
        "detect.num_proposals": 60,
        "detect.max_detections": 20,
        "detect.nms_threshold": 0.5,
        "optim.lr": 0.004,
        "optim.batch_size": 4,
        "schedule.epochs": 120,
        "run.seed": 3,
    },
}


@pytest.mark.parametrize("task", TASKS)
def test_recipe(task: str) -> None:
    recipe = convnext.read_recipe(FILES / task / "recipe.yaml")
    for name, value in SETTINGS[task].items():
        found: Any = recipe
        for part in name.split("."):
            found = getattr(found, part)
        assert (list(found) if isinstance(found, tuple) else found) == value, name


@pytest.mark.parametrize("task", TASKS)
def test_weights(task: str) -> None:
    model = build(task)
    report = convnext.load_weights(model, checkpoint(task))
    assert report.loaded == report.total
    assert not report.missing
    assert not report.unexpected
    state = model.state_dict()
    with safe_open(checkpoint(task), "pt") as file:
        assert set(file.keys()) == set(state)
        for name in file.keys():  # noqa: SIM118 (it is not a mapping)
            assert torch.equal(file.get_tensor(name), state[name]), name


@pytest.mark.parametrize("task", TASKS)
def test_outputs(task: str) -> None:
    assert_close(outputs(task), EXPECTED["outputs"][task])


@pytest.mark.parametrize("task", TASKS)
def test_predict(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predictions(FILES / task, task, tmp_path, capsys)
    assert_close(found, EXPECTED["predict"][task])


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_predict_with_an_exported_file(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
    file = FILES / "exported" / f"classifier.{ending}"
    found = predictions(file, "classification", tmp_path, capsys)
    assert_close(found, EXPECTED["predict"]["exported"])


@pytest.mark.parametrize("task", TASKS)
def test_evaluate(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scores(task, tmp_path, capsys)
    # A pixel or image may fall on the other side of a threshold on another machine.
    assert found == pytest.approx(EXPECTED["evaluate"][task], abs=0.3)


@pytest.mark.parametrize("task", TASKS)
def test_the_recipe_resolves_again(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parameter_groups(task, tmp_path, capsys) == EXPECTED["groups"][task]


def test_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, expected = resumed(tmp_path / "run", capsys), EXPECTED["resume"]
    assert found["steps"] == expected["steps"] == 58
    assert found["trained"] == expected["trained"]
    assert found["scores"] == pytest.approx(expected["scores"], abs=0.6)
    # Rounding differences between machines add up over 29 steps.
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-3, atol=1e-3)
    before = EXPECTED["outputs"]["classification"]["logits"]
    assert np.abs(np.subtract(found["logits"], before)).max() > 0.1


def checkpoint(task: str) -> Path:
    return FILES / task / "checkpoints" / "best.safetensors"


def build(task: str, file: Path | None = None) -> nn.Module:
    """Return the network that a checkpoint describes, with random weights."""
    metadata = card(file or checkpoint(task))
    torch.manual_seed(0)
    return convnext.create_model(metadata["model"], **json.loads(metadata["changes"])).eval()


def card(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def picture(task: str) -> NDArray[np.uint8]:
    """Return pixels (H, W) or (H, W, 3) like those that the network was trained on."""
    y, x = np.mgrid[:8, :8]
    if task == "classification":
        return (255 * np.exp(-((x - 3.5) ** 2) / 3 - (y - 4) ** 2 / 20)).astype(np.uint8)
    height, width, ground, red, blue = {
        "segmentation": (40, 48, 30, (220, 40, 40), (40, 60, 220)),
        "detection": (64, 64, 110, (220, 40, 40), (40, 40, 220)),
    }[task]
    y, x = np.mgrid[:height, :width]
    pixels = np.repeat((ground - 8 + (7 * x + 13 * y) % 17)[..., None], 3, axis=2)
    pixels[6:22, 5:21] = red
    pixels[20:36, 28:44] = blue
    return pixels.astype(np.uint8)


def tensor(task: str) -> Tensor:
    """Return the picture (C, H, W), normalized by the statistics in the checkpoint."""
    pixels = torch.from_numpy(picture(task)).float() / 255
    pixels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    statistics = json.loads(card(checkpoint(task))["preprocessing"])
    mean, std = (torch.tensor(statistics[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return ((pixels - mean) / std).contiguous()


def outputs(task: str, file: Path | None = None) -> dict[str, Any]:
    """Return what the network of a checkpoint computes for the picture."""
    model = build(task, file)
    convnext.load_weights(model, file or checkpoint(task))
    image = tensor(task)
    with torch.no_grad():
        if task == "classification":
            return {"logits": model(image[None])[0].tolist()}
        if task == "segmentation":
            logits = model(image[None])[0]
            return {"logits": logits[:, ::8, ::8].tolist(), "mean": logits.mean((1, 2)).tolist()}
        found = model([image])[0]
    sure = found["scores"] > 0.3
    return {
        "boxes": found["boxes"][sure].tolist(),
        "scores": found["scores"][sure].tolist(),
        "labels": found["labels"][sure].tolist(),
        "areas": found["masks"][sure].sum((1, 2)).tolist(),
    }


def ask(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> Any:
    """Run a command and return the JSON object that it prints last."""
    capsys.readouterr()
    code = main([*map(str, argv), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out.splitlines()[-1])


def predictions(
    source: Path, task: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Return the output of `predict` for the picture."""
    image, output = folder / "picture.png", folder / "out"
    Image.fromarray(picture(task)).save(image)
    options = ["--device", "cpu", "--precision", "fp32", "--no-fast", "--output", output]
    told = ask(capsys, "predict", source, image, *options)
    if task == "classification":
        (row,) = told["predictions"]
        return {"classes": row["classes"], "probabilities": row["probabilities"]}
    if task == "segmentation":
        (row,) = told["predictions"]
        areas = {area["name"]: area["pixels"] for area in row["areas"]}
        return {"classes": told["classes"], "areas": areas}
    return {
        "classes": told["classes"],
        "objects": [
            {name: row[name] for name in ("category_id", "category", "bbox", "score")}
            for row in told["objects"]
        ],
    }


def data_of(task: str, folder: Path) -> list[str | Path]:
    """Return the options that name the data of a run; drawn data is drawn again."""
    if task == "segmentation":
        return ["--data", write_shapes(folder / "shapes")]
    return ["--data", coco_squares(folder / "squares")] if task == "detection" else []


def scores(task: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Return the scores of `evaluate`."""
    options = [*data_of(task, folder), "--device", "cpu", "--precision", "fp32", "--no-fast"]
    told = ask(capsys, "evaluate", FILES / task, *options)
    return {name: told[name] for name in SCORES[task]}


def parameter_groups(task: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return the sizes and rates of the optimizer's groups that `train` makes from the recipe."""
    options = [*data_of(task, folder), "--show-groups"]
    rows = ask(capsys, "train", FILES / task / "recipe.yaml", *options)
    return [
        {name: row[name] for name in ("tensors", "params", "lr", "weight_decay")} for row in rows
    ]


def resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Continue the classification run for another epoch, and return its last step."""
    shutil.copytree(FILES / "classification", run)
    told = ask(capsys, "train", "--resume", "--output", run, "--schedule.epochs", "2")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = run / "checkpoints" / f"step-{told['steps']:08d}" / "model.safetensors"
    return {
        "steps": told["steps"],
        "scores": {name: told["best"][name] for name in SCORES["classification"]},
        "trained": [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"],
        "logits": outputs("classification", last)["logits"],
    }


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Compare nested values: numbers to 1e-5, `bbox` to its three printed decimals."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_close(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list) and expected and isinstance(expected[0], Mapping):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{where}[{i}]")
    elif isinstance(expected, str) or (isinstance(expected, list) and _has_text(expected)):
        assert found == expected, where
    else:
        atol = 1.1e-3 if where.endswith("bbox") else 1e-5
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=where)


def _has_text(values: list[Any]) -> bool:
    return any(isinstance(value, str) for value in values)
