"""Options and checks of detection for the verbs, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
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


def recognizes(path: Path) -> bool:
    """Whether a folder or a JSON file is a detection data set, by its layout."""
    from convnext.data.formats.layouts import is_detection

    return is_detection(path)


def inspect(path: str, *, contact_sheet: bool) -> tuple[Any, Any]:
    """Return the report on a data set, and its contact sheet or None."""
    from convnext.data.objects import open_dataset
    from convnext.tasks.detection.data import inspect as module

    report = module.inspect(path)
    data = open_dataset(path, strict=False) if contact_sheet else None
    return report, None if data is None else module.contact_sheet(data)


def predictor_class() -> Any:
    """Import and return the predictor class."""
    from convnext.tasks.detection.predict import ObjectPredictor

    return ObjectPredictor
