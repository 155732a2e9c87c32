"""Masks drawn from COCO annotations: one class per category, and a background class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnext.data.formats.records import Objects, Record
from convnext.data.images import BadImage
from convnext.data.masks import cut
from convnext.data.objects import DetectionImages, open_dataset
from convnext.tasks.segmentation.layout import Pairs
from convnext.tasks.segmentation.masks import Labels

BACKGROUND = "background"


@dataclass(frozen=True)
class Drawing:
    """The mask of one image."""

    path: str
    record: Record

    def __str__(self) -> str:
        return f"{self.path}: image {self.record.id}"


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Draws objects as class indices: the background is 0, each category is its label + 1.

    Larger objects are drawn first, so that small ones stay visible. Crowd regions, and the boxes of
    objects without a mask, have no class where no other object covers them.
    """

    num_classes: int
    ignore_index: int
    reduce_zero_label: bool = False

    def read(self, mask: Drawing, size: tuple[int, int] | None = None) -> Labels:
        """Return the class of every pixel, (H, W).

        Raises:
            BadImage: If the image does not have the size (width, height) given in the JSON.
        """
        record = mask.record
        if size not in (None, (record.width, record.height)):
            reason = f"is drawn on {record.width} x {record.height} pixels, but its image {size}"
            raise BadImage(str(mask), reason)
        labels = np.zeros((record.height, record.width), np.int32)
        objects = record.objects
        for index in _order(objects):
            own = objects.masks[index]
            if own is None:
                x1, y1, x2, y2 = _window(objects.boxes[index], record)
                labels[y1:y2, x1:x2] = self.ignore_index
                continue
            is_one = not objects.crowd[index]
            value = int(objects.labels[index]) + 1 if is_one else self.ignore_index
            labels[cut(own, (0, 0, record.width, record.height)) > 0] = value
        return labels


def open_drawn(path: str, val_share: float) -> dict[str, Any]:
    """Return the classes, pairs and notes of COCO annotations as segmentation data.

    Raises:
        ValueError: As `open_dataset` of detection, or if the objects have only boxes.
    """
    data = open_dataset(path, val_share=val_share)
    records = (*data.train.records, *data.val.records)
    if all(mask is None for record in records for mask in record.objects.masks):
        raise ValueError(
            f"the objects of {path} have only boxes, and masks cannot be drawn from them; train a "
            "detector: --task detect"
        )
    classes = (BACKGROUND, *data.classes)
    reader = Drawer(num_classes=len(classes), ignore_index=255 if len(classes) <= 255 else 65_535)
    note = "masks are drawn from the annotated objects; all other pixels are `background`"
    return {
        "path": path,
        "classes": classes,
        "train": _pairs(path, data.train, reader),
        "val": _pairs(path, data.val, reader),
        "notes": (*data.notes, note),
    }


def _pairs(path: str, images: DetectionImages, reader: Drawer) -> Pairs:
    return Pairs(
        root=images.root,
        names=tuple(str(Path(name).with_suffix("")) for name in images.names),
        images=tuple(images.images),
        masks=tuple(Drawing(path, record) for record in images.records),
        reader=reader,
    )


def _order(objects: Objects) -> list[int]:
    """Return the drawing order: regions without a class, then objects from large to small."""
    none = [mask is None or bool(c) for mask, c in zip(objects.masks, objects.crowd, strict=True)]
    return sorted(range(len(objects)), key=lambda i: (not none[i], -objects.areas[i], i))


def _window(box: np.ndarray, record: Record) -> tuple[int, int, int, int]:
    """Return the pixels that a box touches: x1 y1 x2 y2."""
    (x1, y1), (x2, y2) = np.floor(box[:2]).tolist(), np.ceil(box[2:]).tolist()
    return int(x1), int(y1), min(int(x2), record.width), min(int(y2), record.height)
