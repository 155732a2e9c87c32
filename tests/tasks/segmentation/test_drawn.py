"""Masks drawn from COCO JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext.tasks.segmentation.data import facts, open_dataset
from convnext.tasks.segmentation.inspect import inspect


def square(x: int, y: int, side: int) -> dict[str, Any]:
    ring = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {"bbox": [x, y, side, side], "segmentation": [ring], "area": side * side}


def write(root: Path, objects: list[dict[str, Any]]) -> Path:
    (root / "images").mkdir(parents=True)
    for split in ("train", "val"):
        Image.new("RGB", (20, 12), "green").save(root / "images" / f"{split}.png")
        content = {
            "images": [{"id": 1, "file_name": f"{split}.png", "width": 20, "height": 12}],
            "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}],
            "annotations": [{"id": i, "image_id": 1, **o} for i, o in enumerate(objects)],
        }
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_small_objects_lie_on_large_ones(tmp_path: Path) -> None:
    cat, dog = {"category_id": 9, **square(2, 2, 3)}, {"category_id": 3, **square(0, 0, 10)}
    data = open_dataset(str(write(tmp_path / "d", [cat, dog])))
    assert data.classes == ("background", "dog", "cat")
    mask = data.train.mask(0, (20, 12))
    assert mask.shape == (12, 20)
    assert np.bincount(mask.ravel()).tolist() == [240 - 100, 100 - 9, 9]
    assert (mask[2:5, 2:5] == 2).all()
    assert "dog" in [row.name for row in inspect(str(tmp_path / "d")).classes]


def test_crowds_and_boxes_without_masks_do_not_count(tmp_path: Path) -> None:
    counts = [0, 24, 240 - 24]  # Two columns.
    crowd = {"category_id": 3, "iscrowd": 1, "bbox": [0, 0, 2, 12], "area": 24}
    crowd["segmentation"] = {"size": [12, 20], "counts": counts}
    boxed = {"category_id": 3, "bbox": [10, 0, 4, 4], "segmentation": []}
    cat = {"category_id": 9, **square(1, 1, 2)}
    data = open_dataset(str(write(tmp_path / "d", [cat, crowd, boxed])))
    mask = data.val.mask(0)
    assert (mask[:, 0] == data.ignore_index).all()
    assert (mask[:4, 10:14] == data.ignore_index).all()
    assert (mask[1:3, 1:3] == 2).all()


def test_boxes_alone_are_for_detectors(tmp_path: Path) -> None:
    boxed = {"category_id": 3, "bbox": [10, 0, 4, 4], "segmentation": []}
    with pytest.raises(ValueError, match="have only boxes"):
        open_dataset(str(write(tmp_path / "d", [boxed])))


def test_an_image_of_another_size_names_json_and_image(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [{"category_id": 3, **square(0, 0, 5)}])
    Image.new("RGB", (10, 10)).save(root / "images" / "val.png")
    report = inspect(str(root))
    assert len(report.unusable) == 1
    assert "image 1" in report.unusable[0][0]


def test_of_real_objects(shared_data: Path) -> None:
    data = open_dataset(str(shared_data / "coco_mini_cc"))
    assert len(data.classes) == 81
    known = facts(data)
    assert 0.5 < known.pixel_counts[0] / sum(known.pixel_counts) < 0.9
