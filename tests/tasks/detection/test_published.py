"""A published detector needs only its file: COCO's classes, ids and preprocessing are known."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from small_detectors import NARROW
from small_objects import save

from convnext.cli import main
from convnext.data.objects import open_dataset
from convnext.tasks.detection.model import COCO, COCO_IDS
from convnext.tasks.factory import create_model
from convnext.tasks.trained import card_of, task_of
from convnext.weights import export_weights


def test_names_and_ids_are_those_of_coco(shared_data: Path) -> None:
    data = open_dataset(str(shared_data / "coco_mini_cc"))
    assert data.classes == COCO
    assert data.category_ids == COCO_IDS


def test_predict_takes_a_file_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("mask_rcnn_convnext_tiny", **NARROW, channels=16, fc_dim=24)
    with torch.no_grad():  # It predicts a zebra everywhere.
        model.box_heads[0].classifier.bias[COCO.index("zebra")] = 9.0  # type: ignore[union-attr,index]
    path = tmp_path / "mask_rcnn_convnext_tiny_1k_3x.pth"
    torch.save({"state_dict": export_weights(model, "official")}, path)
    assert task_of(str(path)) == "detect"
    photo = save(tmp_path / "photo.png", (80, 60))
    output = tmp_path / "out"
    command = ["predict", str(path), str(photo), "--output", str(output), "--max-detections", "3"]
    assert main(command) == 0
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert {(row["category"], row["category_id"]) for row in results} == {("zebra", 24)}
    assert (output / "photo_objects.png").is_file()
    card = card_of(str(path), "mask_rcnn_convnext_tiny")
    assert card is not None
    assert (card.preprocessing.image_size, card.preprocessing.max_size) == (800, 1333)
