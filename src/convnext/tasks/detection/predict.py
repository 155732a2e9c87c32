"""`predict` for detection: pictures of the objects on images, and COCO's results."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from torch import nn

from convnext.atomic import write_together
from convnext.data.drawing import save_image
from convnext.data.formats.coco import read_coco
from convnext.data.sources import Source
from convnext.names import csv_text, text_cell
from convnext.results import Detections
from convnext.tasks.detection.export.exported import ExportedDetector
from convnext.tasks.detection.inference import Detections as CocoDetections
from convnext.tasks.detection.inference import detect
from convnext.tasks.detection.metric import xywh
from convnext.tasks.detection.model.detector import Detector
from convnext.tasks.detection.render import draw_detections
from convnext.tasks.predict import (
    OverlayFormat,
    Predictor,
    bad_rows,
    check_overlays,
    print_bad,
    summary_table,
)
from convnext.tasks.trained import Opened

SCORE = 0.5
"""Minimum score of the objects shown: below it, boxes are more often wrong than right."""


@dataclass(frozen=True, kw_only=True)
class ImageObjects:
    """Detections of one image, highest score first, with its source and picture."""

    source: str
    picture: str
    """Path of the picture; empty if none was written."""
    found: CocoDetections
    image_id: int
    """Id of the image in the COCO results."""


@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """Detections of all images, in order, and the images that could not be read."""

    output: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Id of each class in the COCO results."""
    predictions: tuple[ImageObjects, ...]
    bad_images: tuple[tuple[str, str], ...]

    def results(self) -> list[dict[str, Any]]:
        """Return the objects as COCO results, with the image's file name added."""
        return [
            {
                "image_id": prediction.image_id,
                "file_name": prediction.source,
                "category_id": self.category_ids[label],
                "category": self.classes[label],
                "bbox": [round(value, 3) for value in xywh(box)],
                "score": round(float(score), 6),
                **({} if mask is None else {"segmentation": mask}),
            }
            for prediction in self.predictions
            for box, score, label, mask in zip(
                prediction.found.boxes,
                prediction.found.scores,
                prediction.found.labels.tolist(),
                prediction.found.masks,
                strict=True,
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return {
            "output": self.output,
            "classes": list(self.classes),
            "images": [
                {
                    "id": prediction.image_id,
                    "source": prediction.source,
                    "height": prediction.found.size[0],
                    "width": prediction.found.size[1],
                    "picture": prediction.picture,
                    "num_objects": len(prediction.found),
                }
                for prediction in self.predictions
            ],
            "objects": self.results(),
            "bad_images": bad_rows(self.bad_images),
        }

    def write(self, folder: str | Path | None = None) -> tuple[Path, ...]:
        """Write `predictions.json`, COCO `results.json`, and `objects.csv` (one row per object)."""
        folder = Path(folder or self.output)
        content = self.to_dict()
        rows: list[tuple[str, ...]] = [("image", "class", "score", "x", "y", "width", "height")]
        for row in content["objects"]:
            box = (f"{value:.1f}" for value in row["bbox"])
            texts = map(text_cell, (row["file_name"], row["category"]))
            rows.append((*texts, f"{row['score']:.4f}", *box))
        text = json.dumps(content, indent=1) + "\n"
        results = json.dumps(content["objects"]) + "\n"
        others = {"results.json": results, "objects.csv": csv_text(rows)}
        return write_together(folder / "predictions.json", text, others)

    def print(self, console: Console) -> None:
        """Print one line per image with its objects."""
        rows = []
        for p in self.predictions:
            counts = Counter(p.found.labels.tolist())
            named = (f"{count:,} {self.classes[label]}" for label, count in counts.most_common(5))
            rows.append((p.source, f"{len(p.found):,}", ", ".join(named)))
        console.print(summary_table(("objects>", "classes"), rows))
        print_bad(self.bad_images, console)
        if self.output:
            console.print(
                "pictures, objects.csv, predictions.json and results.json (COCO format) are in "
                f"{escape(self.output)}"
            )


class ObjectPredictor(Predictor[Detections]):
    """Detects objects and draws them.

    Args:
        own: The network.
        output: Folder for NAME_objects.png of each image; None for no files.
        score: Minimum score of an object; 0.5 by default.
        nms: IoU threshold of NMS; by default that of training.
        max_detections: Maximum number of objects per image; by default that of training.
        overlays: Format of the pictures: "png", "jpg" (smaller), or "none".
        names: Write class names and scores into the pictures.
        ids: COCO JSON file that lists the images. The results use its ids of images and classes;
            without it, images are numbered from 1.

    Raises:
        ValueError: If an option is out of range.
    """

    title = "detecting"
    default_folder = "predictions"

    def __init__(
        self,
        own: Opened,
        output: Path | None,
        *,
        score: float | None = None,
        nms: float | None = None,
        max_detections: int | None = None,
        overlays: OverlayFormat = "png",
        names: bool = True,
        ids: str | Path | None = None,
    ) -> None:
        super().__init__(own, output)
        self.overlays, self.has_names, self.ids = check_overlays(overlays), names, ids
        self.network = change_detector(
            own.model,
            score_threshold=SCORE if score is None else score,
            nms_threshold=nms,
            max_detections=max_detections,
        )
        self.image_ids: dict[int, int] = {}
        self.category_ids = own.card.category_ids or tuple(range(1, len(self.classes) + 1))

    def begin(self, sources: Sequence[Source] | None) -> None:
        """Read the ids of the images."""
        if self.ids is None:
            return
        if sources is None or any(source.path is None for source in sources):
            raise ValueError("--ids needs image files, all passed in one call")
        files = [source.path for source in sources if source.path is not None]
        image_ids, self.category_ids = read_ids(Path(self.ids), files, self.classes)
        self.image_ids = {id(s): i for s, i in zip(sources, image_ids, strict=True)}

    def files_of(self, name: str) -> tuple[str, ...]:
        """Return the names of an image's files."""
        return () if self.overlays == "none" else (f"{name}_objects.{self.overlays}",)

    def result(self, source: Source, image: Image.Image) -> Detections:
        """Return the detections of an image."""
        with torch.inference_mode():
            found = detect(
                self.network,
                self.tensor(image),
                (image.height, image.width),
                device=self.own.device,
                precision=self.precision,
            )
        self.found = found
        masks = [mask for mask in found.masks if mask is not None]
        return Detections(
            boxes=found.boxes.astype(np.float32),
            scores=found.scores.astype(np.float32),
            labels=found.labels,
            masks=masks if found.masks and len(masks) == len(found) else None,
            **self.common(source, found.size, image),
        )

    def row(
        self, source: Source, image: Image.Image | None, result: Detections, name: str, index: int
    ) -> ImageObjects:
        """Write the picture, and return the row of an image."""
        assert image is not None
        picture = ""
        if self.output is not None and self.overlays != "none":
            (picture,) = self.files_of(name)
            drawn = draw_detections(image, self.found, self.classes, names=self.has_names)
            save_image(drawn, self.output / picture)
        return ImageObjects(
            source=source.name,
            picture=picture,
            found=self.found,
            image_id=self.image_ids.get(id(source), index + 1),
        )

    def summary(self, rows: Sequence[Any], bad: Sequence[tuple[str, str]]) -> DetectionResult:
        """Return the detections of all images."""
        return DetectionResult(
            output=str(self.output or ""),
            classes=self.classes,
            category_ids=self.category_ids,
            predictions=tuple(rows),
            bad_images=tuple(bad),
        )


def read_ids(
    path: Path, files: Sequence[Path], classes: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of images and classes in a COCO JSON file.

    An image is listed if its path ends with a `file_name`.

    Raises:
        ValueError: If an image or a class is not listed.
    """
    content = read_coco(path)
    by_parts = {Path(record.file_name).parts: record.id for record in content.records}
    by_name = dict(zip(content.classes, content.category_ids, strict=True))
    found = []
    for file in files:
        ends = (file.parts[start:] for start in range(len(file.parts)))
        end = next((end for end in ends if end in by_parts), None)
        if end is None:
            raise ValueError(
                f"{path} does not list the image {file.name}; leave it out, or omit --ids"
            )
        found.append(by_parts[end])
    missing = [name for name in classes if name not in by_name]
    if missing:
        raise ValueError(f"{path} has no category {missing[0]!r}, a class of the network")
    return tuple(found), tuple(by_name[name] for name in classes)


def change_detector(model: nn.Module, **asked: Any) -> Detector | ExportedDetector:
    """Return a copy that shares the layers and has other inference settings; None keeps a setting.

    Raises:
        ValueError: If the network is not a detector, a value is out of range, or an exported file
            does not support it.
    """
    model = copy.copy(model)
    if isinstance(model, ExportedDetector):
        model.change(**{name: value for name, value in asked.items() if value is not None})
        return model
    if not isinstance(model, Detector):
        raise ValueError("the network does not detect objects")
    changes = {name: value for name, value in asked.items() if value is not None}
    limit = changes.get("max_detections", 0)
    if limit > model.config.num_proposals:
        changes["num_proposals"] = limit
    model.config = replace(model.config, **changes)
    return model


PREDICTOR = ObjectPredictor
