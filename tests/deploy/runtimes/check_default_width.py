"""Networks as wide as by default are exported in every format and precision, and used."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from small_exports import CLASSES, FILES, STATISTICS, small_photos
from small_objects import coco_squares

import convnext
from convnext.data.preprocessing import DensePreprocessing, Preprocessing
from convnext.deploy import quantize
from convnext.deploy.export import ExportSettings
from convnext.deploy.formats import Format, Precision
from convnext.deploy.verify import MAX_DIFFERENCE, MIN_AGREEMENT
from convnext.results import Classification, Detections, Segmentation
from convnext.tasks.detection.export.proof import MARGIN, MIN_MATCHED
from convnext.tasks.detection.model.boxes import iou
from convnext.tasks.detection.model.heads import DetectorConfig
from convnext.tasks.exporting import export
from convnext.tasks.trained import build
from convnext.weights.checkpoint import Card
from convnext.weights.files import save_checkpoint

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
pytest.importorskip("nncf")

TASKS = ("classify", "segment", "detect")
REFUSED = {
    **{(task, "onnx", "bf16"): "ONNX Runtime has no bf16 kernels" for task in TASKS},
    **{(task, "pt2", "int8"): "pt2 has no int8" for task in TASKS},
    ("detect", "onnx", "int8"): (
        "^a detector's int8 is for OpenVINO: --format openvino --precision int8$"
    ),
    ("detect", "openvino", "bf16"): "OpenVINO would also compute box corners in bf16",
}
ALL = list(itertools.product(TASKS, get_args(Format), get_args(Precision)))
MAX_DETECTIONS, THRESHOLD = DetectorConfig().max_detections, DetectorConfig().score_threshold
BF16 = {"run": {"precision": "bf16"}}
"""The recipe of a network that was trained in bf16; its files run in their own precision."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint, and images on which its answers differ."""

    source: str
    images: list[Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Return a function that makes the network of a task once."""
    made: dict[str, Trained] = {}

    def get(task: str) -> Trained:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            made[task] = MAKERS[task](folder)
        return made[task]

    return get


def classifier(folder: Path) -> Trained:
    pre = Preprocessing(image_size=64, crop_pct=0.875, **STATISTICS)
    model = "convnext_atto"
    card = Card(
        model=model, changes={"num_classes": 3}, classes=CLASSES, preprocessing=pre, recipe=BF16
    )
    torch.manual_seed(0)
    network: Any = build(card)
    network.head.fc.weight.data.mul_(40)
    save_checkpoint(folder / "net.safetensors", network.state_dict(), card)
    photos = small_photos(folder / "photos")
    return Trained(str(folder / "net.safetensors"), sorted(photos.iterdir()))


def segmentor(folder: Path) -> Trained:
    card = Card(
        task="segment",
        model="upernet_convnext_atto",
        changes={"num_classes": 3},
        classes=CLASSES,
        preprocessing=DensePreprocessing(image_size=0, **STATISTICS),
        recipe={"segment": {"crop": 64}, **BF16},
    )
    torch.manual_seed(0)
    network: Any = build(card)
    assert network.decode_head.classifier.in_channels == 512
    torch.nn.init.normal_(network.decode_head.classifier.weight, std=5.0)
    torch.nn.init.normal_(network.decode_head.classifier.bias)
    save_checkpoint(folder / "net.safetensors", network.state_dict(), card)
    # A file of one size slides over other images, which changes what the network sees.
    image = small_photos(folder / "photos") / "1.png"
    return Trained(str(folder / "net.safetensors"), [image])


def detector(folder: Path) -> Trained:
    """Train a detector: with random weights, int8 changes which boxes survive NMS."""
    data = coco_squares(folder / "data", num_train=24, num_val=4)
    run = convnext.train(
        data=data,
        task="detect",
        model="mask_rcnn_convnext_atto",
        output=folder / "run",
        epochs=12,
        progress=False,
        **{"run.precision": "fp32", "input.image_size": 64},
    )
    return Trained(str(run.folder), sorted((data / "images").glob("val*.png")))


MAKERS: dict[str, Callable[[Path], Trained]] = {
    "classify": classifier,
    "segment": segmentor,
    "detect": detector,
}


def agreement(before: Any, after: Any, precision: str) -> float:
    """Return how much of an answer is the same; probabilities must be close."""
    if isinstance(before, Classification):
        difference = np.abs(before.probabilities - after.probabilities).max()
        assert difference <= MAX_DIFFERENCE[precision]
        return float(before.labels[0] == after.labels[0])
    if isinstance(before, Segmentation):
        return float(np.mean(before.mask == after.mask))
    assert isinstance(before, Detections)
    # As in the proof: scores near the threshold, or near the last of too many, may come and go.
    least = before.scores.min() if len(before.scores) == MAX_DETECTIONS else THRESHOLD
    sure = before.scores >= least + MARGIN[precision]
    overlaps = iou(torch.from_numpy(before.boxes[sure]), torch.from_numpy(after.boxes)).numpy()
    same = before.labels[sure][:, None] == after.labels[None]
    found = ((overlaps >= 0.5) & same).any(1)
    assert len(found) > 0
    return float(found.mean())


@pytest.mark.parametrize(("task", "format", "precision"), [c for c in ALL if c not in REFUSED])
def test_a_file_predicts_like_its_network(
    task: str,
    format: Any,
    precision: Any,
    trained: Callable[[str], Trained],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # int8 that is slower on some machine is kept only by force, which also keeps wrong files.
    monkeypatch.setattr(quantize, "_ratio", lambda *_: 2.0)
    network, path = trained(task), tmp_path / FILES[format]
    settings = ExportSettings(format=format, precision=precision)
    result = export(network.source, settings=settings, output=path, images=network.images)
    assert result.proof.passed
    assert result.proof_path.is_file()
    before = convnext.load(network.source, device="cpu").predict(
        network.images, precision="fp32", progress=False
    )
    after = convnext.load(path).predict(network.images, progress=False)
    bounds = MIN_MATCHED if task == "detect" else MIN_AGREEMENT
    assert mean_of(before, after, precision) >= bounds[precision]


def mean_of(before: Sequence[Any], after: Sequence[Any], precision: str) -> float:
    pairs = zip(before, after, strict=True)
    return float(np.mean([agreement(a, b, precision) for a, b in pairs]))


@pytest.mark.parametrize(("task", "format", "precision"), REFUSED)
def test_wrong_combinations_are_refused(
    task: str, format: Any, precision: Any, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    path = tmp_path / FILES[format]
    with pytest.raises(ValueError, match=REFUSED[task, format, precision]):
        export(
            trained(task).source,
            settings=ExportSettings(format=format, precision=precision),
            output=path,
            images=trained(task).images,
        )
    assert list(tmp_path.iterdir()) == []
