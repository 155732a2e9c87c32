"""The same files, read by `supervision`, have the same boxes, classes and images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_layouts import Truth, coco, truth, voc_beside, yolo_roboflow

from convnext.data.objects import DetectionImages, open_dataset


def theirs(name: str, root: Path, split: str) -> dict[str, list[tuple[str, list[float]]]]:
    """Return class and corners of every object by image, as `supervision` reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns of its own deprecations.
        supervision: Any = pytest.importorskip("supervision")
        folder = str(root / split)
        data = {
            "coco": lambda: supervision.DetectionDataset.from_coco(
                folder, str(root / "annotations" / f"instances_{split}.json")
            ),
            "voc": lambda: supervision.DetectionDataset.from_pascal_voc(folder, folder),
            "yolo": lambda: supervision.DetectionDataset.from_yolo(
                f"{folder}/images", f"{folder}/labels", str(root / "data.yaml")
            ),
        }[name]()
        return {
            Path(path).name: sorted(
                (data.classes[int(label)], [round(float(value), 3) for value in box])
                for label, box in zip(found.class_id, found.xyxy, strict=True)
            )
            for path, found in data.annotations.items()
        }


def ours(images: DetectionImages, classes: tuple[str, ...]) -> Any:
    return {
        Path(record.file_name).name: sorted(
            (classes[label], np.round(box, 3).tolist())
            for label, box in zip(record.objects.labels, record.objects.boxes, strict=True)
        )
        for record in images.records
    }


WRITERS: dict[str, Callable[[Path, Truth], None]] = {
    "coco": coco,
    "voc": voc_beside,
    "yolo": yolo_roboflow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_supervision_reads_the_same(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path, truth())
    data = open_dataset(str(tmp_path))
    for split, images in data.parts.items():
        assert ours(images, data.classes) == theirs(name, tmp_path, split)
