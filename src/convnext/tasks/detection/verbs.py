"""Options and checks of detection for the verbs, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

NUM_INT8_IMAGES = 50


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of `predict`.

    Args:
        score: Minimum score of an object; 0.5 by default.
        nms: IoU threshold of NMS; by default that of training.
        max_detections: Maximum number of objects per image; by default that of training.
        overlays: Format of the pictures.
        names: Write class names and scores into the pictures.
        ids: COCO JSON file that lists the images; the results use its ids.
    """

    score: float | None = None
    nms: float | None = None
    max_detections: int | None = None
    overlays: Literal["png", "jpg", "none"] = "png"
    names: bool = True
    ids: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `evaluate`.

    Args:
        score: Minimum score of an object; by default that of training.
        nms: IoU threshold of NMS; by default that of training.
        max_detections: Maximum number of objects per image; by default that of training.
    """

    score: float | None = None
    nms: float | None = None
    max_detections: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `export`.

    Args:
        masks: No masks, mask probabilities on 28 x 28 cells of each box (the default), or a
            full-size bitmap for each object.
    """

    masks: Literal["none", "shares", "full"] | None = None


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of `data`.

    Args:
        layout: Layout of the annotations, such as `coco`, `yolo` or `voc`; for classification
            `class_folders` accepts any folder names as classes.
        annotations: Annotation files, separated by commas, where several could be meant.
        images: Folder of the images, if it is not below the data.
        exif: Whether objects were drawn on images with their EXIF orientation applied.
        boxes: Numbers of a COCO box: corner and size, two corners, or center and size.
        allow_outside: Read files outside the data folder that annotations or links name.
    """

    layout: str = ""
    annotations: str = ""
    images: str = ""
    exif: Literal["", "turned", "unturned"] = ""
    boxes: Literal["", "xywh", "xyxy", "cxcywh"] = ""
    allow_outside: bool = False


def recognizes(path: Path) -> bool:
    """Whether a folder or a JSON file is a detection data set, by its layout."""
    from convnext.data.formats.layouts import is_detection

    return is_detection(path)


def inspect(path: str, *, contact_sheet: bool, **options: Any) -> tuple[Any, Any]:
    """Return the report on a data set, and its contact sheet or None."""
    from convnext.data.formats.records import ReadOptions
    from convnext.data.objects import open_dataset
    from convnext.tasks.detection.data import inspect as module

    given = ReadOptions(**options)
    report = module.inspect(path, options=given)
    if not contact_sheet:
        return report, None
    data = open_dataset(path, strict=False, options=given)
    other = None
    if module.is_unclear(data):
        other = open_dataset(path, strict=False, options=replace(given, exif="unturned"))
    return report, module.contact_sheet(data, unturned=other)


def predictor_class() -> Any:
    """Import and return the predictor class."""
    from convnext.tasks.detection.predict import ObjectPredictor

    return ObjectPredictor
