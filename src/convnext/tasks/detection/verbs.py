"""What the verbs ask of detection before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

NUM_CALIBRATION_IMAGES = 50


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What `predict` takes.

    Args:
        score: Lowest score of an object; 0.5 by default.
        nms: Overlap from which duplicates are dropped; by default that of training.
        max_detections: Objects per image at most; by default those of training.
        overlays: Format of the pictures.
        names: Leave names and scores out of the pictures.
        ids: COCO's json that lists the images: the results have its ids.
    """

    score: float | None = None
    nms: float | None = None
    max_detections: int | None = None
    overlays: Literal["png", "jpg", "none"] = "png"
    names: bool = True
    ids: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What `evaluate` takes.

    Args:
        score: Lowest score of an object; by default that of training.
        nms: Overlap from which duplicates are dropped; by default that of training.
        max_detections: Objects per image at most; by default those of training.
    """

    score: float | None = None
    nms: float | None = None
    max_detections: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `export` takes.

    Args:
        masks: No masks, mask probabilities on 28 x 28 cells of each box (the default), or a bitmap
            of the image for each object.
    """

    masks: Literal["none", "shares", "full"] | None = None


def recognizes(path: Path) -> bool:
    """Whether a folder or a json holds objects, by its layout."""
    from convnext.data.formats.coco_layout import is_detection

    return is_detection(path)


def inspect(path: str, *, contact_sheet: bool) -> tuple[Any, Any]:
    """Return the report on a data set, and its contact sheet or None."""
    from convnext.data.objects import open_dataset
    from convnext.tasks.detection.data import inspect as module
    from convnext.tasks.detection.data import inspect as sheets

    report = module.inspect(path)
    data = open_dataset(path, strict=False) if contact_sheet else None
    return report, None if data is None else sheets.contact_sheet(data)


def predictor_class() -> Any:
    """Import what predicts images."""
    from convnext.tasks.detection.predict import ObjectPredictor

    return ObjectPredictor
